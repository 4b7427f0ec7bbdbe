"""What random directions read: beside each probe, the spread of AUROCs that nobody had to search for.

Directions of standard normal numbers, in the coordinates and on the layers of the probe. As probes without labels do,
each takes its sign from the rows that the probe is fitted on. One direction is no control: single ones are anywhere in
a wide range, and what a probe reads says something of its search only where it is beyond that.
"""

from collections.abc import Mapping
from typing import NamedTuple

from lens_rnn.elk.probes import Drawn
from lens_rnn.elk.scores import aurocs

import numpy as np

DIRECTIONS = 200
QUANTILES = (0.05, 0.5, 0.95)


class Control(NamedTuple):
    """AUROC of random directions: 5 % are below `low`, half below `median`, 5 % above `high`."""

    low: float
    median: float
    high: float


class Scored(NamedTuple):
    """What is scored: which rows (rows), and their labels (of those rows)."""

    among: np.ndarray
    labels: np.ndarray


def control(
    drawn: Drawn, x: np.ndarray, y: np.ndarray, unseen: np.ndarray, tests: Mapping[str, Scored], seed: int = 0
) -> dict[str, Control]:
    """Quantiles over random directions of the AUROC in each of the tests.

    x (rows, …), y (rows) booleans: one layer's features of the rows that a probe is fitted on. unseen (rows, …): those
    of all test rows. The directions are a function of the seed and a row's size: all layers have the same.
    """
    size = x[0].size
    directions = np.random.default_rng(seed).standard_normal((DIRECTIONS, size))
    weights = drawn(x.astype(np.float64), directions).reshape(DIRECTIONS, size).T  # (size, draws)
    sign = np.where(aurocs(y, x.reshape(len(x), size) @ weights) < 0.5, -1.0, 1.0)
    read = unseen.reshape(len(unseen), size) @ weights * sign  # (test rows, draws)
    areas = {name: aurocs(test.labels, read[test.among]) for name, test in tests.items()}  # (draws) each
    return {name: Control(*np.quantile(of_draws, QUANTILES).tolist()) for name, of_draws in areas.items()}

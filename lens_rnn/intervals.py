"""Estimates with the limits of their 95 % interval, by one bootstrap.

A resample is how often each unit is drawn, so that any statistic that takes weights can be made of it, several
statistics can be resampled together, and rows of one cluster (a document, a question's stem) come and go together.
scipy.stats.bootstrap (1.17) knows no clusters, and draws samples together only where they have one length (`paired`),
which probe, floor and ceiling of a recovered gap do not.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

DRAWS = 1000
COVERAGE = 0.95


class Estimate(NamedTuple):
    """A value and the limits of its 95 % bootstrap interval, by percentiles; NaN where there is none."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 3) -> str:
        """As people read it: "0.912 [0.884, 0.941]"."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def row_weights(rows: int, clusters: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each row counts in each resample, (draws, rows), float64.

    clusters: (rows) the cluster of each row, any labels, if rows are not independent; by default each is its own.
    The draws are a function of the number of clusters and the seed: statistics of the same rows are resampled together.
    """
    if clusters is None:
        return _draws(rows, draws, seed)
    names, of_row = np.unique(clusters, return_inverse=True)
    return _draws(len(names), draws, seed)[:, of_row]


def estimate(value: float, resampled: np.ndarray) -> Estimate:
    """A value and the middle 95 % of what it is in resamples (draws), NaN left out."""
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(resampled, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(value), float(low), float(high))


def mean_estimate(values: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> Estimate:
    """The mean of values (rows), with rows, or clusters of them, resampled."""
    weights = row_weights(len(values), clusters, seed=seed)
    return estimate(values.mean(), weights @ values / weights.sum(1))


@lru_cache(maxsize=16)
def _draws(units: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is drawn, (draws, units)."""
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    return counts.astype(np.float64)

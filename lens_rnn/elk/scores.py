"""The area under the ROC curve, and its bootstrap."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95


class Interval(NamedTuple):
    """A bootstrap interval of 95 %, by percentiles."""

    low: float
    high: float


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann–Whitney). NaN if a class is absent."""
    return float(_weighted_auroc(np.asarray(labels, dtype=bool), np.asarray(scores), np.ones((1, len(labels))))[0])


def bootstrap(labels: np.ndarray, scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """AUROCs (resamples) of rows drawn with replacement; NaN where a draw lacks a class.

    The draws are a function of the number of rows and the seed: two scores of the same rows are resampled together, so
    their differences and ratios can be taken draw by draw.
    """
    return _weighted_auroc(np.asarray(labels, dtype=bool), np.asarray(scores), _draws(len(labels), resamples, seed))


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of bootstrapped values, NaN left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(low), float(high))


@lru_cache(maxsize=16)
def _draws(rows: int, resamples: int, seed: int) -> np.ndarray:
    """How often each row is drawn, (resamples, rows)."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)


def _weighted_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC (draws) of rows that count `weights` (draws, rows) times."""
    order = np.argsort(scores, kind="stable")
    sorted_scores, positive, weights = scores[order], labels[order], weights[:, order]
    below = np.concatenate(
        [np.zeros((len(weights), 1)), np.cumsum(weights * ~positive, axis=1)], axis=1
    )  # negatives before each place
    first = np.searchsorted(sorted_scores, sorted_scores, "left")
    last = np.searchsorted(sorted_scores, sorted_scores, "right")
    won = (weights * positive * (below[:, first] + below[:, last]) / 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / ((weights * positive).sum(1) * below[:, -1])

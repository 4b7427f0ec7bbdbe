"""Estimates with the limits of their 95 % interval.

Means by the bootstrap of Student's t: what is resampled is how many of its own standard errors a mean is off, so that
the limits follow the skewness of the values and the fewness of the clusters (Efron & Tibshirani 1993, section 12.5;
Hesterberg 2015, section 5.5). A resample is how often each cluster is drawn, so that rows of one cluster (a document, a
question's stem) come and go together, and several means are resampled together. scipy.stats.bootstrap (1.17) has
neither clusters nor Student's t. What these intervals cover is measured by benchmarks/interval_coverage.py.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, stdtrit

DRAWS = 1000
LEAST_DRAWS = 4000
"""Where several means share one probability of missing, whose tails are small."""
COVERAGE = 0.95
FEW_CLUSTERS = 20
"""With fewer, an interval of a skewed mean covers less than it says."""
NO_LIMITS = (-np.inf, np.inf)


class Estimate(NamedTuple):
    """A value and the limits of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 3) -> str:
        """As people read it: "0.912 [0.884, 0.941]"."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean_estimate(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    seed: int = 0,
    possible: tuple[float, float] = NO_LIMITS,
) -> Estimate:
    """The mean of values (rows), with rows, or clusters of them, resampled; without limits from one cluster alone.

    clusters: (rows) the cluster of each row, any labels, if rows are not independent; by default each is its own.
    possible: what values can be; the limits end there. Where, of all values, less than one cluster's worth is missing
    from an end, a sample says little of its own variance: there the limits are Clopper & Pearson's for as many trials
    as there are clusters, which hold whatever the distribution.
    """
    tail = (1 - COVERAGE) / 2
    value, low, high = _means(values[None], clusters, (tail, tail), DRAWS, seed)[:, 0]
    least, most = possible
    if np.isfinite([least, most, low]).all():
        share, trials = (value - least) / (most - least), _effective(len(values), clusters)
        if min(share, 1 - share) * trials < 1:
            low, high = (least + (most - least) * limit for limit in _clopper_pearson(share * trials, trials))
    return Estimate(float(value), float(np.maximum(low, least)), float(np.minimum(high, most)))


def least_mean_estimate(values: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> Estimate:
    """The least of the means of values (means, rows), resampled together.

    Its lower limit is the least of their lower limits, each missed in at most 2.5 %: one of the means is the least, and
    that one's limit is enough (Berger 1982, intersection–union tests). A lower limit above 0 says so of every mean. The
    upper limit is the least of the upper ones, any of which may be too low, so that they share the 2.5 % (Bonferroni).
    """
    tail = (1 - COVERAGE) / 2
    value, low, high = _means(values, clusters, (tail, tail / len(values)), LEAST_DRAWS, seed)
    return Estimate(float(value.min()), float(low.min()), float(high.min()))


def share_estimate(hits: np.ndarray) -> Estimate:
    """The share of independent rows that are hits, (rows) of 0 and 1: Clopper & Pearson's interval, which is never too
    narrow."""
    return Estimate(float(np.mean(hits)), *_clopper_pearson(float(np.sum(hits)), len(hits)))


def row_weights(rows: int, clusters: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each row counts in each resample, (draws, rows), float64.

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


def _clopper_pearson(hits: float, trials: float) -> tuple[float, float]:
    """Limits of a probability, of hits in some trials, a part of a hit among them."""
    tail = (1 - COVERAGE) / 2
    low = betaincinv(hits, trials - hits + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, trials - hits, 1 - tail) if hits < trials else 1.0
    return float(low), float(high)


def _effective(rows: int, clusters: np.ndarray | None) -> float:
    """As many clusters of one size as tell what these of several sizes tell (Kish 1965)."""
    sizes = np.unique(np.arange(rows) if clusters is None else clusters, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _means(
    values: np.ndarray, clusters: np.ndarray | None, tails: tuple[float, float], draws: int, seed: int
) -> np.ndarray:
    """(3, means): the means of values (means, rows), and limits that are missed below and above with probability
    `tails`."""
    names, of_row = np.unique(np.arange(values.shape[1]) if clusters is None else clusters, return_inverse=True)
    units, means = len(names), values.mean(1)
    if units < 2:
        return np.stack([means, np.full_like(means, np.nan), np.full_like(means, np.nan)])
    sizes = np.bincount(of_row).astype(np.float64)  # (units)
    off = np.stack([np.bincount(of_row, row, units) for row in values - means[:, None]])  # (means, units): sums
    error = _moved(off, sizes, np.ones((1, units)))[1][:, 0]  # (means)
    moved, errors = _moved(off, sizes, _draws(units, draws, seed))  # (means, draws)
    limits = [means]
    for side, tail in zip((-1, 1), tails, strict=True):
        student = stdtrit(units - 1, 1 - tail)
        reach = np.full_like(means, student)  # never nearer than that, which speaks alone where resamples say nothing
        for j, telling in enumerate(errors > 1e-6 * error[:, None]):
            if telling.any():
                t = -side * moved[j, telling] / errors[j, telling]
                reach[j] = max(student, np.quantile(t, 1 - tail))
        limits.append(means + side * reach * error)
    return np.stack(limits)


def _moved(off: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the means move in resamples (draws, units), and their standard errors there, (means, draws).

    off: (means, units) each cluster's sum, of values less their mean. The squares of a mean's residuals, summed by
    cluster, are its variance.
    """
    rows, units = weights @ sizes, len(sizes)  # (draws), the clusters
    sums, products, squares = np.split(np.concatenate([off, off * sizes, off**2]) @ weights.T, 3)
    moved = sums / rows
    squares += moved * (moved * (weights @ sizes**2) - 2 * products)
    return moved, np.sqrt(np.maximum(squares, 0) * units / (units - 1)) / rows


@lru_cache(maxsize=16)
def _draws(units: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is drawn, (draws, units)."""
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
    return counts.astype(np.float64)

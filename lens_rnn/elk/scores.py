"""The area under the ROC curve, and intervals of it and of ratios of it, from rows that may come in clusters.

An AUROC's sampling error is a sum of what each row adds to it: how far its share of rows of the other class that are in
the right order is from the AUROC (DeLong et al. 1988). Summed by cluster before they are squared, these give the
variance where rows of one question come together (Obuchowski 1997), and the covariance of AUROCs of the same questions.
The bootstrap's percentiles are not used: with few rows they cover too little, and not at all where a sample's AUROC is
1. What intervals cover is measured by benchmarks/coverage_elk.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lens_rnn.intervals import COVERAGE, Estimate

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, rankdata, t

_FEW = 1 + 1e-9  # rows, rounded
NOTHING = Estimate(np.nan, np.nan, np.nan)


def aurocs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC (readings) of each column of scores (rows, readings): the probability that a positive scores above a
    negative, ties half (Mann–Whitney). NaN if a class is absent."""
    positive = np.asarray(labels, dtype=bool)
    count = positive.sum()
    ranks = rankdata(scores, axis=0)[positive].sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUROC of scores (rows)."""
    return float(aurocs(labels, scores[:, None])[0])


class Area(NamedTuple):
    """An AUROC, and of what its sampling error is made."""

    value: float
    errors: np.ndarray
    """What each cluster adds, (clusters): the variance is the sum of their squares, the covariance of two AUROCs that
    of their products."""
    variances: np.ndarray
    """The parts of positives and negatives in the variance, (2)."""
    units: np.ndarray
    """How many clusters hold positives, and negatives, (2)."""

    @property
    def extreme(self) -> bool:
        """Whether at most one row of the rarer class is in the wrong order, or in the right one: the sample then says
        little of its own variance."""
        return bool(min(self.value, 1 - self.value) * self.units.min() <= _FEW)

    @property
    def unseen(self) -> float:
        """By how much the variance is less than that of a share with two hits and two misses more (Agresti & Coull
        1998), where the area is extreme; else 0."""
        trials = self.units.min() + 4
        share = (self.value * self.units.min() + 2) / trials
        return max(0.0, float(share * (1 - share) / trials - self.errors @ self.errors)) if self.extreme else 0.0


def area(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray, count: int) -> Area:
    """AUROC of scores (rows), whose rows belong to `clusters` (rows), whole numbers below `count`. NaN throughout if a
    class is absent."""
    positive = np.asarray(labels, dtype=bool)
    ranks, errors, variances, units = rankdata(scores), [], [], []
    value = auroc(labels, scores)
    for of_class in (positive, ~positive):
        with np.errstate(invalid="ignore", divide="ignore"):
            below = (ranks[of_class] - rankdata(scores[of_class])) / (~of_class).sum()  # of the other class, a share
            share = below if of_class is positive else 1 - below
            per_cluster = np.bincount(clusters[of_class], (share - value) / of_class.sum(), count)
            holding = len(np.unique(clusters[of_class]))
            errors.append(per_cluster * np.sqrt(holding / max(holding - 1, 1)))
        variances.append((errors[-1] ** 2).sum())
        units.append(holding)
    return Area(value, errors[0] + errors[1], np.array(variances), np.array(units))


def auroc_estimate(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray | None = None) -> Estimate:
    """AUROC, and its interval: Student's t on the log-odds, with Satterthwaite's degrees of freedom.

    Where the area is extreme the interval is at least that of Clopper and Pearson for as many trials as there are
    clusters with rows of the rarer class, which holds whatever the distributions.

    clusters: (rows) the cluster of each row, any labels; by default each is its own.
    """
    names, of_row = np.unique(np.arange(len(labels)) if clusters is None else clusters, return_inverse=True)
    measured = area(labels, scores, of_row, len(names))
    value, error, trials = measured.value, np.sqrt((measured.errors**2).sum()), int(measured.units.min())
    if not np.isfinite(value):
        return NOTHING
    low, high = _clopper_pearson(value, trials)
    if error > 0 and 0 < value < 1 and trials > 1:
        reach = quantile([measured], [1.0]) * error / (value * (1 - value))
        inner = expit(logit(value) + np.array([-reach, reach]))
        low, high = (min(low, inner[0]), max(high, inner[1])) if measured.extreme else inner
    return Estimate(value, float(low), float(high))


def ratio_estimate(probe: Area, floor: Area, ceiling: Area) -> Estimate:
    """(probe − floor) ÷ (ceiling − floor) of areas over the same clusters, by Fieller's interval: all ratios r for
    which probe − (1 − r) floor − r ceiling is 0 within its error. NaN where the ceiling is not above the floor beyond
    its error: no gap, whose recovery would have no bounds."""
    over, under = probe.value - floor.value, ceiling.value - floor.value
    if not under > 0:
        return NOTHING
    ratio = over / under
    a, b = probe.errors - floor.errors, ceiling.errors - floor.errors
    squared = quantile([probe, floor, ceiling], [1.0, 1 - ratio, ratio]) ** 2
    in_over, in_under, in_both = a @ a + probe.unseen, b @ b + ceiling.unseen, a @ b  # variances, covariance
    in_over, in_under, in_both = (part + floor.unseen for part in (in_over, in_under, in_both))
    curvature = under**2 - squared * in_under
    if not curvature > 0:
        return NOTHING
    middle = over * under - squared * in_both
    spread = np.sqrt(max(0.0, middle**2 - curvature * (over**2 - squared * in_over)))
    return Estimate(ratio, float((middle - spread) / curvature), float((middle + spread) / curvature))


def quantile(areas: Sequence[Area], weights: Sequence[float]) -> float:
    """How many standard errors a weighted sum of areas may be off: Student's t with the degrees of freedom of
    Satterthwaite, whose parts are the classes of each."""
    parts = np.concatenate([part.variances * weight**2 for part, weight in zip(areas, weights, strict=True)])
    freedom = np.maximum(np.concatenate([part.units for part in areas]) - 1, 1)
    total = parts.sum()
    degrees = total**2 / (parts**2 / freedom).sum() if total > 0 else freedom.min()
    return float(t.ppf((1 + COVERAGE) / 2, degrees))


def _clopper_pearson(share: float, trials: int) -> tuple[float, float]:
    """Limits of a probability of which `share` of the trials were hits, a share of a hit among them."""
    hits, tail = share * trials, (1 - COVERAGE) / 2
    low = beta.ppf(tail, hits, trials - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)

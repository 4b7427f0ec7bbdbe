"""Intervals: Student's t bootstrap against a plain one, what they cover in simulations, and against scipy's where that
does the same."""

import math
from collections.abc import Callable

from lens_rnn.intervals import (
    Estimate,
    estimate,
    least_mean_estimate,
    mean_estimate,
    row_weights,
    share_estimate,
)

import numpy as np
import pytest
from scipy import stats

VALUES = np.random.default_rng(0).normal(1.0, 2.0, size=60)
SKEWED = np.random.default_rng(0).exponential(size=40) ** 2


def plain_limits(values: np.ndarray, clusters: np.ndarray, draws: int) -> tuple[float, float]:
    """Student's t bootstrap, a resample at a time, of the rows themselves."""
    random = np.random.default_rng(1)
    names = np.unique(clusters)

    def mean_and_error(parts: list[np.ndarray]) -> tuple[float, float]:
        rows = np.concatenate(parts)
        squares = [((part - rows.mean()).sum()) ** 2 for part in parts]
        return rows.mean(), math.sqrt(sum(squares) * len(parts) / (len(parts) - 1)) / len(rows)

    parts = [values[clusters == name] for name in names]
    mean, error = mean_and_error(parts)
    t = []
    for _ in range(draws):
        drawn, spread = mean_and_error([parts[i] for i in random.integers(len(parts), size=len(parts))])
        t.append((drawn - mean) / spread)
    low, high = np.quantile(t, [0.025, 0.975])
    student = stats.t.ppf(0.975, len(parts) - 1)
    return mean - max(high, student) * error, mean + max(-low, student) * error


@pytest.mark.parametrize("clusters", [np.arange(40), np.arange(40) // 2, np.minimum(np.arange(40), 25)])
def test_the_mean_has_the_interval_of_a_plain_bootstrap_of_t(clusters: np.ndarray) -> None:
    got = mean_estimate(SKEWED, clusters)
    low, high = plain_limits(SKEWED, clusters, 6000)
    assert got.value == pytest.approx(SKEWED.mean())
    assert got.low == pytest.approx(low, abs=0.1 * (got.value - low))
    assert got.high == pytest.approx(high, abs=0.15 * (high - got.value))
    assert got.high - got.value > 1.5 * (got.value - got.low)  # the limits follow the skewness


def test_without_skewness_it_is_students_t() -> None:
    got = mean_estimate(VALUES)
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval()
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.15)
    assert got.low <= expected.low + 1e-9
    assert got.high >= expected.high - 1e-9
    assert mean_estimate(np.full(5, 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_few_clusters_say_little_and_one_says_nothing() -> None:
    two = mean_estimate(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))
    assert two.high - two.value == pytest.approx(stats.t.ppf(0.975, 1) * 1.0)  # Student's t of the clusters' means
    alone = mean_estimate(VALUES, np.zeros(60))
    assert alone.value == pytest.approx(VALUES.mean())
    assert all(map(math.isnan, alone[1:]))


def test_rows_of_a_cluster_come_and_go_together() -> None:
    """As the clusters' means do."""
    clusters = np.repeat(np.arange(20), 3)
    weights = row_weights(60, clusters)
    assert (weights[:, ::3] == weights[:, 1::3]).all()
    assert (weights[:, ::3] == row_weights(20)).all()
    got = mean_estimate(VALUES, clusters)
    of_cluster = mean_estimate(VALUES.reshape(20, 3).mean(1))
    assert got == pytest.approx(of_cluster)
    doubled = mean_estimate(np.tile(VALUES, 2), np.tile(np.arange(60), 2))
    assert doubled == pytest.approx(mean_estimate(VALUES))  # a copy of the rows tells nothing new


def test_limits_end_where_values_do() -> None:
    values = np.append(np.full(39, 0.999), 0.1)
    free, bounded = mean_estimate(values), mean_estimate(values, possible=(0.0, 1.0))
    assert bounded.value == free.value
    hits = 40 * free.value
    expected = stats.beta.ppf([0.025, 0.975], [hits, hits + 1], [41 - hits, 40 - hits])
    assert bounded[1:] == pytest.approx(expected)  # less than one of 40 is missing from 1
    ends = mean_estimate(np.full(10, 1.0), possible=(-1.0, 1.0))
    assert ends.high == 1
    assert ends.low == pytest.approx(2 * 0.025 ** (1 / 10) - 1)  # that all of ten are hits
    middle = np.linspace(0.2, 0.9, 30)
    assert mean_estimate(middle, possible=(0.0, 1.0)) == mean_estimate(middle)
    halves = mean_estimate(np.tile(np.full(10, 1.0), 2), np.tile(np.arange(10), 2), possible=(-1.0, 1.0))
    assert halves == pytest.approx(ends)  # trials are clusters
    assert math.isnan(mean_estimate(VALUES, np.zeros(60), possible=(-9.0, 9.0)).low)


def test_the_least_mean_has_the_least_of_the_limits() -> None:
    both = np.stack([VALUES, VALUES + 1, VALUES[::-1] + 9])
    got = least_mean_estimate(both)
    assert got.value == pytest.approx(VALUES.mean())
    alone = least_mean_estimate(VALUES[None])
    assert got.low == pytest.approx(alone.low)
    assert got.high > alone.high  # any of three may be the least
    assert alone[1:] == pytest.approx(mean_estimate(VALUES)[1:], abs=0.1)


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (3, 17), (49, 50)])
def test_a_share_has_scipys_exact_interval(hits: int, rows: int) -> None:
    got = share_estimate(np.arange(rows) < hits)
    expected = stats.binomtest(hits, rows).proportion_ci(0.95, "exact")
    assert got == pytest.approx((hits / rows, expected.low, expected.high))


def test_draws_are_a_function_of_rows_and_seed_and_each_row_is_drawn_once_on_average() -> None:
    weights = row_weights(50, draws=400)
    assert (weights.sum(1) == 50).all()
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.25)
    assert (row_weights(9) == row_weights(9)).all()
    assert (row_weights(9) != row_weights(9, seed=1)).any()


def test_percentiles_leave_nan_out() -> None:
    assert estimate(500, np.append(np.arange(1001.0), np.nan)) == pytest.approx((500, 25, 975))
    assert all(map(math.isnan, estimate(math.nan, np.array([np.nan]))))


def test_as_people_read_it() -> None:
    assert Estimate(0.9123, 0.8841, 0.9409).rounded() == "0.912 [0.884, 0.941]"
    assert Estimate(0.9123, 0.8841, 0.9409).rounded(1) == "0.9 [0.9, 0.9]"


SAMPLES = 600


def sample(random: np.random.Generator, clusters: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Normal rows, half of whose variance is their cluster's; clusters have one to three of them."""
    of_row = np.repeat(np.arange(clusters), random.integers(1, 4, clusters))
    return np.sqrt(0.5) * (random.normal(size=clusters)[of_row] + random.normal(size=len(of_row))), of_row


def share_that_holds(
    truth: float, interval: Callable[[np.random.Generator], Estimate], samples: int = SAMPLES
) -> float:
    random = np.random.default_rng(0)
    limits = [interval(random) for _ in range(samples)]
    return float(np.mean([low <= truth <= high for _, low, high in limits]))


def at_least(share: float, samples: int = SAMPLES) -> float:
    """What a true coverage of `share` gives in all but 1 of 1000 simulations."""
    return float(stats.binom.ppf(0.001, samples, share)) / samples


@pytest.mark.parametrize(
    ("change", "possible"),
    [
        (lambda z: z, (-np.inf, np.inf)),
        (np.exp, (-np.inf, np.inf)),
        (lambda z: 1 / (1 + np.exp(-2 * z - 0.5)), (0.0, 1.0)),
        (lambda z: 1 / (1 + np.exp(-2 * z - 6)), (0.0, 1.0)),  # nearly all above 0.99
        (lambda z: np.where(z > -1.3, 0.998, -0.5), (-1.0, 1.0)),  # one in ten another
    ],
)
def test_means_of_clusters_are_covered(
    change: Callable[[np.ndarray], np.ndarray], possible: tuple[float, float]
) -> None:
    truth = change(np.random.default_rng(1).normal(size=10**6)).mean()

    def interval(random: np.random.Generator) -> Estimate:
        z, clusters = sample(random)
        return mean_estimate(change(z), clusters, possible=possible)

    assert share_that_holds(truth, interval) >= at_least(0.93)


def test_rows_of_clusters_by_themselves_are_not_covered() -> None:
    """Which is why clusters are resampled: the same test fails."""
    assert share_that_holds(0.0, lambda random: mean_estimate(sample(random)[0])) < at_least(0.93)


@pytest.mark.parametrize("controls", [(0.0,) * 5, (0.5,) * 5, (0.3, 0.0, 0.0, 0.0, 0.0)])
def test_what_lies_beyond_controls_is_covered_however_alike_they_are(controls: tuple[float, ...]) -> None:
    def interval(random: np.random.Generator) -> Estimate:
        (shared, clusters), noise = sample(random), random.normal(size=(6, 100))
        values = np.array([0.5, *controls])[:, None] + 0.3 * (shared + noise[:, : len(shared)])
        return least_mean_estimate(np.concatenate([values[0] - values[1:], values[0] + values[1:]]), clusters)

    assert share_that_holds(0.5 - max(controls), interval, 150) >= at_least(0.93, 150)

"""The bootstrap: against scipy's where that does the same, and what scipy's does not have."""

import math

from lens_rnn.intervals import Estimate, estimate, mean_estimate, row_weights

import numpy as np
import pytest
from scipy import stats

VALUES = np.random.default_rng(0).normal(1.0, 2.0, size=60)


def test_the_mean_has_scipys_interval() -> None:
    got = mean_estimate(VALUES)
    expected = stats.bootstrap(
        (VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert got.value == pytest.approx(VALUES.mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.06)
    assert mean_estimate(np.full(5, 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_each_row_is_drawn_once_on_average_and_as_many_in_all() -> None:
    weights = row_weights(50, draws=400)
    assert (weights.sum(1) == 50).all()
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.25)


def test_draws_are_a_function_of_rows_and_seed() -> None:
    assert (row_weights(9) == row_weights(9)).all()
    assert (row_weights(9) != row_weights(9, seed=1)).any()


def test_rows_of_a_cluster_come_and_go_together() -> None:
    """As the clusters' sums over their counts do."""
    clusters = np.repeat(np.arange(20), 3)
    weights = row_weights(60, clusters)
    assert (weights[:, ::3] == weights[:, 1::3]).all()
    assert (weights[:, ::3] == row_weights(20)).all()
    got = mean_estimate(VALUES, clusters)
    of_cluster = mean_estimate(VALUES.reshape(20, 3).mean(1))
    assert got == pytest.approx(of_cluster)
    doubled = mean_estimate(np.tile(VALUES, 2), np.tile(np.arange(60), 2))
    assert doubled == pytest.approx(mean_estimate(VALUES))  # a copy of the rows tells nothing new


def test_an_interval_covers_95_per_cent_and_leaves_nan_out() -> None:
    assert estimate(500, np.append(np.arange(1001.0), np.nan)) == pytest.approx((500, 25, 975))
    assert all(map(math.isnan, estimate(math.nan, np.array([np.nan]))))


def test_as_people_read_it() -> None:
    assert Estimate(0.9123, 0.8841, 0.9409).rounded() == "0.912 [0.884, 0.941]"
    assert Estimate(0.9123, 0.8841, 0.9409).rounded(1) == "0.9 [0.9, 0.9]"

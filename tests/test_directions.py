"""Directions against scikit-learn and plain formulas, streamed and in memory."""

from lens_rnn.directions import (
    PairSums,
    discriminant,
    divisor,
    linear_discriminant,
    logistic,
    mean_difference,
    shrunk,
    standardised,
)

import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

PAIRS, SIZE = 40, 6


def states(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative states (pairs, size), of unequal scales and correlated."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((SIZE, SIZE)) * np.geomspace(0.1, 10, SIZE)
    return random.standard_normal((PAIRS, SIZE)) @ mixing + 3, random.standard_normal((PAIRS, SIZE)) @ mixing


def rows() -> tuple[np.ndarray, np.ndarray]:
    """The same as rows with labels, less than half of them positive."""
    positive, negative = states()
    return np.concatenate([positive[:25], negative]), np.arange(25 + PAIRS) < 25


def summed(scatter: str | None) -> PairSums:
    sums, signs = PairSums(SIZE, 2, scatter), torch.ones(2, PAIRS)
    signs[1, : PAIRS // 2] = -1
    positive, negative = (torch.from_numpy(side) for side in states())
    for part in torch.arange(PAIRS).split(7):
        sums.add(positive[part], negative[part], signs[:, part])
    return sums


def test_streamed_sums_are_means_and_covariances() -> None:
    positive, negative = states()
    whole, diagonal = summed("whole"), summed("diagonal")
    difference = positive - negative
    np.testing.assert_allclose(whole.difference(0), difference.mean(0), rtol=1e-9)
    exchanged = (difference[PAIRS // 2 :].sum(0) - difference[: PAIRS // 2].sum(0)) / PAIRS
    np.testing.assert_allclose(whole.difference(1), exchanged, rtol=1e-9)
    expected = (np.cov(positive.T, bias=True) + np.cov(negative.T, bias=True)) / 2
    np.testing.assert_allclose(whole.within(0), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(diagonal.within(0), expected.diagonal(), rtol=1e-7)
    with pytest.raises(ValueError, match="no scatter"):
        summed(None).within(0)


def test_shrinkage_is_scikit_learns() -> None:
    within = summed("whole").within(0)
    np.testing.assert_allclose(shrunk(within, 0.3), shrunk_covariance(within, 0.3))
    diagonal = shrunk_covariance(np.diag(within.diagonal()), 0.3).diagonal()
    np.testing.assert_allclose(shrunk(within.diagonal(), 0.3), diagonal)


def test_a_discriminant_solves_and_refuses_what_is_singular() -> None:
    within = summed("whole").within(0)
    np.testing.assert_allclose(within @ discriminant(np.arange(6.0), within), np.arange(6.0), atol=1e-9)
    np.testing.assert_allclose(discriminant(np.arange(6.0), np.full(6, 2.0)), np.arange(6.0) / 2)
    for singular in (np.zeros(6), np.ones((6, 6)) - np.eye(6)):
        with pytest.raises(np.linalg.LinAlgError):
            discriminant(np.arange(6.0), singular)


def test_the_mean_difference_points_to_the_positive_class() -> None:
    x, y = rows()
    np.testing.assert_allclose(mean_difference(x, y), x[:25].mean(0) - x[25:].mean(0))


def test_logistic_regression_is_scikit_learns_on_standard_columns() -> None:
    x, y = rows()
    standard = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(standard, y).decision_function(standard)
    got = logistic(x, y, 0.5)
    np.testing.assert_allclose(x @ got.weight + got.bias, expected, atol=1e-9)


def test_the_discriminant_of_rows_is_scikit_learns_on_standard_columns() -> None:
    x, y = rows()
    standard = standardised(x).values
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(standard, y)
    got = linear_discriminant(x, y)
    np.testing.assert_allclose(x @ got.weight + got.bias, model.decision_function(standard), atol=1e-9)


def test_columns_that_do_not_vary_are_left_out_of_the_discriminant() -> None:
    x, y = rows()
    got, wider = linear_discriminant(x, y), linear_discriminant(np.insert(x, 2, 7.0, axis=1), y)
    assert wider.weight[2] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(
        np.insert(x, 2, 7.0, axis=1) @ wider.weight + wider.bias, x @ got.weight + got.bias, rtol=0.2, atol=0.2
    )


def test_columns_that_hardly_vary_are_left_alone() -> None:
    assert divisor(np.array([1e-7, 0.5, 2.0, 0.0])).tolist() == [1.0, 0.5, 2.0, 1.0]
    assert divisor(np.zeros(2)).tolist() == [1.0, 1.0]

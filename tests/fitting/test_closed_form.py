"""The streamed ridge regression against least squares on all rows at once, and against scikit-learn."""

from lens_rnn.fitting.closed_form import RIDGES, Moments, Origins
from tests.reference import objective as naive

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

D = 6


def _data(tokens: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(tokens, D, generator=generator) @ torch.randn(D, D, generator=generator) + 30
    )  # mean far above spread, as in residual streams
    f = x @ torch.randn(D, D, generator=generator) + torch.randn(tokens, D, generator=generator) - 5
    return x, f


CPU = torch.device("cpu")


def _moments(
    x: torch.Tensor, f: torch.Tensor, batches: int = 8, products: torch.dtype | None = None, origin: float | None = None
) -> Moments:
    origins = None if origin is None else Origins(torch.full((1, D), origin), torch.full((D,), origin))
    moments = Moments((0,), D, CPU, origins, products)
    for number, (a, b) in enumerate(zip(x.chunk(batches), f.chunk(batches), strict=True)):
        moments.add((a,), b, held_out=number % 4 == 1)
    return moments


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0])
def test_ridge_equals_stacked_least_squares_and_scikit_learn(strength: float) -> None:
    x, f = _data()
    moments = _moments(x, f)
    got = moments.ridge(0, slice(None), strength)
    weight, bias = naive.ridge(x.double(), (f.double() - x.double()), strength)
    torch.testing.assert_close(got[:, :-1], weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got[:, -1], bias, rtol=1e-6, atol=1e-6)
    penalty = strength * float((x - x.mean(0)).double().square().mean()) * len(x)
    reference = Ridge(alpha=penalty).fit(x.double().numpy(), (f.double() - x.double()).numpy())
    np.testing.assert_allclose(got[:, :-1].numpy(), reference.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got[:, -1].numpy(), reference.intercept_, rtol=1e-5, atol=1e-5)


def test_streamed_equals_one_batch() -> None:
    x, f = _data()
    for a, b in zip(_moments(x, f, 8, origin=3.0).tensors(), _moments(x, f, 4, origin=3.0).tensors(), strict=True):
        torch.testing.assert_close(a.sum(0), b.sum(0), rtol=1e-12, atol=1e-9)


def test_float32_products_about_an_origin_are_enough() -> None:
    """Where the mean is a hundred times the spread: about an origin near it they find the same λ and translator as
    float64, about zero they do not."""
    x, f = _data()
    x, f = x - 30 + 300, f + 500
    exact, near, far = _moments(x, f), _moments(x, f, products=torch.float32), _moments(x, f, 8, torch.float32, 0.0)
    expected = exact.solve(0)
    got = near.solve(0)
    assert got.ridge == expected.ridge
    torch.testing.assert_close(got.weight, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(near.inputs(0).mean, exact.inputs(0).mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(near.inputs(0).covariance, exact.inputs(0).covariance, rtol=1e-4, atol=1e-4)
    assert near.inputs(0).spread == pytest.approx(exact.inputs(0).spread, rel=1e-5)
    assert not torch.allclose(far.inputs(0).covariance, exact.inputs(0).covariance, rtol=1e-3, atol=1e-3)


def test_an_origin_changes_no_translator() -> None:
    x, f = _data()
    for a, b in zip(_moments(x, f, origin=30.0).solve(0)[:2], _moments(x, f, origin=-7.0).solve(0)[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_ridge_is_the_best_on_held_out_rows() -> None:
    """λ is chosen by the error on the held-out half, which is computed from moments alone."""
    x, f = _data(40)
    moments = _moments(x, f, 4)
    held, fitted = slice(10, 20), [*range(10), *range(20, 40)]
    errors = []
    for strength in RIDGES:
        weight, bias = naive.ridge(x[fitted].double(), (f.double() - x.double())[fitted], strength)
        errors.append(
            float(((f.double() - x.double())[held] - x[held].double() @ weight.T - bias).square().sum(-1).mean())
        )
    solution = moments.solve(0)
    assert solution.ridge == RIDGES[int(np.argmin(errors))]
    spread = f[held].double().var(0, unbiased=False).sum()
    assert solution.explained == pytest.approx(1 - min(errors) / float(spread), rel=1e-6)


def test_a_constant_hidden_state_gets_a_bias_only() -> None:
    """No variance at all: the covariance is singular, and the best translator is the mean."""
    f = torch.randn(64, D)
    solution = _moments(torch.full((64, D), 2.0), f).solve(0)
    torch.testing.assert_close(
        solution.weight @ torch.full((D,), 2.0).double() + solution.bias + 2, f.double().mean(0), rtol=1e-5, atol=1e-5
    )
    assert solution.weight.abs().max() < 1e-3

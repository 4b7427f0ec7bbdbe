"""Low-rank lenses made of tuned ones: whole at full rank, the best of their rank below it."""

from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.fitting.low_rank import DAMPING, _truncated, compress
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter
from tests.data.blocks import make_blocks
from tests.refusals import refusal

import numpy as np
import pytest
import torch


def test_at_full_rank_it_is_the_tuned_lens_and_below_it_comes_near(tiny_model: ModelAdapter) -> None:
    blocks, d = make_blocks(200), tiny_model.d_model
    tuned = fit(tiny_model, blocks, FitConfig(batch_size=16, products="float32")).lens
    lenses = {f"rank {rank}": compress(tiny_model, tuned, rank, make_blocks(40)) for rank in (d, d // 2, d // 8)}
    h = torch.randn(5, d)
    for layer in tiny_model.fitted_layers:
        torch.testing.assert_close(
            lenses[f"rank {d}"].transform_hidden(h, layer), tuned.transform_hidden(h, layer), rtol=1e-3, atol=1e-3
        )
    lenses |= {"logit": LogitLens.from_adapter(tiny_model)}
    figures = evaluate(tiny_model, lenses, make_blocks(40, seed=1)).lenses
    kl = [np.mean([of[i].kl for i in tiny_model.fitted_layers]) for of in figures.values()]
    assert kl == sorted(kl), "the lower the rank the worse, and the logit lens last"


def test_no_random_translator_of_its_rank_costs_less() -> None:
    """In tr F (W − V) C (W − V)ᵀ, of which the truncation is the least; and at the mean it says what W says."""
    random, d, rank = np.random.default_rng(0), 6, 2
    covariance, fisher = (torch.from_numpy(np.cov(random.normal(size=(d, 40)))) for _ in range(2))
    weight, bias, mean = (torch.from_numpy(random.normal(size=size)) for size in ((d, d), d, d))
    damped = [m + DAMPING * m.diagonal().mean() * torch.eye(d) for m in (fisher, covariance)]

    def cost(v: torch.Tensor) -> float:
        return float((damped[0] @ (weight - v) @ damped[1] @ (weight - v).T).trace())

    best = _truncated(weight, bias, mean, covariance, fisher, rank)
    least = cost(best.out @ best.into)
    singular = torch.linalg.svdvals(torch.linalg.cholesky(damped[0]).T @ weight @ torch.linalg.cholesky(damped[1]))
    assert least == pytest.approx(float(singular[rank:].square().sum()), rel=1e-6)
    for _ in range(20):
        other = best.out + 0.05 * torch.from_numpy(random.normal(size=(d, rank)))
        assert cost(other @ best.into) > least
    torch.testing.assert_close(best.out @ (best.into @ mean) + best.bias, weight @ mean + bias)


def test_a_rank_that_cannot_be_is_refused(tiny_mamba: ModelAdapter) -> None:
    lens = fit(tiny_mamba, make_blocks(4), FitConfig()).lens
    for rank in (0, tiny_mamba.d_model + 1):
        assert f"rank is {rank}" in refusal(lambda r=rank: compress(tiny_mamba, lens, r, make_blocks(2)), ConfigError)

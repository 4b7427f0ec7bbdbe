"""The weights of the closed-form start: the trace of the Fisher information of the model's own prediction."""

from dataclasses import replace

from lens_rnn.fitting import FitConfig, FusedObjective, fit, make_plan
from lens_rnn.fitting.start import FLOOR, closed_form_start, measure_moments, token_weights
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import LogitMap, ModelAdapter
from lens_rnn.processes import Processes
from tests.data.blocks import make_blocks
from tests.reference import objective as naive

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.5), LogitMap(scale=2.0, cap=5.0)], ids=str)
def test_they_are_the_trace_of_the_fisher_information(
    tiny_model: ModelAdapter, logit_map: LogitMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tr JᵀFJ over the mean square of f, with the Jacobian J of the logits at u by autograd and F = diag p − p pᵀ."""
    monkeypatch.setattr(tiny_model, "logit_map", logit_map)
    forward = tiny_model.forward(make_blocks(2).batch(slice(0, 2)))
    unembedding = Unembedding(tiny_model)
    objective = FusedObjective(unembedding, "kl", torch.float32, chunk_tokens=7)
    got = token_weights(forward, objective)
    final, f = forward.final.flatten(0, 1), forward.norm_input.flatten(0, 1)
    for token in (0, 9, 31):
        jacobian = torch.autograd.functional.jacobian(lambda u: tiny_model.logits(u), final[token]).double()
        p = tiny_model.logits(final[token]).double().softmax(-1)
        fisher = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        expected = fisher.trace() / f[token].double().square().mean()
        assert float(got[token]) == pytest.approx(float(expected), rel=1e-3)


def test_the_start_is_weighted_least_squares(tiny_mamba: ModelAdapter) -> None:
    """On the rows of the start, with a tenth of the mean weight of the first of them on top of each; and K-FAC's
    input factor knows no weights."""
    blocks, settings = make_blocks(60), FitConfig(products="float32")
    plan = make_plan(tiny_mamba, blocks, settings)
    lens = TunedLens.from_adapter(tiny_mamba).requires_grad_(False)
    objective = FusedObjective(lens.unembed, "kl", torch.float32)
    ((numbers, moments),) = measure_moments(tiny_mamba, blocks, objective, plan, Processes())
    start = closed_form_start(lens, moments, numbers, Processes())
    rows = plan.sampling.order(0)[: plan.start_rows]
    assert not set(rows.tolist()) & set(plan.sampling.kept_apart.tolist())
    forward = tiny_mamba.forward(blocks.batch(rows))
    weights = token_weights(forward, objective).double()
    weights += FLOOR * weights[: 8 * blocks.seq_len].view(8, -1).mean(1).mean()
    x = forward.hidden_states[0].flatten(0, 1).double()
    y = forward.norm_input.flatten(0, 1).double() - x
    weight, bias = naive.ridge(x, y, start[0].ridge, weights)
    torch.testing.assert_close(lens[0].weight.double(), weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(lens[0].bias.double(), bias, rtol=1e-3, atol=1e-5)
    mean, covariance, spread = moments.inputs(0)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(covariance, np.cov(x.numpy().T, bias=True), rtol=1e-5, atol=1e-8)
    f = forward.norm_input.flatten(0, 1).double()
    assert spread == pytest.approx(float(f.var(0, unbiased=False).sum()), rel=1e-6)


def test_layers_in_rounds_are_the_same(tiny_model: ModelAdapter) -> None:
    """However few layers' moments fit in memory at a time."""
    plan = make_plan(tiny_model, make_blocks(60), FitConfig(products="float32", passes=1))
    assert plan.moment_layers == len(tiny_model.fitted_layers) > 1
    lenses = [fit(tiny_model, make_blocks(60), replace(plan, moment_layers=n)) for n in (plan.moment_layers, 1)]
    assert lenses[0].start == lenses[1].start
    for layer in tiny_model.fitted_layers:
        assert torch.equal(lenses[0].lens[layer].weight, lenses[1].lens[layer].weight)

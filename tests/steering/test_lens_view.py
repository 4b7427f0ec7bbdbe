"""Steering through the lens, against two passes and finite differences."""

from collections.abc import Callable

from lens_rnn.lens import TunedLens
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.steering import Edit, Question, latent_effect, mean_hidden, read_vector, steer, top_tokens
from tests.steering.test_apply import vectors_for

import numpy as np
import pytest
import torch
from torch import Tensor


def random_lens(adapter: ModelAdapter) -> TunedLens:
    lens = TunedLens.from_adapter(adapter)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lens.layer_translators.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return lens


def test_the_latent_effect_is_that_of_two_passes(tiny_mamba: ModelAdapter, questions: list[Question]) -> None:
    vectors, lens = vectors_for(tiny_mamba), random_lens(tiny_mamba)
    effect = latent_effect(tiny_mamba, lens, questions, Edit(vectors, "residual", 1), (-1.0, 2.0))
    assert effect.log_odds.shape == effect.kl.shape == (3, 2, 3)
    assert effect.layers == (0, 1)
    np.testing.assert_allclose(effect.log_odds[0], 0, atol=1e-5)  # before the layer steered
    np.testing.assert_allclose(effect.kl[0], 0, atol=1e-6)
    question = questions[2]
    ids = torch.tensor([question.ids])
    before = tiny_mamba.forward(ids)
    with steer(tiny_mamba, vectors, 2.0, 1, -1):
        after = tiny_mamba.forward(ids)
    readings: list[Callable[[Forward], Tensor]] = [
        lambda forward: lens(forward.hidden_states[0][0, -1], 0),
        lambda forward: lens(forward.hidden_states[1][0, -1], 1),
        lambda forward: tiny_mamba.logits(forward.final[0, -1]),
    ]
    for row, read in enumerate(readings):
        p, q = (torch.log_softmax(read(f).double(), -1) for f in (before, after))
        odds = (q[question.matching] - q[question.other]) - (p[question.matching] - p[question.other])
        assert effect.log_odds[row, 1, 2] == pytest.approx(odds.item(), abs=1e-4)
        assert effect.kl[row, 1, 2] == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-5)
    assert effect.kl[1:].min() > 1e-4
    state = latent_effect(tiny_mamba, lens, questions, Edit(vectors, "state", 1), (2.0,))
    assert np.abs(state.log_odds[0]).max() < 1e-5 < np.abs(state.log_odds[1]).min()


def test_a_vector_is_read_as_the_derivative_of_the_lens(tiny_model: ModelAdapter, questions: list[Question]) -> None:
    lens, layer = random_lens(tiny_model), 1
    vector, mean = vectors_for(tiny_model).residual(layer), mean_hidden(tiny_model, questions, layer, batch_size=2)
    expected = torch.stack(
        [tiny_model.forward(torch.tensor([q.ids])).hidden_states[layer][0, -1] for q in questions]
    ).mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    got = read_vector(lens, vector, layer, mean)
    norm, head, translator, step = lens.unembed.final_norm, lens.unembed.unembedding.weight.double(), lens[layer], 1e-5

    def logits(h: Tensor) -> Tensor:
        """The lens in float64, by the formulas of the two norms."""
        z = h + translator.weight.double() @ h + translator.bias.double()
        if not hasattr(norm, "bias"):
            return lens.unembed.unembedding.weight.double() @ (
                norm.weight.double() * z / (z.square().mean() + norm.variance_epsilon).sqrt()
            )
        z = (z - z.mean()) / (z.var(correction=0) + norm.eps).sqrt()
        return head @ (norm.weight.double() * z + norm.bias.double())

    ends = [logits(mean.double() + s * vector.double()) for s in (step, -step)]
    torch.testing.assert_close(got.double(), (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4)
    up, down = top_tokens(got, 3)
    assert got[up[0]] == got.max()
    assert got[down[0]] == got.min()
    assert len(up) == len(down) == 3

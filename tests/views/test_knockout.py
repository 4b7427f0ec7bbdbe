"""Knocking out: what is forgotten is what was written, block by block, and shares are of naive runs."""

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.models import ModelAdapter, RecurrentAdapter
from lens_rnn.models.families.recurrent import Passage
from lens_rnn.views.knockout import knock_out
from tests.refusals import refusal
from tests.views.test_patching import TOKENS, pair

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def small_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_rnn.views.patching.LEAST_DIFFERENCE", 1e-4)


def test_what_is_forgotten_leaves_what_was_before_decayed(every_model: ModelAdapter) -> None:
    """Of a block whose memory was twice as large before the span, twice as much is left; of an empty one, nothing."""
    if not isinstance(every_model, RecurrentAdapter):
        return
    ids = torch.randint(96, (1, 8), generator=torch.Generator().manual_seed(0))
    before = every_model.advance(ids[:, :5])[1].blocks
    inputs = [x[:, 5:] for x in every_model.block_inputs(ids)]
    linear = [name for name in every_model.memory_names if name != "max"]

    def passage_at(block: int) -> Passage:
        """As it is when that block's turn has come."""
        passage = Passage(seen=5)
        if block:
            every_model.run_block(0, inputs[0], before[0], passage)
        return passage

    def after(block: int, times: float) -> dict[str, torch.Tensor]:
        own = before[block] | {name: times * before[block][name] for name in linear if name in before[block]}
        _, state = every_model.run_block(block, inputs[block], own, passage_at(block))
        return every_model.forget(block, inputs[block], own, state, passage_at(block))

    for block in range(len(before)):
        if not all(name in before[block] for name in every_model.memory_names):
            continue  # a block of attention
        none, once, twice = (after(block, times) for times in (0.0, 1.0, 2.0))
        for name in linear:
            torch.testing.assert_close(none[name], torch.zeros_like(none[name]), rtol=0, atol=1e-5)
            torch.testing.assert_close(twice[name], 2 * once[name], rtol=1e-3, atol=1e-5)
            assert once[name].abs().max() > 1e-6


def test_of_mamba_it_is_the_decay_alone(tiny_mamba: ModelAdapter) -> None:
    """exp(Σ Δ A) S, with Δ and A by the mixer's own inputs."""
    ids = torch.randint(96, (1, 6), generator=torch.Generator().manual_seed(1))
    before, after = tiny_mamba.advance(ids[:, :4])[1], tiny_mamba.advance(ids)[1]
    for block in range(tiny_mamba.n_layers):
        x = tiny_mamba.block_inputs(ids)[block][:, 4:]
        mixer, normed = tiny_mamba._normed(block, x)
        given = tiny_mamba._inputs(mixer, normed, before.blocks[block]["conv"])
        steps = given[2].sum(-1)  # (batch, channels): Σ Δ over the two tokens
        expected = torch.exp(steps[..., None] * given[3]) * before.blocks[block]["ssm"]
        got = tiny_mamba.forget(block, x, before.blocks[block], after.blocks[block], Passage(seen=4))
        torch.testing.assert_close(got["ssm"], expected, rtol=1e-3, atol=1e-5)
        assert torch.equal(got["conv"], after.blocks[block]["conv"])


def test_a_share_is_what_a_naive_run_loses(tiny_mamba: ModelAdapter) -> None:
    of = pair(tiny_mamba)
    result = knock_out(tiny_mamba, [of])
    clean, corrupted = of.clean[None], of.corrupted[None]

    def difference(final: torch.Tensor) -> float:
        logits = tiny_mamba.logits(final[0, -1])
        return float(logits[of.answer] - logits[of.foil])

    ends = [difference(tiny_mamba.forward(ids).final) for ids in (clean, corrupted)]
    for block, token in ((0, 0), (1, 2), (2, 5)):
        before = tiny_mamba.advance(clean[:, :token])[1] if token else None
        state = tiny_mamba.advance(clean[:, token : token + 1], before)[1]
        x = tiny_mamba.block_inputs(clean)[block][:, token : token + 1]
        mixer, normed = tiny_mamba._normed(block, x)
        given = tiny_mamba._inputs(mixer, normed, before.blocks[block]["conv"] if before else None)
        old = before.blocks[block]["ssm"] if before else torch.zeros_like(state.blocks[block]["ssm"])
        state.blocks[block]["ssm"] = torch.exp(given[2].sum(-1)[..., None] * given[3]) * old
        left = difference(tiny_mamba.advance(clean[:, token + 1 :], state)[0].final)
        assert result.lost[0, block, token] == pytest.approx((ends[0] - left) / (ends[0] - ends[1]), abs=2e-3)
    assert not result.lost[0, :, -1].any(), "none reads the last token"


def test_every_family_with_equations_has_it(every_model: ModelAdapter) -> None:
    of = pair(every_model)
    if not isinstance(every_model, RecurrentAdapter):
        assert "equations of ours" in refusal(lambda: knock_out(every_model, [of]), ModelError)
        return
    result = knock_out(every_model, [of, of], [(0, 3), (2, 3), (0, TOKENS)])
    assert result.lost.shape == (2, every_model.n_layers, 3)
    attends = ["keys" in block for block in every_model.advance(torch.tensor([[1]]))[1].blocks]
    assert np.isnan(result.lost[0, :, 0]).tolist() == attends
    np.testing.assert_allclose(result.lost[0], result.lost[1])
    assert np.nanmax(np.abs(result.lost[:, :, :2])) > 1e-4
    assert result.estimate(0, 0).value == pytest.approx(result.mean()[0, 0])
    assert "no span" in refusal(lambda: knock_out(every_model, [of], [(3, 3)]), ConfigError)

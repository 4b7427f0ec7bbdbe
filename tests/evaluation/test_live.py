"""Beliefs while a model writes: what the whole text read again would give, and draws as they are asked for."""

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.evaluation import live
from lens_rnn.evaluation.live import Writing, layers_read, write_live
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.lens import JacobianLens, LogitLens
from lens_rnn.models import ModelAdapter
from tests.data.blocks import make_blocks
from tests.refusals import refusal

import numpy as np
import pytest
import torch

PROMPT = [5, 9, 3, 7, 1]


def test_each_column_is_what_the_whole_text_gives(every_model: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer with the lens itself, on all that was read so far; a prompt in several parts."""
    monkeypatch.setattr(live, "_AT_ONCE", 2)
    lens = LogitLens.from_adapter(every_model)
    if not every_model.has_state:
        assert every_model.no_state in refusal(lambda: next(write_live(every_model, lens, PROMPT)), ModelError)
        return
    beliefs = [*write_live(every_model, lens, PROMPT, Writing(tokens=4, temperature=0))]
    ids = [each.token for each in beliefs]
    assert ids[:5] == PROMPT
    assert [each.is_written for each in beliefs] == [False] * 5 + [True] * 4
    forward = every_model.forward(torch.tensor([ids]))
    rows = [lens(forward.hidden_states[layer][0], layer) for layer in layers_read(every_model, lens)]
    log_q = torch.stack([*rows, every_model.logits(forward.final[0])]).float().log_softmax(-1)  # (rows, tokens, vocab)
    entropy = -(log_q.exp() * log_q).sum(-1)
    kl = (log_q[-1].exp() * (log_q[-1] - log_q)).sum(-1)
    for place, each in enumerate(beliefs):
        np.testing.assert_allclose(each.entropy, entropy[:, place], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(each.kl, kl[:, place], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(each.probability, log_q[:, place].max(-1).values.exp(), rtol=1e-3)
        chosen = log_q[torch.arange(len(log_q)), place, torch.from_numpy(each.likeliest)]
        torch.testing.assert_close(chosen, log_q[:, place].max(-1).values, rtol=1e-3, atol=1e-3)
    assert ids[5:] == [int(each.likeliest[-1]) for each in beliefs[4:-1]], "the likeliest, where nothing is drawn"


def test_draws_hang_on_the_seed_and_stay_within_top_p(tiny_mamba: ModelAdapter) -> None:
    lens = LogitLens.from_adapter(tiny_mamba)

    def ids(**settings) -> list[int]:
        return [each.token for each in write_live(tiny_mamba, lens, PROMPT, Writing(tokens=30, **settings))][5:]

    assert ids(seed=1) == ids(seed=1) != ids(seed=2)
    assert ids(top_p=1e-6, seed=1) == ids(top_p=1e-6, seed=2) == ids(temperature=0)
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [int(live._drawn(logits, Writing(temperature=1, top_p=0.75), generator)) for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert np.mean(drawn) == pytest.approx(0.3 / 0.8, abs=0.08)


def test_any_kind_of_lens_is_read(tiny_mamba: ModelAdapter) -> None:
    tuned = fit(tiny_mamba, make_blocks(4), FitConfig()).lens
    partial = JacobianLens(tiny_mamba, {1: torch.eye(tiny_mamba.d_model)}, 1)
    for lens, rows in ((tuned, tiny_mamba.n_layers), (partial, 2)):
        beliefs = next(write_live(tiny_mamba, lens, PROMPT))
        assert len(beliefs.likeliest) == rows


def test_what_is_refused(tiny_mamba: ModelAdapter) -> None:
    lens = LogitLens.from_adapter(tiny_mamba)
    assert "no tokens" in refusal(lambda: next(write_live(tiny_mamba, lens, [])), DataError)
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"tokens": -1}):
        assert next(iter(settings)) in refusal(lambda s=settings: Writing(**s), ConfigError)

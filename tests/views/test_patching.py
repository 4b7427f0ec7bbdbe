"""Patching: all of a layer gives the clean run, nothing the corrupted one, each place what a naive exchange does."""

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.models import ModelAdapter, RecurrentState
from lens_rnn.views.patching import CONVOLUTION, RECURRENT, RESIDUAL, Pair, PairRun, _kind, kinds_of, patch
from tests.refusals import refusal

import numpy as np
import pytest
import torch

TOKENS = 7


def pair(adapter: ModelAdapter, changed: int = 2, seed: int = 0) -> Pair:
    """Texts that differ in one token, and the tokens whose logits they move furthest apart."""
    clean = torch.randint(96, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    corrupted[changed] = (clean[changed] + 31) % 96
    a, b = (adapter.logits(adapter.forward(ids[None]).final[0, -1]) for ids in (clean, corrupted))
    return Pair(clean=clean, corrupted=corrupted, answer=int((a - b).argmax()), foil=int((a - b).argmin()))


@pytest.fixture(autouse=True)
def small_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models say nearly the same after every text."""
    monkeypatch.setattr("lens_rnn.views.patching.LEAST_DIFFERENCE", 1e-4)


def run_of(adapter: ModelAdapter, of: Pair) -> PairRun:
    return PairRun(adapter, of.clean, of.corrupted, (of.answer, of.foil))


def test_all_of_a_layer_is_the_clean_run_and_nothing_the_corrupted_one(every_model: ModelAdapter) -> None:
    run = run_of(every_model, pair(every_model))
    every = torch.ones(1, TOKENS, dtype=torch.bool)
    for layer in range(every_model.n_layers):
        is_all = getattr(every_model.model.config, "version", None) != "7" or layer in every_model.trivial_layers
        if is_all:  # later blocks of RWKV-7 read values of the first one, too
            assert run.of_residual(layer, every) == pytest.approx(1, abs=2e-3)
        assert run.of_residual(layer, ~every) == pytest.approx(0, abs=2e-3)


def test_all_states_after_the_difference_are_the_clean_run(every_model: ModelAdapter) -> None:
    """What comes after is the same in both texts, so the states are all that tells them apart."""
    if not every_model.has_state:
        assert kinds_of(every_model) == {}
        return
    run = run_of(every_model, pair(every_model))
    places = torch.tensor([[True] * every_model.n_layers, [False] * every_model.n_layers])
    for token, (clean, corrupted) in enumerate(run._states()):
        mixed = corrupted.clone()
        for own, others in zip(mixed.blocks, clean.blocks, strict=True):
            own.update({name: others[name] for name in own})
        kinds = [*kinds_of(every_model)]
        of_last = run.of_states(kinds[-1], token, clean, _but(mixed, corrupted, kinds[-1]), places)
        if token >= 2:
            assert of_last[0] == pytest.approx(1, abs=2e-3)
        assert run.of_states(kinds[0], token, clean, corrupted, places)[1] == pytest.approx(0, abs=2e-3)


def _but(clean: RecurrentState, corrupted: RecurrentState, kind: str) -> RecurrentState:
    """The clean state with what is of a kind corrupted."""
    mixed = clean.clone()
    for own, others in zip(mixed.blocks, corrupted.blocks, strict=True):
        own.update({name: others[name].clone() for name in own if _kind(name) == kind})
    return mixed


def test_a_map_is_one_naive_exchange_at_a_time(tiny_mamba: ModelAdapter) -> None:
    of = pair(tiny_mamba)
    maps = patch(tiny_mamba, [of]).shares
    assert [*maps] == [RESIDUAL, CONVOLUTION, RECURRENT]
    clean, corrupted = of.clean[None], of.corrupted[None]

    def difference(final: torch.Tensor) -> float:
        logits = tiny_mamba.logits(final[0, -1])
        return float(logits[of.answer] - logits[of.foil])

    ends = [difference(tiny_mamba.forward(ids).final) for ids in (clean, corrupted)]
    hidden = tiny_mamba.forward(clean).hidden_states
    for layer, token in ((0, 2), (1, 2), (1, 6), (2, 6)):

        def exchange(h: torch.Tensor, layer: int = layer, token: int = token) -> torch.Tensor:
            h = h.clone()
            h[0, token] = hidden[layer][0, token]
            return h

        with tiny_mamba.edited(layer, exchange):
            patched = difference(tiny_mamba.forward(corrupted).final)
        expected = (patched - ends[1]) / (ends[0] - ends[1])
        assert maps[RESIDUAL][0, layer, token] == pytest.approx(expected, abs=2e-3)
    for block, token, kind, name in ((0, 3, RECURRENT, "ssm"), (1, 2, CONVOLUTION, "conv"), (2, 5, RECURRENT, "ssm")):
        _, of_clean = tiny_mamba.advance(clean[:, : token + 1])
        _, state = tiny_mamba.advance(corrupted[:, : token + 1])
        state.blocks[block][name] = of_clean.blocks[block][name]
        patched = difference(tiny_mamba.advance(corrupted[:, token + 1 :], state)[0].final)
        expected = (patched - ends[1]) / (ends[0] - ends[1])
        assert maps[kind][0, block, token] == pytest.approx(expected, abs=2e-3)
    assert not maps[RECURRENT][0, :, -1].any(), "after the last token no state is read"
    assert np.abs(maps[RECURRENT][0, :, :2]).max() < 1e-4, "before they differ the states are the same"


def test_pairs_have_means_with_intervals(tiny_rwkv4: ModelAdapter) -> None:
    told: list[int] = []
    pairs = [pair(tiny_rwkv4, seed=seed) for seed in range(4)]
    result = patch(tiny_rwkv4, pairs, [RECURRENT], on_pair=told.append)
    assert sum(told) == 4
    assert result.shares[RECURRENT].shape == (4, tiny_rwkv4.n_layers, TOKENS)
    estimate = result.estimate(RECURRENT, 0, 3)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == pytest.approx(result.mean(RECURRENT)[0, 3])
    report = result.report()
    assert report["shares"][RECURRENT]["0"][3]["value"] == pytest.approx(estimate.value)
    assert np.isfinite(report["clean"]).all()


def test_what_is_refused(tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    good = pair(tiny_mamba)
    shorter = Pair(clean=good.clean, corrupted=good.corrupted[:-1], answer=1, foil=2)
    longer = pair(tiny_mamba)
    longer = Pair(clean=good.clean[1:], corrupted=good.corrupted[1:], answer=1, foil=2)
    strange = Pair(clean=good.clean, corrupted=good.corrupted, answer=1, foil=tiny_mamba.vocab_size)
    for pairs, words in (
        ([], "no pair"),
        ([shorter], "7 tokens and the corrupted one 6"),
        ([good, longer], "pairs have 6, 7 tokens"),
        ([strange], f"no token {tiny_mamba.vocab_size}"),
    ):
        assert words in refusal(lambda pairs=pairs: patch(tiny_mamba, pairs), DataError)
    assert "no kind 'soul'" in refusal(lambda: patch(tiny_mamba, [good], ["soul"]), ConfigError)
    assert "no recurrent state" in refusal(lambda: patch(tiny_neox, [good], [RECURRENT]), ModelError)
    assert "no attention state" in refusal(lambda: patch(tiny_mamba, [good], ["attention"]), ModelError)
    monkeypatch.setattr("lens_rnn.views.patching.LEAST_DIFFERENCE", 1e6)
    assert "nothing to recover" in refusal(lambda: patch(tiny_mamba, [good]), DataError)

"""What a model loses when part of it does not work here, and what goes on; transformers that has moved under our
feet.

A wrong `models/recurrence.py` is seen by its weights, values and outputs.
"""

import copy
from collections.abc import Callable
from typing import Any

from lens_rnn import versions
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter, RecurrentAdapter, fused, recurrences, scans, wrap_model
from lens_rnn.models.adapter import ATTENTION, FUSED, STATE
from lens_rnn.models.check import check
from lens_rnn.models.families.mamba import MambaAdapter
from lens_rnn.models.families.rwkv import RWKVAdapter
from lens_rnn.models.families.rwkv4 import RWKV4Adapter
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.steering import Pair, VectorConfig, fit_vectors, steer
from lens_rnn.views.attention import hidden_attention
from tests.conftest import ALL_FAMILIES, make_model
from tests.data.blocks import make_blocks
from tests.models.tiny_hybrids import make_hybrid
from tests.refusals import refusal

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, cache_utils

IDS = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(3))
PURE = ("mamba", "falcon_mamba", "mamba2", "rwkv4", "rwkv5", "rwkv6", "rwkv7", "recurrent_gemma")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_nothing_is_switched_off_where_all_is_well(
    family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = wrap_model(make_model(family).to(dtype))
    assert adapter.off == {}
    assert not [record for record in caplog.records if record.name.startswith("lens_rnn")]
    assert adapter.has_state == (family in PURE)
    if isinstance(adapter, RecurrentAdapter):
        assert adapter.fused == (dtype == torch.float32 or family in ("rwkv5", "rwkv6", "rwkv7"))


def warning(caplog: pytest.LogCaptureFixture) -> str:
    """The one warning of this package, which must be one line."""
    (record,) = (record for record in caplog.records if record.name.startswith("lens_rnn"))
    message = record.getMessage()
    assert "\n" not in message
    return message


def assert_lens_works(adapter: ModelAdapter) -> None:
    """Fit, evaluation and steering of the residual stream go on."""
    text = make_blocks(blocks=24, seq_len=16)
    lens = fit(adapter, text, FitConfig(batch_size=4, passes=3, products="float32")).lens
    figures = evaluate(
        adapter, {"logit": LogitLens.from_adapter(adapter), "tuned": lens}, make_blocks(blocks=6, seq_len=16, seed=2)
    )
    for i in adapter.fitted_layers:
        assert figures.lenses["tuned"][i].kl < figures.lenses["logit"][i].kl
    vectors = fit_vectors(adapter, [Pair((1, 2), (1, 3)), Pair((4, 2), (4, 3))], VectorConfig(states=False)).vectors
    with steer(adapter, vectors, 1.0, 0):
        assert not torch.allclose(adapter.forward(IDS).final, adapter.forward(IDS).final * 0)


def test_a_fused_path_that_disagrees_gives_way_to_transformers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its values nor the states that it would make are used."""
    expected = wrap_model(make_model("mamba")).forward(IDS)
    monkeypatch.setattr(
        recurrences, "selective_scan", lambda u, dt, A, B, C, start: (u * dt, u.new_zeros(len(u), *A.shape))
    )
    monkeypatch.setattr(fused, "gated_scan", lambda u, dt, A, *_: (u * dt, u.new_zeros(len(u), *A.shape)))
    adapter = wrap_model(make_model("mamba"))
    assert set(adapter.off) == {FUSED, STATE, ATTENTION}
    first, second, _ = (record.getMessage() for record in caplog.records if record.name.startswith("lens_rnn"))
    assert (
        "(model type 'mamba') goes without its fused path: hidden state 0 differs from the one transformers returns ("
        in first
    )
    assert first.endswith("; transformers' own code takes its place")
    assert f"transformers {transformers.__version__} (tested with " in first
    assert (
        "goes without its recurrent state: continuing from a recurrent state does not give what the whole input gives"
        in second
    )
    torch.testing.assert_close(adapter.forward(IDS).final, expected.final, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Tensor) -> None:
        raise RuntimeError("no LLVM\nin sight")

    monkeypatch.setattr(fused, "gated_scan", broken)
    adapter = wrap_model(make_model("mamba"))
    assert adapter.off[FUSED].startswith("RuntimeError: no LLVM in sight (torch ")
    assert_lens_works(adapter)


def test_a_wrong_state_is_switched_off_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_block = RWKVAdapter.run_block
    monkeypatch.setattr(
        RWKVAdapter, "run_block", lambda self, i, x, _before, passage: run_block(self, i, x, None, passage)
    )
    adapter = wrap_model(make_model("rwkv6"))
    assert set(adapter.off) == {STATE}
    assert "goes without its recurrent state" in warning(caplog)
    assert not adapter.has_state
    reason = (
        "the recurrent state of model type 'rwkv_official' cannot be reached: continuing from a recurrent state "
        "does not give"
    )
    assert refusal(lambda: adapter.advance(IDS)).startswith(reason)
    with pytest.raises(ConfigError, match=f"^{reason}"):
        fit_vectors(adapter, [Pair((1, 2), (1, 3))], VectorConfig(states=True))
    assert hidden_attention(adapter, IDS[0]).matrices.isfinite().all()
    assert_lens_works(adapter)


def test_a_hidden_attention_that_is_wrong_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recurrence = MambaAdapter.recurrence

    def wrong(self: MambaAdapter, index: int, x: Tensor) -> Any:
        right = recurrence(self, index, x)
        return right._replace(weights=lambda units: 2 * right.weights(units))

    monkeypatch.setattr(MambaAdapter, "recurrence", wrong)
    adapter = wrap_model(make_model("mamba"))
    assert set(adapter.off) == {ATTENTION}
    assert "goes without its hidden attention: the weights of a recurrence do not give what it gives" in warning(caplog)
    assert "goes without its hidden attention: the weights" in refusal(lambda: hidden_attention(adapter, IDS[0]))
    assert adapter.advance(IDS)[1].tokens == 12


# --- adapters that do not fit -----------------------------------------------------------------------------------------


class WrongNorm(MambaAdapter):
    @property
    def final_norm(self) -> nn.Module:
        return self.model.backbone.layers[0].norm


class WrongNormInBlocks(GenericAdapter):
    @property
    def final_norm(self) -> nn.Module:
        return self.model.gpt_neox.layers[-1].input_layernorm


class OneBlockShort(MambaAdapter):
    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.backbone.layers[:-1]


class WrongHead(MambaAdapter):
    @property
    def head(self) -> nn.Linear:
        return nn.Linear(32, 96, bias=False)


class WrongSide(GenericAdapter):
    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.states_after_blocks = True


class NormThatRunsTwice(RWKV4Adapter):
    @property
    def final_norm(self) -> nn.Module:
        block = self.model.rwkv.blocks[1]
        block.ln2 = block.ln1  # one module in two places
        return block.ln1


@pytest.mark.parametrize(
    ("wrong", "family", "complaint"),
    [
        (WrongNorm, "mamba", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (WrongNormInBlocks, "neox", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (OneBlockShort, "mamba", "4 hidden states where 3 are declared"),
        (WrongHead, "mamba", "its logits are not cap(scale · (U u + b)) of its normed final state"),
        (WrongSide, "neox", "the last hidden state is not the final norm's input"),
        (NormThatRunsTwice, "rwkv4", "the final norm ran 2 times in one pass"),
    ],
)
def test_a_wrong_adapter_is_refused(wrong: type[ModelAdapter], family: str, complaint: str) -> None:
    model = make_model(family)
    message = refusal(lambda: check(wrong(model)))
    assert f"model type {model.config.model_type!r}" in message
    assert complaint in message


def test_a_model_that_gives_nan_is_refused() -> None:
    model = make_model("mamba")
    model.backbone.layers[1].mixer.D.data[0] = torch.nan
    assert "its logits are not finite in float32" in refusal(lambda: wrap_model(model))


# --- transformers has moved -------------------------------------------------------------------------------------------


def all_caches() -> list[type]:
    """Every cache class of transformers."""
    return [kind for kind in vars(cache_utils).values() if isinstance(kind, type) and "Cache" in kind.__name__]


@pytest.mark.parametrize("family", PURE)
def test_caches_that_cannot_be_made_go_unnoticed(
    family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = wrap_model(make_model(family))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cache of transformers was made")

    for kind in all_caches():
        monkeypatch.setattr(kind, "__init__", refuse)
    with pytest.raises(AssertionError):
        cache_utils.DynamicCache()
    adapter = wrap_model(make_model(family))
    assert adapter.off == {}
    assert torch.equal(adapter.forward(IDS).final, before.forward(IDS).final)
    ours, state = adapter.advance(IDS[:, :5])
    theirs, expected = before.advance(IDS[:, :5])
    assert torch.equal(ours.final, theirs.final)
    for block, other in zip(state.blocks, expected.blocks, strict=True):
        assert all(torch.equal(block[name], other[name]) for name in other)
    torch.testing.assert_close(
        adapter.advance(IDS[:, 5:], state)[0].final, before.forward(IDS).final[:, 5:], rtol=1e-4, atol=1e-4
    )


def without_keywords(forward: Callable, lost: set[str]) -> Callable:
    """A module's forward that knows some keywords no longer: transformers' own code passes them under other names
    now."""

    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {name.removeprefix("moved_"): value for name, value in kwargs.items()}
        assert not lost & kwargs.keys(), f"{sorted(lost & kwargs.keys())} is no keyword of this forward"
        return forward(self, *args, **given)

    return moved


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "mamba2", "rwkv4"])
def test_a_keyword_that_a_block_has_lost_goes_unnoticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model calls its blocks, and they their mixers, by the new name; whoever uses the old one fails."""
    model = make_model(family)
    inner = [
        m
        for m in model.base_model.modules()
        if type(m).__name__.endswith(("Block", "Mixer", "SelfAttention", "FeedForward"))
    ]
    lost = {"cache_params", "cache", "past_key_values", "state", "attention_mask"}
    for kind in {type(module) for module in inner}:
        monkeypatch.setattr(kind, "forward", without_keywords(kind.forward, lost))
        monkeypatch.setattr(kind, "__call__", renaming(kind.__call__, lost))
    adapter = wrap_model(model)
    assert adapter.off == {}
    _, state = adapter.advance(IDS[:, :5])
    torch.testing.assert_close(
        adapter.advance(IDS[:, 5:], state)[0].final, adapter.forward(IDS).final[:, 5:], rtol=1e-4, atol=1e-4
    )
    assert_lens_works(adapter)


def renaming(call: Callable, lost: set[str]) -> Callable:
    """A call of a module in transformers' own code, which uses the new names."""

    def renamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **{f"moved_{name}" if name in lost else name: value for name, value in kwargs.items()})

    return renamed


@pytest.mark.parametrize("family", ["mamba", "rwkv4", "recurrent_gemma", "neox"])
def test_one_hidden_state_more_is_refused_in_one_line(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(family)
    forward = type(model).forward

    def with_one_more(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.hidden_states = (torch.zeros_like(output.hidden_states[0]), *output.hidden_states)
        return output

    monkeypatch.setattr(type(model), "forward", with_one_more)
    message = refusal(lambda: wrap_model(model))
    blocks = len(model.base_model.blocks if family == "rwkv4" else model.base_model.layers)
    assert f"model type {model.config.model_type!r}" in message
    declared = (
        f"0 stacks of {blocks + 1} blocks"
        if family == "neox"
        else f"{blocks + 2} hidden states where {blocks + 1} are declared"
    )
    assert declared in message
    assert f"transformers {transformers.__version__} (tested with {versions.TESTED['transformers'][0]}" in message


@pytest.mark.parametrize("where", ["state_in", "state_out"])
def test_a_state_shares_no_memory_with_the_model(where: str) -> None:
    """What is continued from may be changed afterwards, and the other way round."""
    adapter = wrap_model(make_model("mamba"))
    _, state = adapter.advance(IDS[:, :5])
    kept, (_, after) = copy.deepcopy(state), adapter.advance(IDS[:, 5:], state)
    frozen = copy.deepcopy(after)
    for block in state.blocks if where == "state_in" else after.blocks:
        for tensor in block.values():
            tensor.zero_()
    unchanged, expected = (after, frozen) if where == "state_in" else (state, kept)
    for block, other in zip(unchanged.blocks, expected.blocks, strict=True):
        assert all(torch.equal(block[name], other[name]) for name in other)


def test_reading_on_where_no_kernel_of_ours_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: whole texts by transformers' own code, reading on in plain torch and in chunks, not token by
    token."""
    for family in ("mamba", "rwkv4"):
        adapter = wrap_model(make_model(family).double())  # the kernels are float32
        assert not adapter.fused
        calls: list[int] = []
        name = "selective_scan" if family == "mamba" else "wkv4"
        plain = getattr(scans, name)
        monkeypatch.setattr(scans, name, lambda *inputs, plain=plain, calls=calls: calls.append(1) or plain(*inputs))
        _, state = adapter.advance(IDS[:, :5])
        parts = adapter.advance(IDS[:, 5:], state)[0]
        assert len(calls) == 2 * adapter.n_layers
        torch.testing.assert_close(parts.final, adapter.forward(IDS).final[:, 5:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mamba2", "bamba"])
def test_hidden_attention_in_every_precision_and_where_most_passes_it_by(name: str) -> None:
    """In float64, and where D x is thousands of times what the recurrence makes of the values."""
    adapter = wrap_model((make_model(name) if name == "mamba2" else make_hybrid(name)).double())
    assert adapter.off == {}
    (mixing,) = adapter.mixings(IDS[:1], [0])
    assert mixing.weights(torch.tensor([0])).dtype == torch.float32
    model = make_model(name) if name == "mamba2" else make_hybrid(name)
    for module_name, parameter in model.named_parameters():
        if module_name.endswith(".D"):
            parameter.data *= 1e4
    assert wrap_model(model).off == {}


def test_a_state_of_another_family_is_refused() -> None:
    _, foreign = wrap_model(make_model("mamba2")).advance(IDS[:, :5])
    hybrid = wrap_model(make_hybrid("bamba"))
    foreign.blocks = (foreign.blocks * 2)[: hybrid.n_layers]
    assert "the state is another model's" in refusal(lambda: hybrid.advance(IDS[:, 5:], foreign))

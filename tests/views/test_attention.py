"""Hidden attention: applied to a recurrence's inputs, the weights give what the model's own block gives; rollout; what
is refused."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.models.matrices import decayed_products
from lens_rnn.models.rwkv_files import read_rwkv
from lens_rnn.views import attention as module
from lens_rnn.views.attention import attention_models, hidden_attention, rollout, unit_attention
from tests.conftest import VOCAB_SIZE
from tests.models.tiny_hybrids import is_here, make_hybrid
from tests.reference import views as naive
from tests.rwkv_weights import official_weights

import pytest
import torch
from torch import Tensor, nn

TOKENS = 70  # a whole chunk and a part of one
SHOWN = ["mamba", "falcon_mamba", "mamba2", "rwkv4", "rwkv5", "rwkv6", "rwkv7"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (TOKENS,), generator=torch.Generator().manual_seed(3))


class Seen(NamedTuple):
    """What one module was given and what it returned, in one pass."""

    inputs: tuple[Any, ...]
    output: Any


@torch.no_grad()
def seen_by(adapter: ModelAdapter, modules: dict[str, nn.Module], ids: Tensor) -> dict[str, Seen]:
    """What modules were given and returned in a pass of the model as transformers has it."""
    seen: dict[str, Seen] = {}

    def keep(name: str) -> Callable:
        return lambda _, inputs, output: seen.update({name: Seen(inputs, output)})

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    adapter.model(ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


# --- the weights are the recurrence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_mamba(name: str, models_of_every_family: dict[str, ModelAdapter], ids: Tensor) -> None:
    adapter = models_of_every_family[name]
    for layer, block in enumerate(adapter.blocks):
        weights = unit_attention(adapter, ids, layer)
        with torch.no_grad():
            mixer = seen_by(adapter, {"": block.mixer}, ids)[""]
            parts = naive.mamba_parts(block.mixer, mixer.inputs[0][0])
            expected = naive.mamba_weights(parts["C"], parts["B"], parts["dt"].float(), parts["A"])
            torch.testing.assert_close(weights.double(), expected, **CLOSE)
            torch.testing.assert_close(
                naive.mamba_output(block.mixer, mixer.inputs[0][0], weights), mixer.output[0], **CLOSE
            )


def test_mamba2(models_of_every_family: dict[str, ModelAdapter], ids: Tensor) -> None:
    adapter = models_of_every_family["mamba2"]
    for layer, block in enumerate(adapter.blocks):
        weights = unit_attention(adapter, ids, layer)
        mixer = seen_by(adapter, {"": block.mixer}, ids)[""]
        with torch.no_grad():
            torch.testing.assert_close(
                naive.mamba2_output(block.mixer, mixer.inputs[0][0], weights), mixer.output[0], **CLOSE
            )


def test_rwkv4(tiny_rwkv4: ModelAdapter, ids: Tensor) -> None:
    for layer in (0, 7):
        attention = tiny_rwkv4.blocks[layer].attention
        weights = unit_attention(tiny_rwkv4, ids, layer)
        # transformers' own loop reaches us as the attention's output
        seen = seen_by(
            tiny_rwkv4, {"attention": attention, "key": attention.key, "normed": tiny_rwkv4.blocks[layer].ln1}, ids
        )
        with torch.no_grad():
            expected = naive.rwkv4_weights(attention, seen["key"].output[0])
            output = naive.rwkv4_output(attention, seen["normed"].output[0], weights)
        torch.testing.assert_close(weights.double(), expected, **CLOSE)
        torch.testing.assert_close(output, seen["attention"].output[0][0], **CLOSE)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6", "7"])
def test_rwkv_5_to_7(version: str, ids: Tensor) -> None:
    adapter = wrap_model(read_rwkv(official_weights(version), f"rwkv{version}"))
    for layer, block in enumerate(adapter.blocks):
        att, first = block.att, adapter.blocks[0].att
        weights = unit_attention(adapter, ids, layer)
        modules = {"att": att, "r": att.receptance, "k": att.key, "v": att.value, "first": first.value}
        seen = seen_by(adapter, modules | ({"gate": att.gate} if hasattr(att, "gate") else {}), ids)
        with torch.no_grad():
            r, k, v, v_first = (seen[name].output[0] for name in ("r", "k", "v", "first"))
            gate: Tensor = torch.ones(())
            bonus: Tensor | float = 0.0
            if "gate" in seen:
                gate = nn.functional.silu(seen["gate"].output[0])
            if version == "7":
                x, previous = (t[0] for t in seen["att"].inputs[:2])
                xa, xv, xg = (x + (previous - x) * mu for mu in (att.x_a, att.x_v, att.x_g))
                if layer:
                    v = v + (v_first - v) * torch.sigmoid(att.v0 + (xv @ att.v1) @ att.v2)
                k = k * (1 + (torch.sigmoid(att.a0 + (xa @ att.a1) @ att.a2) - 1) * att.k_a)
                gate = torch.sigmoid(xg @ att.g1) @ att.g2
                r, k, v = (t.unflatten(-1, (att.heads, -1)) for t in (r, k, v))
                bonus = ((r * k * att.r_k).sum(-1, keepdim=True) * v).flatten(1)
                v = v.flatten(1)
            expected = seen["att"].output[0][0]
            output = naive.rwkv_output(att, v.unflatten(-1, (att.heads, -1)), weights, gate, bonus)
        torch.testing.assert_close(output, expected, **CLOSE)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 150])
def test_nothing_overflows_where_a_token_forgets_everything(tokens: int) -> None:
    """And the decays are those of the formula, for one n a unit and for several."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, tokens, 4, generator=g).double()
    for n in (4, 1):
        log_decay = -torch.rand(3, tokens, n, generator=g).double() * 2
        log_decay[:, tokens // 2] = -1e4
        expected = torch.zeros(3, tokens, tokens, dtype=torch.float64)
        for i in range(tokens):
            for j in range(i + 1):
                expected[:, i, j] = (q[:, i] * torch.exp(log_decay[:, j + 1 : i + 1].sum(1)) * k[:, j]).sum(-1)
        torch.testing.assert_close(decayed_products(q, k, log_decay), expected)


def hooks_of(adapter: ModelAdapter) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in adapter.model.modules())


MAMBA2_HYBRIDS = ["nemotron_h", "granitemoehybrid", "falcon_h1", "bamba", "zamba2"]
DELTA_HYBRIDS = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear"]


@pytest.mark.parametrize("name", [*MAMBA2_HYBRIDS, *DELTA_HYBRIDS])
def test_the_recurrent_blocks_of_hybrids(name: str, ids: Tensor) -> None:
    """What transformers' own code makes of the values, before the norm, is what the matrices make of them."""
    if not is_here(name):
        pytest.skip(f"this transformers has no {name}")
    adapter = wrap_model(make_hybrid(name))
    assert adapter.off == {}
    kind = "mamba-2" if name in MAMBA2_HYBRIDS else "gated delta net"
    layers = [i for i, kinds in enumerate(adapter.mixing_kinds) if kind in kinds]
    assert len(layers) >= 2
    hooks = hooks_of(adapter)
    for mixing in adapter.mixings(ids[None], layers):
        if mixing.kind == kind:
            made = (
                torch.einsum("uij,juw->iuw", mixing.weights(torch.arange(mixing.units)), mixing.values.float())
                + mixing.beside
            )
            torch.testing.assert_close(made, mixing.outputs, rtol=1e-5, atol=1e-5 * float(mixing.outputs.abs().max()))
    assert hooks_of(adapter) == hooks, "ours go; transformers leaves some of its own"


@pytest.mark.parametrize(("name", "kinds"), [
    ("nemotron_h", ("mamba-2", "attention", "mamba-2")),
    ("qwen3_next", ("gated delta net", "gated delta net", "attention", "gated delta net")),
    ("falcon_h1", ("mamba-2", "attention") * 4),
    ("lfm2", ("attention",)),
    ("qwen3", ("attention",) * 4),
])  # fmt: skip
def test_a_hybrid_is_seen_whole_each_layer_by_its_kind(name: str, kinds: tuple[str, ...], ids: Tensor) -> None:
    adapter = wrap_model(make_hybrid(name))
    found = hidden_attention(adapter, ids)
    assert found.kinds == kinds
    assert torch.equal(found.matrices, found.matrices.tril())
    softmax = [matrix for matrix, kind in zip(found.matrices, kinds, strict=True) if kind == "attention"]
    for matrix in softmax:
        torch.testing.assert_close(matrix.sum(-1), torch.ones(TOKENS))
    with torch.no_grad():
        adapter.model.set_attn_implementation("eager")
        theirs = [
            t for t in adapter.model(ids[None], output_attentions=True).attentions if t is not None and t.ndim == 4
        ]
        adapter.model.set_attn_implementation("sdpa")
    for matrix, expected in zip(softmax, theirs, strict=True):
        torch.testing.assert_close(matrix, expected[0].mean(0))
    several = len(set(kinds)) > 1
    assert found.titles[0] == (f"layer {found.layers[0]}, {kinds[0]}" if several else f"layer {found.layers[0]}")
    without = [i for i, there in enumerate(adapter.mixing_kinds) if not there]
    for layer in without:
        with pytest.raises(ConfigError, match=f"layer {layer} of .* mixes no tokens in a way that has a matrix"):
            hidden_attention(adapter, ids, [layer])


# --- means, blocks, rollout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOWN)
def test_means_do_not_depend_on_blocks(
    name: str, models_of_every_family: dict[str, ModelAdapter], ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = models_of_every_family[name]
    assert adapter.model_type in attention_models()
    weights = unit_attention(adapter, ids, 1)
    whole = hidden_attention(adapter, ids)
    assert whole.layers == tuple(range(adapter.n_layers)) == tuple(range(whole.n_layers))
    assert whole.unit == ("head" if name in ("mamba2", "rwkv5", "rwkv6", "rwkv7") else "channel")
    torch.testing.assert_close(whole.matrices[1], weights.abs().mean(0))
    assert torch.equal(whole.matrices, whole.matrices.tril())
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * 4 * TOKENS**2)  # three at a time
    some = hidden_attention(adapter, ids, [1], [0, 3, 2, 1], signed=True)
    torch.testing.assert_close(some.matrices[0], weights[:4].mean(0))
    torch.testing.assert_close(unit_attention(adapter, ids, 1, [3, 0, 1, 2]), weights[[3, 0, 1, 2]])


def test_it_is_the_models_that_runs(tiny_mamba: ModelAdapter, ids: Tensor) -> None:
    """An edited hidden state changes the layers after it, and no hook stays."""
    plain = hidden_attention(tiny_mamba, ids).matrices
    with tiny_mamba.edited(0, lambda h: -h):
        edited = hidden_attention(tiny_mamba, ids).matrices
    assert torch.equal(edited[0], plain[0])
    assert not torch.allclose(edited[1], plain[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_mamba.model.modules())


def test_rollout() -> None:
    g = torch.Generator().manual_seed(0)
    matrices = torch.rand(3, 6, 6, generator=g).double().tril() * 7
    expected = torch.eye(6).double()
    for matrix in matrices:
        rows = torch.stack([row / row.sum() for row in matrix])
        expected = (0.5 * rows + 0.5 * torch.eye(6)) @ expected
    torch.testing.assert_close(rollout(matrices), expected)
    assert torch.equal(rollout(torch.zeros(2, 4, 4)), torch.eye(4))  # who reads nothing keeps what it has
    with pytest.raises(ConfigError, match="have signs; leave signed at False"):
        rollout(-matrices)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [hidden_attention, lambda adapter, ids: unit_attention(adapter, ids, 0)])
@pytest.mark.parametrize("name", ["recurrent_gemma"])
def test_a_model_without_it_says_which_have_it(
    name: str, view: Callable, models_of_every_family: dict[str, ModelAdapter], ids: Tensor
) -> None:
    with pytest.raises(ModelError, match="these have: falcon_mamba, mamba, mamba2, rwkv, rwkv_official, and hybrids"):
        view(models_of_every_family[name], ids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": [3]}, "layer 3"),
        ({"layers": []}, "no layer"),
        ({"layers": [-1]}, "layer -1"),
        ({"units": [64]}, "channels 64 of layer 0: choose from 0 to 63"),
        ({"units": []}, r"channels \(none\) of layer 0"),
    ],
)
def test_layers_and_channels_that_are_not_there(
    arguments: dict, words: str, tiny_mamba: ModelAdapter, ids: Tensor
) -> None:
    with pytest.raises(ConfigError, match=words):
        hidden_attention(tiny_mamba, ids, **arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([], "has no tokens"),
        (torch.tensor([[1, 2], [1, 2]]), r"\(2, 2\)"),
        (torch.tensor([0.5]), "float32"),
        ([True], "bool"),
        ([0, VOCAB_SIZE], f"from 0 to {VOCAB_SIZE}, and"),
        ([-1], "from -1 to -1"),
    ],
)
def test_texts_that_cannot_be_read(text: list | Tensor, words: str, tiny_mamba: ModelAdapter) -> None:
    with pytest.raises(DataError, match=words):
        hidden_attention(tiny_mamba, text)


def test_a_text_for_which_there_is_no_memory(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate counts each layer's matrix and three of a channel, 4 bytes × tokens² each; the model never runs."""
    monkeypatch.setattr(tiny_mamba, "forward", lambda *_: pytest.fail("ran"))
    long = torch.zeros(1_000_000, dtype=torch.long)
    gib = 4 * 1e12 / 2**30
    with pytest.raises(
        DataError,
        match=f"1,000,000 tokens .* needs about {6 * gib:,.1f} GiB, .* shorten the text or ask for fewer layers",
    ):
        hidden_attention(tiny_mamba, long)
    with pytest.raises(DataError, match=f"needs about {67 * gib:,.1f} GiB, .* choose fewer channels or heads"):
        unit_attention(tiny_mamba, long, 0)
    sizes = {"SC_PHYS_PAGES": 2, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    with pytest.raises(DataError, match="32 tokens"):
        hidden_attention(tiny_mamba, long[:32], [0])

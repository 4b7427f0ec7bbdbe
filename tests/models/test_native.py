"""Checkpoints in their authors' layouts: logits against a naive reading of the same files and the rwkv package;
refusals by name."""

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.models import wrap_model
from lens_rnn.models.families.mamba2 import norms_groups
from lens_rnn.models.native import is_native_config, read_rwkv4, read_state_spaces
from lens_rnn.models.weights import read_weights
from tests.conftest import make_model
from tests.reference import mamba_ssm

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
Config = dict[str, Any]

# What state-spaces/mamba-130m and mamba2-130m have in config.json, at another size; and a setting of each that is not
# the default.
MAMBA1 = {"d_model": 24, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True}
MAMBA1 |= {"fused_add_norm": True, "pad_vocab_size_multiple": 8}
MAMBA2 = {
    **MAMBA1,
    "d_model": 64,
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
}
MAMBA2 |= {"pad_vocab_size_multiple": 16, "tie_embeddings": True}
SHARED = {"d_state": 6, "d_conv": 3, "expand": 3, "bias": True, "conv_bias": False}
OTHER1 = {
    **MAMBA1,
    "tie_embeddings": False,
    "norm_epsilon": 0.05,
    "ssm_cfg": {"layer": "Mamba1", "dt_rank": 5, "dt_min": 0.002, **SHARED},
}
OTHER2 = {**MAMBA2, "tie_embeddings": False, "vocab_size": 64}
OTHER2["ssm_cfg"] = {
    "layer": "Mamba2",
    "headdim": 16,
    "ngroups": 2,
    "chunk_size": 16,
    "d_ssm": None,
    **SHARED,
    "expand": 2,
}
CONFIGS = {"mamba1": MAMBA1, "mamba1-other": OTHER1, "mamba2": MAMBA2} | (
    {"mamba2-other": OTHER2} if norms_groups() else {}
)


def native_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of mamba_ssm's modules."""
    d, ssm = config["d_model"], config["ssm_cfg"]
    inner, width = ssm.get("expand", 2) * d, ssm.get("d_conv", 4)
    if ssm.get("layer") == "Mamba2":
        heads, around = inner // ssm.get("headdim", 64), 2 * ssm.get("ngroups", 1) * ssm.get("d_state", 128)
        projected, convolved = 2 * inner + around + heads, inner + around
        mixer = {"dt_bias": (heads,), "A_log": (heads,), "D": (heads,), "norm.weight": (inner,)}
    else:
        rank, n = ssm.get("dt_rank", math.ceil(d / 16)), ssm.get("d_state", 16)
        projected, convolved = 2 * inner, inner
        mixer = {"A_log": (inner, n), "D": (inner,), "x_proj.weight": (rank + 2 * n, inner)}
        mixer |= {"dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,)}
    mixer |= {"in_proj.weight": (projected, d), "out_proj.weight": (d, inner), "conv1d.weight": (convolved, 1, width)}
    mixer |= {"in_proj.bias": (projected,), "out_proj.bias": (d,)} if ssm.get("bias", False) else {}
    mixer |= {"conv1d.bias": (convolved,)} if ssm.get("conv_bias", True) else {}
    multiple = config["pad_vocab_size_multiple"]
    vocabulary = math.ceil(config["vocab_size"] / multiple) * multiple
    shapes = {
        "backbone.embedding.weight": (vocabulary, d),
        "backbone.norm_f.weight": (d,),
        "lm_head.weight": (vocabulary, d),
    }
    for i in range(config["n_layer"]):
        shapes |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes |= {f"backbone.layers.{i}.norm.weight": (d,)}
    return shapes


def native_weights(config: Config) -> Weights:
    """Random weights under which every part of a block has a say, the norms' epsilon included."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in native_shapes(config).items():
        t = torch.randn(shape, generator=g)
        if name.endswith(("norm.weight", "norm_f.weight", ".D")):
            t = 1 + 0.3 * t
        elif len(shape) == 2 and not name.endswith("A_log"):
            t = t * shape[1] ** -0.5
        weights[name] = t * 0.02 if "embedding" in name else t
    if config.get("tie_embeddings", True):
        weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    return weights


def write(folder: Path, config: Config, weights: Weights) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- mamba_ssm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_converted_model_computes_what_the_native_files_say(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    weights = native_weights(config)
    model = read_state_spaces(write(tmp_path, config, weights))
    ids = torch.randint(config["vocab_size"], (2, 37), generator=torch.Generator().manual_seed(1))
    expected = mamba_ssm.logits(config, weights, ids)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits(model, ids).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    tied = config.get("tie_embeddings", True)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert model.config.vocab_size == 64
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["mamba1", "mamba2-other"])
def test_the_converted_model_passes_its_adapters_check(name: str, tmp_path: Path) -> None:
    wrap_model(read_state_spaces(write(tmp_path, CONFIGS[name], native_weights(CONFIGS[name]))))


def test_weights_in_other_files_and_formats(tmp_path: Path) -> None:
    """One safetensors file, which holds tied weights once, or several files under an index: the same model."""
    ids = torch.arange(20)[None]
    weights = native_weights(MAMBA1)
    folder = write(tmp_path, MAMBA1, weights)
    expected = logits(read_state_spaces(folder), ids)
    (folder / "pytorch_model.bin").unlink()
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(logits(read_state_spaces(folder), ids), expected)
    (folder / "model.safetensors").unlink()
    halves = {"a.bin": dict(list(weights.items())[:5]), "b.bin": dict(list(weights.items())[5:])}
    for file, half in halves.items():
        torch.save(half, folder / file)
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(read_state_spaces(folder), ids), expected)
    (folder / "b.bin").unlink()
    assert "b.bin cannot be read" in refusal(lambda: read_state_spaces(folder))
    for damage in ({"weight_map": {"x": "../b.bin"}}, {}):
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(damage))
        assert "does not say which file" in refusal(lambda: read_state_spaces(folder))


def test_the_dtype_is_the_callers_or_the_embeddings(tmp_path: Path) -> None:
    """Half-precision checkpoints of mamba_ssm keep A_log and D in float32."""
    weights = {name: t if name.endswith(("A_log", ".D")) else t.half() for name, t in native_weights(MAMBA1).items()}
    folder = write(tmp_path, MAMBA1, weights)
    assert {p.dtype for p in read_state_spaces(folder).parameters()} == {torch.float32}
    assert {p.dtype for p in read_state_spaces(folder, None).parameters()} == {torch.float16}


def test_a_native_configuration_is_told_from_others() -> None:
    assert all(is_native_config(config) for config in CONFIGS.values())
    assert not is_native_config({**MAMBA1, "model_type": "mamba"})
    assert not is_native_config({"d_model": 24, "n_layer": 2})
    assert not is_native_config(["d_model", "n_layer", "ssm_cfg"])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (1, {"attn_layer_idx": [1]}, "attn_layer_idx is [1], which"),
        (1, {"d_intermediate": 48}, "d_intermediate is 48, which"),
        (1, {"rms_norm": False}, "rms_norm is False, which"),
        (1, {"bidirectional": True}, "sets bidirectional, which mamba_ssm's Mamba1 has not"),
        (1, {"ssm_cfg": {"layer": "Mamba3"}}, "the layer of ssm_cfg is 'Mamba3'; Mamba1 and Mamba2 can be read"),
        (1, {"ssm_cfg": {"headdim": 64}}, "sets headdim, which mamba_ssm's Mamba1 has not"),
        (1, {"ssm_cfg": {"expand": 1.5}}, "expand is 1.5, which"),
        (1, {"ssm_cfg": {"conv_bias": "yes"}}, "conv_bias is 'yes', which"),
        (1, {"n_layer": True}, "n_layer is True, which"),
        (1, {"model_type": "mamba"}, "is not of mamba_ssm"),
        (2, {"norm_epsilon": 1e-6}, "norm_epsilon is 1e-06, which"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate is True, which"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim is True, which"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "d_ssm": 64}}, "d_ssm is 64, which"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.1, 0.9]}}, "dt_limit is [0.1, 0.9], which"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "headdim": 48}}, "128 channels are not 1 groups of whole heads of 48"),
        (2, {"ssm_cfg": {"layer": "Mamba2", "ngroups": 4}}, "128 channels are not 4 groups of whole heads of 64"),
    ],
)
def test_a_configuration_that_transformers_cannot_compute(
    kind: int, change: Config, message: str, tmp_path: Path
) -> None:
    config = {1: MAMBA1, 2: MAMBA2}[kind]
    weights = native_weights(config)
    read_state_spaces(write(tmp_path, config, weights))
    assert message in refusal(lambda: read_state_spaces(write(tmp_path, config | change, weights)))


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    weights = native_weights(MAMBA1)
    mixer = "backbone.layers.1.mixer"

    def with_weights(**changes: Tensor | None) -> str:
        changed = {name: t for name, t in (weights | changes).items() if t is not None}
        return refusal(lambda: read_state_spaces(write(tmp_path, MAMBA1, changed)))

    assert f"lacks {mixer}.D;" in with_weights(**{f"{mixer}.D": None})
    assert f"is taken for MambaForCausalLM, which has no place for {mixer}.Q, z" in with_weights(
        **{f"{mixer}.Q": torch.ones(1), "z": torch.ones(1)}
    )
    assert f"{mixer}.D has shape (7,) where (48,) is expected" in with_weights(**{f"{mixer}.D": torch.ones(7)})
    short = torch.ones(61, 24)
    assert "embedding.weight has shape (61, 24) where (64, 24)" in with_weights(
        **{"backbone.embedding.weight": short, "lm_head.weight": short}
    )
    assert "tie_embeddings is true, but lm_head.weight is another" in with_weights(
        **{"lm_head.weight": torch.ones(64, 24)}
    )


def test_a_folder_that_is_not_complete(tmp_path: Path) -> None:
    assert "config.json cannot be read" in refusal(lambda: read_state_spaces(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(lambda: read_state_spaces(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(MAMBA1))
    assert "holds no weights" in refusal(lambda: read_state_spaces(tmp_path))


def test_groups_are_refused_where_transformers_norms_them_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Mamba-2 was in earlier versions of transformers; with one group there is no difference."""
    monkeypatch.setattr("lens_rnn.models.families.mamba2.versions.installed", lambda name: "5.22.0")
    wrap_model(read_state_spaces(write(tmp_path, MAMBA2, native_weights(MAMBA2))))
    message = refusal(lambda: wrap_model(read_state_spaces(write(tmp_path, OTHER2, native_weights(OTHER2)))))
    assert "model type 'mamba2' with 2 groups of heads: transformers 5.22.0" in message
    assert "install 5.23.0 or newer" in message


# --- RWKV-4 -----------------------------------------------------------------------------------------------------------

OFFICIAL = (("rwkv.embeddings", "emb"), ("rwkv.", ""), ("attention", "att"), ("feed_forward", "ffn"), ("pre_ln", "ln0"))
OFFICIAL += (("mix_key", "mix_k"), ("mix_value", "mix_v"), ("mix_receptance", "mix_r"))


@pytest.fixture
def official() -> Weights:
    """Random RWKV-4 weights with the official names, of 8 blocks: transformers halves the residual stream after the
    sixth."""
    weights = {}
    for name, tensor in make_model("rwkv4").state_dict().items():
        for theirs, ours in OFFICIAL:
            name = name.replace(theirs, ours)
        weights[name] = tensor
    return weights


def package_logits(weights: Weights, ids: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """(seq, vocabulary) as the rwkv package computes them, which reads its settings when it is imported."""
    for variable in ("RWKV_JIT_ON", "RWKV_CUDA_ON", "RWKV_V7_ON"):
        monkeypatch.setenv(variable, "0")
    pytest.importorskip("rwkv")
    monkeypatch.delitem(sys.modules, "rwkv.model", raising=False)
    torch.save(weights, folder / "model.pth")
    package = importlib.import_module("rwkv.model")
    monkeypatch.setattr(package.gc, "collect", lambda: 0)  # it collects after every tensor
    model = package.RWKV(model=str(folder / "model"), strategy="cpu fp32")
    return model.forward(ids, None, full_output=True)[0]


def test_the_model_of_official_names_is_that_of_transformers(official: Weights) -> None:
    ids = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(1))
    kept = {name: tensor.clone() for name, tensor in official.items()}
    model = read_rwkv4(official, context_length=64)
    torch.testing.assert_close(logits(model, ids), logits(make_model("rwkv4").eval(), ids), rtol=0, atol=1e-5)
    assert all(torch.equal(official[name], tensor) for name, tensor in kept.items()), (
        "running the model changed the caller's tensors"
    )
    assert model.config.context_length == 64
    assert not model.training
    wrap_model(model)


def test_random_weights_against_the_rwkv_package(
    official: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(96, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = package_logits(official, ids, tmp_path, monkeypatch)
    assert expected.std() > 0.1
    assert (logits(read_rwkv4(official), torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4
    model = read_rwkv4(official)
    model.config.rescale_every = (
        0  # without transformers' halving, to which the norms' epsilon is not indifferent, nearly equal
    )
    assert (logits(model, torch.tensor([ids]))[0] - expected).abs().max() <= 1e-5


def test_a_trained_file_against_the_rwkv_package(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = read_weights(test_data / "rwkv_tiny/tiny-rwkv-4v0-660K.pth")
    ids = list(b"It was the best of times, it was the wor")
    expected = package_logits(dict(weights), ids, tmp_path, monkeypatch)
    assert (logits(read_rwkv4(weights), torch.tensor([ids]))[0] - expected).abs().max() <= 1e-4


def test_a_trained_file_against_stored_logits(test_data: Path) -> None:
    model = read_rwkv4(read_weights(test_data / "rwkv_tiny/tiny-rwkv-4v0-660K.pth"))
    expected = torch.from_numpy(np.fromfile(test_data / "rwkv_tiny/expected-logits-4v0-660K.bin", dtype="<f4"))
    assert (logits(model, torch.tensor([list(b'"in')]))[0, -1] - expected).abs().max() <= 1e-4


def test_decays_stay_in_float32(official: Weights) -> None:
    """As transformers keeps them; the other tensors take the dtype that is asked for, or the embedding's."""
    half = {name: tensor.bfloat16() for name, tensor in official.items()}
    assert {p.dtype for p in read_rwkv4(half).parameters()} == {torch.float32}
    for name, parameter in read_rwkv4(half, dtype=None).named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith(("time_decay", "time_first")) else torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("emb.weight", None, "it.pth lacks emb.weight;"),
        ("blocks.0.ffn.key.weight", None, "it.pth lacks blocks.0.ffn.key.weight;"),
        ("blocks.3.att.time_mix_v", None, "it.pth is taken for RWKV-4 and lacks blocks.3.att.time_mix_v;"),
        ("blocks.0.ln0.bias", None, "it.pth is taken for RWKV-4 and lacks blocks.0.ln0.bias;"),
        (
            "blocks.3.att.gate.weight",
            torch.ones(2, 2),
            "it.pth is taken for RWKV-4, which has no place for blocks.3.att.gate.weight",
        ),
        ("blocks.99.ln1.weight", torch.ones(32), "blocks.8.att.receptance.weight and 15 more;"),
        ("emb.weight", torch.ones(96), "it.pth: emb.weight has shape (96,), not two dimensions"),
        (
            "blocks.1.att.key.weight",
            torch.ones(48, 32),
            "it.pth: blocks.1.att.key.weight has shape (48, 32) where (32, 32) is expected",
        ),
        (
            "blocks.1.att.time_mix_k",
            torch.ones(1, 1, 31),
            "blocks.1.att.time_mix_k has shape (1, 1, 31) where (1, 1, 32) is expected",
        ),
    ],
)
def test_official_weights_that_do_not_fit(official: Weights, name: str, tensor: Tensor | None, message: str) -> None:
    changed = official | {name: tensor}
    if tensor is None:
        del changed[name]
    assert message in refusal(lambda: read_rwkv4(changed, where="it.pth"))


def test_shapes_without_dimensions_of_one(official: Weights) -> None:
    squeezed = {name: tensor.squeeze() for name, tensor in official.items()}
    ids = torch.arange(12)[None]
    assert torch.equal(logits(read_rwkv4(squeezed), ids), logits(read_rwkv4(official), ids))

"""Checkpoints as their authors publish them, turned into models of transformers: folders of mamba_ssm, and official
RWKV-4 weights.

Names and configuration change, values do not. What the classes of transformers cannot compute is refused by name. Facts
from github.com: state-spaces/mamba (config_mamba.py, mixer_seq_simple.py, mamba_simple.py, mamba2.py), and from the
rwkv package.
"""

from collections.abc import Callable
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

from lens_rnn.errors import ModelError
from lens_rnn.files import read_json
from lens_rnn.models.weights import Weights, fill, read_weights

import torch
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"  # mamba_ssm's names
_GATED_NORM_EPSILON = 1e-5  # fixed in mamba_ssm's Mamba-2, where transformers uses the blocks' own


class _Setting(NamedTuple):
    theirs: str
    """Its name in transformers."""
    default: Any
    """Of mamba_ssm, which is often another than that of transformers."""
    allows: Callable[[Any], bool]


class _Layer(NamedTuple):
    """One kind of mixer: what its ssm_cfg may hold."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    settings: dict[str, _Setting]
    built_in: dict[str, Any]
    """Settings for which transformers knows this value only."""


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_no_limit(value: Any) -> bool:
    """Whether dt is left as it is: one token at a time, the torch code of transformers and of mamba_ssm know no
    other."""
    return isinstance(value, list | tuple) and [*value] == [0, float("inf")]


def _shared(d_state: int) -> dict[str, _Setting]:
    return {
        "d_state": _Setting("state_size", d_state, _is_size),
        "d_conv": _Setting("conv_kernel", 4, _is_size),
        "expand": _Setting("expand", 2, _is_size),
        "bias": _Setting("use_bias", False, _is_switch),
        "conv_bias": _Setting("use_conv_bias", True, _is_switch),
    }


_LAYERS = {
    "Mamba1": _Layer(
        MambaConfig,
        MambaForCausalLM,
        {
            **_shared(16),
            "dt_rank": _Setting("time_step_rank", "auto", lambda value: value == "auto" or _is_size(value)),
        },
        {},
    ),
    "Mamba2": _Layer(
        Mamba2Config,
        Mamba2ForCausalLM,
        {
            **_shared(128),
            "headdim": _Setting("head_dim", 64, _is_size),
            "ngroups": _Setting("n_groups", 1, _is_size),
            "chunk_size": _Setting("chunk_size", 256, _is_size),
            "dt_limit": _Setting("time_step_limit", (0.0, float("inf")), _is_no_limit),
        },
        {"d_ssm": None, "D_has_hdim": False, "rmsnorm": True, "norm_before_gate": False},
    ),
}
# How training starts, and which of two equal ways computes the result.
_WITHOUT_EFFECT = {"layer", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init"}
_WITHOUT_EFFECT |= {"use_fast_path", "use_mem_eff_path", "process_group", "sequence_parallel"}
_TOP = {
    "d_model",
    "n_layer",
    "vocab_size",
    "pad_vocab_size_multiple",
    "tie_embeddings",
    "ssm_cfg",
    "d_intermediate",
    "attn_layer_idx",
}
_TOP |= {"attn_cfg", "rms_norm", "norm_epsilon", "residual_in_fp32", "fused_add_norm", "initializer_cfg"}


def is_native_config(config: object) -> bool:
    """Whether what a config.json holds is what the mamba_ssm package writes."""
    return (
        isinstance(config, dict) and {"d_model", "n_layer", "ssm_cfg"} <= config.keys() and "model_type" not in config
    )


def read_state_spaces(folder: Path, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """The Mamba-1 or Mamba-2 of a folder that mamba_ssm wrote, on the CPU in evaluation mode; None as dtype: that of
    the stored embedding.

    Raises ModelError, naming the setting or the tensor, for what is missing, damaged, does not fit, or transformers has
    no place for.
    """
    config = _read_json(folder / "config.json")
    if not is_native_config(config):
        raise ModelError(
            f"{folder / 'config.json'} is not of mamba_ssm: it needs d_model, n_layer and ssm_cfg, and has no "
            "model_type"
        )
    layer, settings = _settings(config, str(folder / "config.json"))
    weights = _read_folder(folder)
    if settings["tie_word_embeddings"] and _EMBEDDING in weights:
        head = weights.setdefault(_HEAD, weights[_EMBEDDING])
        if not torch.equal(head, weights[_EMBEDDING]):
            raise ModelError(f"{folder}: tie_embeddings is true, but {_HEAD} is another tensor than {_EMBEDDING}")
    with torch.device("meta"):
        model: Any = layer.model(layer.config(**settings))
    fill(
        model,
        weights,
        str(folder),
        dtype,
        official=lambda name: name.replace("backbone.embeddings.", "backbone.embedding."),
    )
    model.tie_weights()
    return model.eval()


def read_rwkv4(
    weights: Weights,
    context_length: int = 1024,
    dtype: torch.dtype | None = torch.float32,
    where: str = "the RWKV-4 file",
) -> PreTrainedModel:
    """The model of official RWKV-4 weights, on the CPU in evaluation mode.

    As transformers does it, the residual stream is halved every 6 blocks, which the official code does in float16 only:
    logits agree up to the norms' epsilon. context_length: most tokens in one pass on a GPU. dtype: None is that of the
    stored embedding; decays are float32 in any case. where: the file's name, for errors.

    Raises ModelError, naming the tensor, where one is missing, has no place, or does not fit the others.
    """
    vocab_size, d_model = _matrix(weights, "emb.weight", where)
    config = RwkvConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,  # and attention_hidden_size: the state that transformers keeps has no other width
        intermediate_size=_matrix(weights, "blocks.0.ffn.key.weight", where)[0],
        num_hidden_layers=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        context_length=context_length,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = RwkvForCausalLM(config)
    fill(model, weights, where, dtype, "RWKV-4", _rwkv4_name)
    return model.eval()


def _settings(config: dict[str, Any], where: str) -> tuple[_Layer, dict[str, Any]]:
    """The kind of mixer, and the arguments of its configuration in transformers."""

    def take(holder: dict[str, Any], key: str, default: Any, allows: Callable[[Any], bool]) -> Any:
        value = holder.get(key, default)
        if not allows(value):
            raise ModelError(f"{where}: {key} is {value!r}, which transformers' {kind} cannot have")
        return value

    def is_epsilon(value: Any) -> bool:
        return isinstance(value, float) and value > 0 and (kind == "Mamba1" or value == _GATED_NORM_EPSILON)

    ssm = config["ssm_cfg"] or {}
    kind = ssm.get("layer", "Mamba1") if isinstance(ssm, dict) else None
    if kind not in list(_LAYERS):
        raise ModelError(f"{where}: the layer of ssm_cfg is {kind!r}; {' and '.join(_LAYERS)} can be read")
    layer = _LAYERS[kind]
    if unknown := sorted(
        (config.keys() - _TOP) | (ssm.keys() - _WITHOUT_EFFECT - layer.settings.keys() - layer.built_in.keys())
    ):
        raise ModelError(
            f"{where} sets {', '.join(unknown)}, which mamba_ssm's {kind} has not; remove what changes no output"
        )
    take(config, "attn_layer_idx", [], lambda value: not value)
    take(config, "d_intermediate", 0, lambda value: value == 0)
    take(config, "rms_norm", True, lambda value: value is True)
    d_model, multiple = take(config, "d_model", None, _is_size), take(config, "pad_vocab_size_multiple", 8, _is_size)
    arguments = {
        "hidden_size": d_model,
        "num_hidden_layers": take(config, "n_layer", None, _is_size),
        "vocab_size": -(-take(config, "vocab_size", 50_277, _is_size) // multiple) * multiple,
        "layer_norm_epsilon": take(config, "norm_epsilon", 1e-5, is_epsilon),
        "residual_in_fp32": take(config, "residual_in_fp32", True, _is_switch),
        "tie_word_embeddings": take(config, "tie_embeddings", True, _is_switch),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    for key, setting in layer.settings.items():
        arguments[setting.theirs] = take(ssm, key, setting.default, setting.allows)
    for key, value in layer.built_in.items():
        take(ssm, key, value, partial(eq, value))
    if kind == "Mamba2":
        inner, head, groups = arguments["expand"] * d_model, arguments["head_dim"], arguments["n_groups"]
        if inner % (head * groups):
            raise ModelError(
                f"{where}: {inner} channels are not {groups} groups of whole heads of {head}; correct ssm_cfg"
            )
        arguments["num_heads"] = inner // head
        arguments["time_step_limit"] = tuple(float(limit) for limit in arguments["time_step_limit"])
    return layer, arguments


def _rwkv4_name(name: str) -> str:
    """The official name of one of RwkvForCausalLM's tensors."""
    name = name.removeprefix("rwkv.").replace("embeddings.", "emb.").replace("pre_ln.", "ln0.")
    name = name.replace(".attention.", ".att.").replace(".feed_forward.", ".ffn.")
    for word in ("key", "value", "receptance"):
        name = name.replace(f"time_mix_{word}", f"time_mix_{word[0]}")
    return name


def _matrix(weights: Weights, name: str, where: str) -> tuple[int, int]:
    """The shape of a matrix that gives sizes."""
    if name not in weights:
        raise ModelError(f"{where} lacks {name}; the checkpoint is incomplete, or no RWKV-4")
    if weights[name].ndim != 2:
        raise ModelError(f"{where}: {name} has shape {tuple(weights[name].shape)}, not two dimensions")
    rows, columns = weights[name].shape
    return rows, columns


def _read_folder(folder: Path) -> Weights:
    """All tensors of a folder, in one file or, with an index, in several; mamba_ssm itself reads pytorch_model.bin."""
    for name in ("pytorch_model.bin", "model.safetensors"):
        if (folder / name).exists():
            return dict(read_weights(folder / name))
        if (index := folder / f"{name}.index.json").exists():
            files = _read_json(index).get("weight_map")
            if not isinstance(files, dict) or not all(
                isinstance(file, str) and Path(file).name == file for file in files.values()
            ):
                raise ModelError(f"{index} does not say which file of its folder holds which tensor")
            return {
                tensor: value
                for file in sorted(set(files.values()))
                for tensor, value in read_weights(folder / file).items()
            }
    raise ModelError(
        f"{folder} holds no weights: neither pytorch_model.bin nor model.safetensors, nor an index of several files"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, ModelError)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from None

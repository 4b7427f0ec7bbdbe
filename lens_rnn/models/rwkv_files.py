"""Official RWKV weight files: which version they hold, which sizes, and the model they make. Every mismatch is
named."""

from collections.abc import Mapping

from lens_rnn.errors import ModelError
from lens_rnn.models.families.rwkv import RWKVForCausalLM
from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.models.weights import Weights, fill

import torch
from torch import Tensor

SUFFIXES = (".pth", ".safetensors")


def version_of(weights: Mapping[str, Tensor], where: str) -> str:
    """4, 5.0, 5.1, 5.2, 6 or 7, by the names of the tensors. Raises ModelError, naming what is odd, for anything
    else."""
    if "emb.weight" not in weights or "blocks.0.att.key.weight" not in weights:
        lacking = "emb.weight" if "emb.weight" not in weights else "blocks.0.att.key.weight"
        raise ModelError(f"{where} is not an RWKV: it has no tensor {lacking}")
    names = {name.removeprefix("blocks.0.att.") for name in weights if name.startswith("blocks.0.att.")}
    if "r_k" in names or "x_r" in names:
        return "7"
    if any(name.startswith("time_maa_") for name in names):
        return "6"
    if "ln_x.weight" not in names:
        if "time_mix_k" not in names:
            raise ModelError(f"{where} is an RWKV of an unknown version: blocks.0.att has {', '.join(sorted(names))}")
        return "4"
    if "time_mix_k" not in names or "time_decay" not in names:
        raise ModelError(f"{where} is an RWKV of an unknown version: blocks.0.att has {', '.join(sorted(names))}")
    if "gate.weight" not in names:
        return "5.0"
    return "5.2" if weights["blocks.0.att.time_decay"].shape[1:].numel() > 1 else "5.1"


def read_rwkv(weights: Weights, where: str, dtype: torch.dtype | None = torch.float32) -> RWKVForCausalLM:
    """The model of an RWKV-5, 6 or 7 file, on the CPU in evaluation mode. dtype: None is that of the stored embedding.

    Raises ModelError, naming the tensor, where one is missing, has no place, or does not fit the others.
    """
    version = version_of(weights, where)
    weights = _as_modules_have_them(weights, version)
    config = _config(weights, version, where)
    with torch.device("meta"):
        model = RWKVForCausalLM(config)
    fill(model, weights, where, dtype, f"RWKV-{version}")
    return model


def _as_modules_have_them(weights: Weights, version: str) -> Weights:
    """With the names of families/rwkv.py, where files of one version differ."""
    weights = dict(weights)
    for name in list(weights):
        if name.endswith(".att.time_first"):  # older files keep the logarithm of the bonus
            weights[name.replace("time_first", "time_faaaa")] = weights.pop(name).float().exp()
        elif version == "7" and name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"):
            del weights[name]  # the first block has no use for them
    return weights


def _config(weights: Weights, version: str, where: str) -> RWKVConfig:
    """The sizes, read off the shapes."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in weights:
            raise ModelError(f"{where} is taken for RWKV-{version} and lacks {name}; the checkpoint is incomplete")
        sizes = tuple(weights[name].shape)
        if len(sizes) != dims:
            raise ModelError(f"{where}: {name} has shape {sizes}, not {dims} dimensions")
        return sizes

    vocab_size, d_model = shape("emb.weight", 2)
    inner, _ = shape("blocks.0.att.key.weight", 2)
    bonus = "blocks.0.att.r_k" if version == "7" else "blocks.0.att.time_faaaa"
    if bonus not in weights:
        raise ModelError(f"{where} is taken for RWKV-{version} and lacks {bonus}; the checkpoint is incomplete")
    heads = weights[bonus].shape[0] if weights[bonus].ndim else 1
    if inner % heads:
        raise ModelError(f"{where}: blocks.0.att.key.weight has {inner} rows, which {heads} heads cannot share")
    lora = {}
    if version == "6":
        lora = {
            "time_maa": shape("blocks.0.att.time_maa_w1", 2)[1] // 5,
            "time_decay": shape("blocks.0.att.time_decay_w1", 2)[1],
        }
    elif version == "7":
        layers = {"w": 0, "a": 0, "g": 0} | ({"v": 1} if "blocks.1.att.v1" in weights else {})
        lora = {"v": 1} | {name: shape(f"blocks.{layer}.att.{name}1", 2)[1] for name, layer in layers.items()}
    blocks = {
        int(name.split(".")[1]) for name in weights if name.startswith("blocks.") and name.split(".")[1].isdigit()
    }
    return RWKVConfig(
        version=version,
        vocab_size=vocab_size,
        hidden_size=d_model,
        attention_size=inner,
        head_size=inner // heads,
        intermediate_size=shape("blocks.0.ffn.key.weight", 2)[0],
        num_hidden_layers=max(blocks) + 1,
        lora=lora,
    )

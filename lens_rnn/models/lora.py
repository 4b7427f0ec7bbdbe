"""Which linear maps of a model take a low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from collections import Counter

from lens_rnn.models.adapter import ModelAdapter

from torch import nn
from transformers.pytorch_utils import Conv1D  # the linear map of GPT-2

_MIXER_INPUT = "in_proj"


def lora_maps(adapter: ModelAdapter) -> list[str]:
    """Names of the linear maps that take a low-rank adapter: those that the model's family names, as the last part of
    theirs; else the full names of all in the blocks, but for two kinds.

    In a Mamba mixer only the map at its entrance: kernels are handed the weights of the others, past an adapter around
    them, which would never be trained on such a path (and peft refuses some). And no map that shares its weight with
    another: two adapters merged into one weight are not what was trained.
    """
    if adapter.lora_modules:
        return [*adapter.lora_modules]
    names = {module: name for name, module in adapter.model.named_modules()}
    users = Counter(id(module.weight) for module in names if _is_linear(module))
    blocks = [module for block in adapter.blocks for module in block.modules()]
    passed_by = {
        inner for mixer in blocks if _is_mamba(mixer) for name, inner in mixer.named_children() if name != _MIXER_INPUT
    }
    maps = [
        module for module in blocks if _is_linear(module) and module not in passed_by and users[id(module.weight)] == 1
    ]
    return [*dict.fromkeys(names[module] for module in maps)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_mamba(module: nn.Module) -> bool:
    """Whether a module is a Mamba mixer, of either kind, by the parameters that it holds itself: transition and
    skip."""
    return {"A_log", "D"} <= {name for name, _ in module.named_parameters(recurse=False)}

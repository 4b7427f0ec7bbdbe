"""How the blocks of a model mix tokens, as causal matrices: what views ask of any model, hybrids block by block.

A pass by the model's own code is watched: what the maps of a block's mixer return is enough to compute its recurrence's
matrix, and what its norm is given, or its last map, shows whether that matrix is right. Softmax attention is what
transformers returns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from lens_rnn.errors import ModelError
from lens_rnn.models import gated_delta, mamba2_mixer

import torch
from torch import Tensor, nn

Unit = Literal["channel", "head"]
RECURRENCE, SOFTMAX = "recurrence", "attention"
"""Kinds of token mixing: of a family with a file of its own, and of a transformer. Hybrids name theirs."""


class Mixing(NamedTuple):
    """The token mixing of one block over one text."""

    layer: int
    kind: str
    """RECURRENCE, SOFTMAX, or of hybrids "mamba-2" or "gated delta net"."""
    unit: Unit
    units: int
    """How many channels or heads there are."""
    weights: Callable[[Tensor], Tensor]
    """From indices of channels or heads (chosen) to their matrices (chosen, tokens, tokens), float32; row i is the
    token that reads."""
    values: Tensor | None
    """What is read (tokens, units, width); None where it is not known, for softmax attention."""
    outputs: Tensor | None
    """What the block's own code makes of them (tokens, units, width)."""
    beside: Tensor | float = 0.0
    """What is in the outputs beside weights @ values: D x of a Mamba-2 inside a hybrid."""


class Mixer(NamedTuple):
    """A module of a block that mixes tokens by a recurrence that has a matrix."""

    kind: str
    module: nn.Module


def mixer_of(block: nn.Module) -> Mixer | None:
    """The first module of a block whose recurrence is known; None where there is none."""
    for module in block.modules():
        if mamba2_mixer.is_mamba2(module):
            return Mixer("mamba-2", module)
        if gated_delta.is_gated_delta(module):
            return Mixer("gated delta net", module)
    return None


class Seen(NamedTuple):
    """What one module was given and what it returned, in one pass."""

    inputs: tuple[Any, ...]
    output: Any


@contextmanager
def watching(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Seen]]:
    """Inside it, what each module was last given and returned, by its name in `modules`. The hooks go, also after an
    error."""
    seen: dict[Any, Seen] = {}

    def keep(name: Any) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, inputs, output: seen.update({name: Seen(inputs, output)})

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def recurrences(blocks: nn.ModuleList, layers: Sequence[int], run: Callable[[], object]) -> Iterator[Mixing]:
    """The recurrences of some blocks, in a pass that `run` makes over one text."""
    mixers = {layer: mixer for layer in layers if (mixer := mixer_of(blocks[layer])) is not None}
    watched = {(layer, name): part for layer, mixer in mixers.items() for name, part in mixer.module.named_children()}
    with watching(watched) as seen:
        run()
    for layer, mixer in mixers.items():
        of_layer = {name: seen[layer, name] for at, name in seen if at == layer}
        yield (_mamba2 if mixer.kind == "mamba-2" else _gated_delta)(layer, mixer, of_layer)


def _mamba2(layer: int, mixer: Mixer, seen: Mapping[str, Seen]) -> Mixing:
    recurrence, skipped, gate = mamba2_mixer.read(mixer.module, seen["in_proj"].output)
    theirs = _given_to_norm(seen, recurrence.outputs)
    if theirs is None:  # no norm: the gate is all that lies between the recurrence and the last map
        gated = torch.nn.functional.silu(gate.float())
        theirs = (seen["out_proj"].inputs[0][0].float() / gated.where(gated != 0, 1)).view_as(recurrence.outputs)
    return Mixing(
        layer, mixer.kind, "head", recurrence.outputs.shape[1], recurrence.weights, recurrence.values, theirs, skipped
    )


def _gated_delta(layer: int, mixer: Mixer, seen: Mapping[str, Seen]) -> Mixing:
    outputs = {
        name: part.output[0] for name, part in seen.items() if isinstance(part.output, Tensor) and part.output.ndim >= 3
    }
    delta = gated_delta.read(mixer.module, outputs)
    values = delta.v.transpose(0, 1)  # (tokens, heads, width)
    theirs = _given_to_norm(seen, values)
    if theirs is None:
        raise ModelError(f"block {layer} has a gated delta net whose norm is not called as a module")
    return Mixing(layer, mixer.kind, "head", len(delta.k), delta.weights, values, theirs)


def _given_to_norm(seen: Mapping[str, Seen], like: Tensor) -> Tensor | None:
    """What the norm after the recurrence was given, in the shape of `like`."""
    norm = next((seen[name] for name in ("norm", "o_norm") if name in seen), None)
    return None if norm is None else norm.inputs[0].float().reshape(like.shape)


@torch.no_grad()
def softmax_attention(returned: Sequence[Any], layers: Sequence[int], blocks: int) -> Iterator[Mixing]:
    """The softmax attention of all blocks that have it, `layers`, rising, of so many, from what a pass over one text
    returned of it."""
    matrices = [t for t in returned if isinstance(t, Tensor) and t.ndim == 4 and t.shape[2] == t.shape[3]]
    if len(returned) == blocks and len(layers) < blocks:
        matrices = [returned[layer] for layer in layers]  # others return something too, which is no attention
    if len(matrices) != len(layers):
        raise ModelError(
            f"{len(layers)} blocks have attention, and transformers returns the matrices of {len(matrices)}"
        )
    for layer, matrix in zip(layers, matrices, strict=True):
        heads = matrix[0].float()
        yield Mixing(layer, SOFTMAX, "head", len(heads), heads.__getitem__, None, None)

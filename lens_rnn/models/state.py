"""The recurrent state of a model: what it remembers of the tokens it has read, as tensors to look at, to copy and to
change."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

BlockState = dict[str, Tensor]
"""What one block remembers, by name: tensors with the batch first."""


def is_short(name: str) -> bool:
    """Whether a tensor of a block's state is what a short convolution or a token shift remembers: a few tokens."""
    return name.startswith("conv") or name.endswith("shift")


@dataclass
class RecurrentState:
    """State after some tokens. `ModelAdapter.advance` makes one, and continues from one without changing it.

    Change a copy, `state.clone()`: `copy.blocks[3]["ssm"] += vector`, or put another tensor of the same shape in its
    place.
    """

    blocks: list[BlockState]
    """One a block. Names that hold recurrent memory are the adapter's `state_names`; a block of attention has `keys`
    and `values`."""
    tokens: int
    """How many tokens were read."""
    carrier: Any = None
    """What a model of transformers keeps besides its tensors, opaque; of no use without them."""

    @property
    def batch(self) -> int:
        """How many sequences it is the state of."""
        return next(len(tensor) for block in self.blocks for tensor in block.values())

    @property
    def names(self) -> frozenset[str]:
        """The names of all its tensors."""
        return frozenset(name for block in self.blocks for name in block)

    def clone(self) -> Self:
        """A copy that shares no memory with this one."""
        return type(self)(
            [{name: tensor.clone() for name, tensor in block.items()} for block in self.blocks],
            self.tokens,
            self.carrier,
        )

    def repeat(self, times: int) -> Self:
        """The state for a batch in which every sequence stands `times` times in a row."""
        repeated = [
            {name: tensor.repeat_interleave(times, 0) for name, tensor in block.items()} for block in self.blocks
        ]
        return type(self)(repeated, self.tokens, self.carrier)


def combined(own: BlockState, other: BlockState, keep: float, multiplier: float) -> BlockState:
    """A block's state whose recurrent memory is keep × its own + multiplier × another's; all else is its own.

    RWKV-4's sums are relative to exp(max), and are combined as what they stand for.
    """
    mixed = dict(own)
    if {"num", "den", "max"} <= own.keys():
        top = torch.maximum(own["max"], other["max"])
        shares = (keep * torch.exp(own["max"] - top), multiplier * torch.exp(other["max"] - top))
        sums = {name: shares[0] * own[name] + shares[1] * other[name] for name in ("num", "den")}
        return mixed | sums | {"max": top}
    for name in own:
        if not is_short(name) and name not in ("keys", "values"):
            mixed[name] = keep * own[name] + multiplier * other[name]
    return mixed

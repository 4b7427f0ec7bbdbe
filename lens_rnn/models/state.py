"""The recurrent state of a model: what it remembers of the tokens it has read, as tensors to look at, to copy and to change."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass
class RecurrentState:
    """State after some tokens. `ModelAdapter.advance` makes one, and continues from one without changing it.

    Change a copy, `state.clone()`: `copy["ssm"][3] += vector`, or put another tensor of the same shape in its place.
    """

    tensors: dict[str, list[Tensor | None]]
    """By name (`ModelAdapter.state_names`): one tensor a block, the batch first; None where a block of a hybrid model has no such state."""
    tokens: int
    """How many tokens were read."""
    rest: Any = None
    """What a hybrid model keeps besides, its attention's keys and values: copied with the state, not meant to be changed."""

    def __getitem__(self, name: str) -> list[Tensor | None]:
        return self.tensors[name]

    @property
    def batch(self) -> int:
        """How many sequences it is the state of."""
        return next(len(t) for layers in self.tensors.values() for t in layers if t is not None)

    def of(self, name: str) -> list[Tensor]:
        """The tensors of that name, of the blocks that have one."""
        return [t for t in self.tensors[name] if t is not None]

    def clone(self) -> Self:
        """A copy that shares no memory with this one."""
        tensors = {name: [None if t is None else t.clone() for t in layers] for name, layers in self.tensors.items()}
        return type(self)(tensors, self.tokens, deepcopy(self.rest))

    def repeat(self, times: int) -> Self:
        """The state for a batch in which every sequence stands `times` times in a row. Refused (ValueError) where `rest` is kept."""
        if self.rest is not None:
            raise ValueError("the state of a hybrid model cannot be repeated; run its prefix in a batch")
        tensors = {name: [None if t is None else t.repeat_interleave(times, 0) for t in layers] for name, layers in self.tensors.items()}
        return type(self)(tensors, self.tokens)

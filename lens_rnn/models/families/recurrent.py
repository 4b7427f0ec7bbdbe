"""What the recurrent families share: a pass over tokens by their own equations, from a recurrent state and to one.

Nothing here or in the families' files goes through a cache of transformers or a keyword of its modules: weights are
found by their names in checkpoints, sizes in the configuration. So a model reads on from any state on any device, and a
release that moves its caches changes nothing.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import mul
from typing import ClassVar, Literal, NamedTuple

from lens_rnn.models.adapter import FUSED, Forward, ModelAdapter
from lens_rnn.models.mixing import RECURRENCE, Mixing
from lens_rnn.models.recurrence import Recurrence
from lens_rnn.models.shapes import Hidden, Ids
from lens_rnn.models.sharding import gathered
from lens_rnn.models.state import BlockState, RecurrentState, is_short

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Rules(NamedTuple):
    """How the parts of a block hand back gradients. Every choice computes the same values; by default gradients are
    what they are."""

    norm: Callable[[nn.Module, Tensor], Tensor] = _call
    silu: Callable[[Tensor], Tensor] = F.silu
    held: Callable[[Tensor], Tensor] = _as_it_is
    """Of what decides how the recurrence reads and writes."""
    gated: Callable[[Tensor, Tensor], Tensor] = mul
    """Of the recurrence's output and its gate."""


PLAIN = Rules()


@dataclass
class Passage:
    """What all blocks of one pass over some tokens share."""

    seen: int = 0
    """Tokens that were read before."""
    keeps: bool = True
    """Whether the state after these tokens is asked for."""
    rules: Rules = PLAIN
    first_values: Tensor | None = None
    """The values of the first block, into which later blocks of RWKV-7 mix theirs."""


class RecurrentAdapter(ModelAdapter):
    """A family whose equations are in its file. On the CPU in float32 whole texts are read by them; elsewhere by
    transformers' own code, with the kernels that it finds, and only reading on from a state is ours."""

    attention_unit: ClassVar[Literal["channel", "head"] | None] = None
    """What `recurrence` has a matrix for; None where the family has no such view."""
    is_ours: ClassVar[bool] = False
    """Whether the model's own code is this package's, so that there is no other to fall back to."""
    takes_rules: ClassVar[bool] = False
    """Whether `run_block` heeds `Passage.rules`."""

    @property
    def fused(self) -> bool:
        """Whether whole texts are read by the equations here."""
        return self.is_ours or (FUSED not in self.off and self.device.type == "cpu" and self.dtype == torch.float32)

    @abstractmethod
    def run_block(
        self, index: int, x: Hidden, before: BlockState | None, passage: Passage
    ) -> tuple[Hidden, BlockState]:
        """The output of block `index` for x, and its state after them.

        before: its state before them, None for that of no token. A state that is returned shares no memory with the one
        that was given, and none with x. Where the passage keeps no state, an empty one may be returned.
        """

    @torch.no_grad()
    def forget(self, index: int, x: Hidden, before: BlockState, after: BlockState, passage: Passage) -> BlockState:
        """The state of block `index` after x, if x had not been written to its recurrent memory: what was there has
        decayed as it did, and what x put in is not there.

        x (batch, tokens, d_model): what the block is given. before, after: its states before and after x. passage: one
        for all blocks, in their order, as when x was read.

        A linear recurrence is the sum of what was there before, decayed, and what was put in, which is what it comes to
        from an empty memory.
        """
        memory = [name for name in self.memory_names if name in after]
        empty = before | {name: torch.zeros_like(before[name]) for name in memory}
        _, written = self.run_block(index, x, empty, passage)
        return after | {name: after[name] - written[name] for name in memory}

    @property
    def memory_names(self) -> tuple[str, ...]:
        """Names of the recurrent memory in a block's state: not what a convolution or token shift remembers."""
        return tuple(name for name in self.state_names if not is_short(name))

    def embed(self, input_ids: Ids) -> Hidden:
        """What enters the first block."""
        return self.model.get_input_embeddings()(input_ids)

    def run(self, input_ids: Ids) -> Forward:
        return self.read(input_ids, Passage(keeps=False))[0] if self.fused else super().run(input_ids)

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        passage = Passage(seen=state.tokens if state else 0)
        forward, blocks = self.read(input_ids, passage, state.blocks if state else None)
        return forward, RecurrentState(blocks, passage.seen + input_ids.shape[1])

    def read(
        self, input_ids: Ids, passage: Passage, before: list[BlockState] | None = None
    ) -> tuple[Forward, list[BlockState]]:
        """A pass by the equations of the family: from the blocks' states `before`, None for those of no token, to the
        states after."""
        x = self.embed(input_ids)
        hidden, after = [], []
        for i in range(len(self.blocks)):
            if not self.states_after_blocks:
                x = self.edits.apply(i, x)
                hidden.append(x)
            with gathered(self.blocks[i]) if self.sharded else nullcontext():
                x, state = self.run_block(i, x, before[i] if before else None, passage)
            after.append(state)
            if self.states_after_blocks:
                x = self.edits.apply(i, x)
                hidden.append(x)
        return Forward(tuple(hidden), x, self.final_norm(x)), after

    def block_inputs(self, input_ids: Ids) -> list[Hidden]:
        """What each block is given in a pass over input_ids."""
        hidden = self.forward(input_ids).hidden_states
        return [self.embed(input_ids), *hidden[:-1]] if self.states_after_blocks else [*hidden]

    @property
    def mixing_kinds(self) -> tuple[tuple[str, ...], ...]:
        return ((RECURRENCE,) if self.attention_unit else (),) * len(self.blocks)

    def mixings(self, input_ids: Tensor, layers: Sequence[int]) -> Iterator[Mixing]:
        if not self.attention_unit:
            yield from super().mixings(input_ids, layers)
            return
        inputs = self.block_inputs(input_ids)
        for layer in layers:
            weights, values, outputs = self.recurrence(layer, inputs[layer])
            yield Mixing(layer, RECURRENCE, self.attention_unit, self.attention_units(layer), weights, values, outputs)

    def attention_units(self, index: int) -> int:
        """How many channels or heads block `index` has."""
        raise NotImplementedError

    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """The recurrence of block `index` over its input x (1, tokens, d_model) of one text."""
        raise NotImplementedError

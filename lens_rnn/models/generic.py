"""The adapter of a model whose family has no file here: its parts are found by watching it, its state is in a cache of
transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

from lens_rnn.errors import ModelError
from lens_rnn.models import caches
from lens_rnn.models.adapter import STATE, Forward, ModelAdapter
from lens_rnn.models.mixing import SOFTMAX, Mixing, mixer_of, recurrences, softmax_attention
from lens_rnn.models.parts import find_parts
from lens_rnn.models.state import RecurrentState

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ATTENTION = {"keys", "values"}


class GenericAdapter(ModelAdapter):
    """Any causal language model that returns hidden states as transformers' models do: one before or after each block,
    then the normed last.

    A recurrent block's state: the last inputs of its convolution `conv` where it has one, and `ssm` (Mamba), `delta`
    (gated delta net) or `kv` (another linear attention), with the batch first; an attention block has `keys` and
    `values`; a block with both has both.
    """

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        parts = find_parts(self.model)
        self._blocks, self._final_norm = parts.blocks, parts.final_norm
        # Of this model, where other adapters know it of the class.
        self.states_after_blocks = parts.states_after_blocks  # type: ignore[misc]
        self.one_by_one = False
        """Whether the model reads on exactly by a single token only."""
        self._state_kinds = [_recurrent_name(block) for block in self.blocks]
        self.mixers = [mixer_of(block) for block in self.blocks]
        self.attention_layers: tuple[int, ...] = ()
        """Blocks with softmax attention."""
        self.state_names = self._find_state_names()  # type: ignore[misc]

    @property
    def blocks(self) -> nn.ModuleList:
        return self._blocks

    @property
    def final_norm(self) -> nn.Module:
        return self._final_norm

    @property
    def longest_sequence(self) -> int | None:
        """Of a model with attention what its configuration says; a recurrence has no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None or self.state_names else int(limit)

    def _find_state_names(self) -> tuple[str, ...]:
        """The names of recurrent memory in a state of this model: none for one of attention alone."""
        try:
            _, state = self._advance_at_once(torch.zeros(1, 3, dtype=torch.long, device=self.device), None)
        except Exception as error:  # transformers' caches fail in their own ways
            self.off[STATE] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return ()
        if state is None:
            return ()
        self.attention_layers = tuple(i for i, block in enumerate(state.blocks) if "keys" in block)
        return tuple(sorted(state.names - _ATTENTION))

    @property
    def mixing_kinds(self) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (*((mixer.kind,) if mixer else ()), *((SOFTMAX,) if i in self.attention_layers else ()))
            for i, mixer in enumerate(self.mixers)
        )

    @property
    def attention_heads(self) -> int:
        return int(getattr(self.model.config, "num_attention_heads", 1) or 1)

    @property
    def attention_matrices(self) -> int:
        return self.attention_heads * len(self.attention_layers)

    @torch.no_grad()
    def mixings(self, input_ids: Tensor, layers: Sequence[int]) -> Iterator[Mixing]:
        known = [layer for layer in layers if self.mixers[layer]]
        mixings = [*recurrences(self.blocks, known, lambda: self.forward(input_ids))] if known else []
        if set(layers) & set(self.attention_layers):
            with caches.attention_returned(self.model):
                _, output = self._pass(input_ids, use_cache=False, output_attentions=True)
            attention = softmax_attention(output.attentions or (), self.attention_layers, len(self.blocks))
            mixings += [mixing for mixing in attention if mixing.layer in layers]
        yield from sorted(mixings, key=lambda mixing: [*layers].index(mixing.layer))

    @torch.no_grad()
    def _advance_at_once(
        self, input_ids: Tensor, state: RecurrentState | None
    ) -> tuple[Forward, RecurrentState | None]:
        seen = state.tokens if state else 0
        positions = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        forward, output = self._pass(input_ids, **caches.arguments(self.model.base_model, state, positions))
        return forward, caches.take(output, self._state_kinds, seen + input_ids.shape[1])

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        if state is not None and state.carrier is None:
            raise ModelError(f"the state is another model's, and cannot be continued by model type {self.model_type!r}")
        steps = []
        for part in self._parts_of(input_ids, state):
            step, state = self._advance_at_once(part, state)
            steps.append(step)
            if state is None:
                raise ModelError(f"model type {self.model_type!r} has left no state; it did when it was loaded")
        assert state is not None
        return Forward.joined(steps), state

    def _parts_of(self, input_ids: Tensor, state: RecurrentState | None) -> Iterator[Tensor]:
        yield from input_ids.split(1 if self.one_by_one and state is not None else input_ids.shape[1], dim=1)


def _recurrent_name(block: nn.Module) -> str:
    """What the recurrent state of a block is, by the parameters that decide how it forgets."""
    names = {name.rpartition(".")[2] for name, _ in block.named_parameters()}
    if "A_log" in names:
        return "ssm" if "D" in names else "delta"
    return "kv"

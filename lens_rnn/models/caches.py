"""The state of hybrid models, in and out of the caches of transformers: the only file that touches its private parts.

A cache is made by the model itself, in a pass. Its tensors are taken out, by block and by name; what is left of it, its
counters, is kept as something opaque, and a copy of that gets its tensors back to read on. What cannot be reached in
this way is no state here, never an end.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

from lens_rnn.models.state import BlockState, RecurrentState

from torch import Tensor, nn

_KEYWORDS = ("cache", "past_key_values", "cache_params")  # what releases of transformers have called it


class _Carrier(NamedTuple):
    """A cache without its tensors, and what the recurrent state of each block is called."""

    cache: Any
    names: Sequence[str]


class _Slot(NamedTuple):
    """A place for a tensor in a cache: an attribute of an object, or an item of a dictionary or list."""

    block: int
    name: str
    holder: Any
    key: Any

    @property
    def content(self) -> Any:
        return self.holder[self.key] if isinstance(self.holder, dict | list) else getattr(self.holder, self.key, None)

    def put(self, content: Tensor | None) -> None:
        if isinstance(self.holder, dict | list):
            self.holder[self.key] = content
        else:
            setattr(self.holder, self.key, content)


def take(output: Any, names: Sequence[str], tokens: int) -> RecurrentState | None:
    """The state after a pass that was given `arguments`; None where there is none that can be reached.

    names: what the recurrent state of each block is called. tokens: how many have been read.
    """
    cache = next((value for name in _KEYWORDS if (value := getattr(output, name, None)) is not None), None)
    if cache is None:
        return None
    blocks: list[BlockState] = [{} for _ in names]
    for slot in [*_slots(cache, names)]:
        if isinstance(slot.content, Tensor) and slot.content.numel():
            blocks[slot.block][slot.name] = slot.content
            slot.put(None)
    return RecurrentState(blocks, tokens, _Carrier(cache, names)) if any(blocks) else None


def arguments(base: nn.Module, state: RecurrentState | None, positions: Tensor) -> dict[str, Any]:
    """What the base model's forward is given to read on from a state, or from the start, and to leave one. The state is
    not changed.

    positions: (1, tokens). Models that are not given them count from where they think that they are, which is not
    always right.
    """
    known = inspect.signature(base.forward).parameters
    given: dict[str, Any] = {"use_cache": True}
    if "position_ids" in known:
        given["position_ids"] = positions
    if state is not None:
        given[next(name for name in _KEYWORDS if name in known)] = _filled(state)
    return given


def _filled(state: RecurrentState) -> Any:
    """A cache of its own that holds copies of the state's tensors."""
    cache = deepcopy(state.carrier.cache)
    for slot in _slots(cache, state.carrier.names):
        if slot.name in state.blocks[slot.block]:
            slot.put(state.blocks[slot.block][slot.name].clone())
    return cache


def _slots(cache: Any, names: Sequence[str]) -> Iterator[_Slot]:
    """All places for tensors. A layer of a cache may have several convolutions: `conv`, `conv2`, `conv3`."""
    for block, layer in enumerate(getattr(cache, "layers", ())[: len(names)]):
        for attribute, name in (("conv_states", "conv"), ("recurrent_states", names[block])):
            holder = getattr(layer, attribute, None)
            keys = [*holder] if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
            for count, key in enumerate(keys, 1):
                yield _Slot(block, name if count == 1 else f"{name}{count}", holder, key)
        for attribute in ("keys", "values"):
            if hasattr(layer, attribute):
                yield _Slot(block, attribute, layer, attribute)
    linear = getattr(cache, "linear_cache", ())  # MiniMax keeps what is not attention in a list of its own
    for block in range(min(len(linear), len(names))):
        yield _Slot(block, names[block], linear, block)


@contextmanager
def attention_returned(model: Any) -> Iterator[None]:
    """Inside it the model attends in the one way that returns its matrices. transformers says how it attends only in a
    private setting."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)

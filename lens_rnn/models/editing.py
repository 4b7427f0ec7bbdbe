"""Changes of hidden states, made where the next block, or the final norm, reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lens_rnn.models.shapes import Hidden

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Change = Callable[[Hidden], Hidden]
"""From a hidden state to what the model goes on from in its place."""


class Edits:
    """The changes that are in force, by layer, in the order in which they were begun."""

    def __init__(self) -> None:
        self._edits: list[tuple[int, Change]] = []

    @property
    def layers(self) -> list[int]:
        """The layers that are changed, each once."""
        return [*dict(self._edits)]

    @contextmanager
    def begun(self, layer: int, change: Change) -> Iterator[None]:
        """Inside it the change is in force; nothing of it stays, also after an error."""
        edit = (layer, change)
        self._edits.append(edit)
        try:
            yield
        finally:
            self._edits = [other for other in self._edits if other is not edit]

    def apply(self, layer: int, h: Hidden) -> Hidden:
        """The hidden state that the model goes on from in place of h."""
        for edited, change in self._edits:
            if edited == layer:
                h = change(h).to(h.dtype)
        return h

    def hook(self, layer: int, reader: nn.Module, changed: dict[int, Tensor]) -> RemovableHandle:
        """Edit a layer in transformers' own pass, where `reader` reads it, and note in `changed` what it became."""

        def edit(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            changed[layer] = h = self.apply(layer, args[0] if args else kwargs["hidden_states"])
            return ((h, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": h})

        return reader.register_forward_pre_hook(edit, with_kwargs=True, prepend=True)  # who watches sees what is read

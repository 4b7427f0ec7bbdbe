"""Which adapter a model type has: families with a file of their own here register theirs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lens_rnn.models.adapter import ModelAdapter

_REGISTRY: dict[str, "type[ModelAdapter]"] = {}


def register(*model_types: str) -> "Callable[[type[ModelAdapter]], type[ModelAdapter]]":
    """Class decorator: use this adapter for models whose transformers `config.model_type` is one of `model_types`."""

    def add(cls: "type[ModelAdapter]") -> "type[ModelAdapter]":
        _REGISTRY.update(dict.fromkeys(model_types, cls))
        return cls

    return add


def known_architectures() -> list[str]:
    """Model types whose family has a file here. Others are taken apart by watching them."""
    return sorted(_REGISTRY)


def adapter_class(model_type: str) -> "type[ModelAdapter] | None":
    """The adapter of a model type whose family has a file here; None for any other."""
    return _REGISTRY.get(model_type)

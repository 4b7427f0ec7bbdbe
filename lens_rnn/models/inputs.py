"""What is asked of a model, checked before it runs: token ids that it has, layers that it has."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from lens_rnn.errors import ConfigError, DataError

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

if TYPE_CHECKING:
    from lens_rnn.models.adapter import ModelAdapter


OneText: TypeAlias = str | Tensor | np.ndarray | Sequence[int]
"""What functions that read one text take: the text itself, or its token ids, (tokens) or (1, tokens)."""


def one_text(adapter: "ModelAdapter", text: OneText) -> Int64[Tensor, "1 tokens"]:
    """Token ids of one text on the model's device. A text is given to the model's tokenizer as it is.

    Raises DataError for no tokens, more than the model can read, several texts, ids that the model does not have, or
    text that has no UTF-8; ModelError for text where the model has no tokenizer.
    """
    if isinstance(text, str):
        text = _ids_of(adapter, text)
    if isinstance(text, Tensor | np.ndarray) and text.ndim == 2 and len(text) == 1:
        text = text[0]
    ids = whole_numbers(text, "token ids")
    if not len(ids):
        raise DataError("the text has no tokens; give at least one")
    if not (int(ids.min()) >= 0 and int(ids.max()) < adapter.vocab_size):
        raise DataError(
            f"token ids run from {ids.min()} to {ids.max()}, and {adapter.name} has 0 to {adapter.vocab_size - 1}"
        )
    if adapter.longest_sequence is not None and len(ids) > adapter.longest_sequence:
        raise DataError(
            f"the text has {len(ids)} tokens, and {adapter.name} reads at most {adapter.longest_sequence}; shorten it"
        )
    return ids[None].to(adapter.device)


def _ids_of(adapter: "ModelAdapter", text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text holds {text[error.start]!a}, which is no character; leave it out") from None
    return list(adapter.tokenizer(text)["input_ids"])


def whole_numbers(values: Tensor | np.ndarray | Sequence[int], name: str) -> Int64[Tensor, " values"]:
    """A copy of some whole numbers, on the CPU. Raises DataError, with their name, where they are anything else."""
    try:
        given = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # text, what is ragged, what 64 bits do not hold
        raise DataError(f"{name} are {values!r:.40}; give one sequence of whole numbers") from None
    if given.ndim != 1 or (len(given) and (given.is_floating_point() or given.dtype == torch.bool)):
        raise DataError(
            f"{name} have the shape {tuple(given.shape)} and type {given.dtype}; give one sequence of whole numbers"
        )
    return given.long().clone()


def checked_layers(adapter: "ModelAdapter", layers: SupportsIndex | Sequence[int] | np.ndarray | Tensor) -> list[int]:
    """The layers as a list. Raises ConfigError for none, or for one that the model does not have."""
    wanted = [operator.index(layer) for layer in np.atleast_1d(np.asarray(layers)).tolist()]
    if not wanted:
        raise ConfigError(f"no layer of {adapter.name} is named; choose from 0 to {adapter.n_layers - 1}")
    if wrong := [layer for layer in wanted if not 0 <= layer < adapter.n_layers]:
        raise ConfigError(f"there is no layer {wrong[0]}: {adapter.name} has layers 0 to {adapter.n_layers - 1}")
    return wanted

"""What all views ask of a text before they start: token ids that the model has, and memory enough."""

import os
from collections.abc import Sequence

from lens_rnn.errors import DataError
from lens_rnn.models import ModelAdapter

import torch
from torch import Tensor


def one_text(adapter: ModelAdapter, input_ids: Tensor | Sequence[int]) -> Tensor:
    """Token ids of one text as (1, tokens), int64, on the model's device.

    Raises DataError for no tokens, more than the model can read, several texts, or ids that the model does not have.
    """
    given = torch.as_tensor(input_ids)
    if not given.numel():
        raise DataError("the text has no tokens; give at least one")
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise DataError(
            f"token ids have the shape {tuple(given.shape)} and type {given.dtype}; give one sequence of whole numbers"
        )
    ids = given.long()
    if not (int(ids.min()) >= 0 and int(ids.max()) < adapter.vocab_size):
        raise DataError(
            f"token ids run from {ids.min()} to {ids.max()}, and {adapter.name} has 0 to {adapter.vocab_size - 1}"
        )
    if adapter.longest_sequence is not None and len(ids) > adapter.longest_sequence:
        raise DataError(
            f"the text has {len(ids)} tokens, and {adapter.name} reads at most {adapter.longest_sequence}; shorten it"
        )
    return ids[None].to(adapter.device)


def refuse_what_does_not_fit(adapter: ModelAdapter, needed: float, tokens: int, remedy: str) -> None:
    """Raise DataError if a view of so many tokens needs more bytes than half the machine's memory, or than a GPU has
    free."""
    if adapter.device.type == "cuda":
        there = float(torch.cuda.mem_get_info(adapter.device)[0])
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    else:  # Windows says it elsewhere
        return
    if needed > there:
        raise DataError(
            f"a view of {tokens:,} tokens of {adapter.name} needs about {needed / 2**30:,.1f} GiB, and there are "
            f"{there / 2**30:,.1f} GiB "
            f"for it; {remedy}"
        )

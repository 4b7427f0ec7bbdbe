"""A recurrence over one text, as what views look at."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Recurrence(NamedTuple):
    """The recurrence of one block over one text, as a causal matrix for each channel or head, from the empty state."""

    weights: Callable[[Tensor], Tensor]
    """From indices of channels or heads (chosen) to their matrices (chosen, tokens, tokens), float32; row i is the
    token that reads."""
    values: Tensor
    """What is read (tokens, units, width)."""
    outputs: Tensor
    """What the block's own recurrence makes of them (tokens, units, width): weights @ values."""

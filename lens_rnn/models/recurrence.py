"""A recurrence over one text, as what views look at."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float, Float32, Int
from torch import Tensor


class Recurrence(NamedTuple):
    """The recurrence of one block over one text, as a causal matrix for each channel or head, from the empty state."""

    weights: Callable[[Int[Tensor, " chosen"]], Float32[Tensor, "chosen tokens tokens"]]
    """From indices of channels or heads to their matrices; row i is the
    token that reads."""
    values: Float[Tensor, "tokens units width"]
    """What is read."""
    outputs: Float[Tensor, "tokens units width"]
    """What the block's own recurrence makes of them: weights @ values."""

"""Tensors that all parts of a model speak of, with their shapes, which the tests check at every call."""

from jaxtyping import Float, Int
from torch import Tensor

Ids = Int[Tensor, "batch seq"]
Hidden = Float[Tensor, "batch seq d_model"]

"""The logit lens: no parameters."""

from typing import Self

from lens_rnn.lens.base import Lens
from lens_rnn.lens.unembedding import Unembedding
from lens_rnn.models import ModelAdapter

from tuned_lens.nn import lenses as stock


class LogitLens(Lens, stock.LogitLens):
    """Reads a hidden state as if it were the last: unembedding(h)."""

    kind = "logit"

    @classmethod
    def from_adapter(cls, adapter: ModelAdapter, unembedding: Unembedding | None = None) -> Self:
        return cls(unembedding or Unembedding(adapter))

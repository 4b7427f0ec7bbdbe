"""What a fit costs in floating-point operations of its matrix products, counted from sizes; of the forward pass,
counted while it runs over one text.

An *evaluation* is one position at one layer through both products with the unembedding.
"""

import math
from typing import NamedTuple

from lens_rnn.models import ModelAdapter

import torch
from torch.utils.flop_counter import FlopCounterMode

COUNTED_TOKENS = 256  # of the text that the forward pass is counted on, at most
SPREAD = 0.22
"""By how much the best share of positions grows with the cost of a forward pass: (1 − ρ) ÷ ρ L in the terms of
Cochran (Sampling Techniques, 1977, section 10.6), for blocks of L tokens with an intraclass correlation ρ. By hand, on
the demo models: a quarter and a half are near the best for them."""
LEAST_SHARE = 1 / 16
PASS_OVERHEAD = {"cpu": 4.0, "cuda": 1.5}
"""By how much a forward pass takes longer than its products would at the speed of those with the unembedding: on a CPU
the first are small and in float32, the second large and often in bfloat16."""


class Costs(NamedTuple):
    """Floating-point operations of matrix products, two for each multiplication with an addition."""

    forward: float
    """A token of text through the model's blocks."""
    teacher: float
    """A position's target: the model's own logits, and the scores of drawn labels."""
    evaluation: float
    """A position at one layer: translator, both products with the unembedding, gradient and factor."""
    layers: int
    """That are fitted."""
    overhead: float
    """By which the operations of a forward pass take longer than those of a position."""

    @property
    def position(self) -> float:
        """A position at all layers."""
        return self.teacher + self.layers * self.evaluation

    def of(self, tokens: float, positions: float) -> float:
        """Operations for so many tokens of text and positions of them."""
        return tokens * self.forward + positions * self.position

    @property
    def best_share(self) -> float:
        """The share of positions, a power of a half, at which neither more text nor more positions of it would be the
        better buy."""
        share = math.sqrt(SPREAD * self.overhead * self.forward / self.position)
        return float(min(1.0, max(LEAST_SHARE, 2.0 ** round(math.log2(share)))))


@torch.no_grad()
def count_costs(adapter: ModelAdapter, seq_len: int, fisher: bool, device: torch.device) -> Costs:
    """Counted for this model where it is now, on one text of `seq_len` tokens or its beginning. fisher: whether the
    optimizer wants the Fisher factor. device: where the fit will run."""
    d, vocab = adapter.d_model, adapter.vocab_size
    ids = torch.zeros(1, min(seq_len, COUNTED_TOKENS), dtype=torch.long, device=adapter.device)
    with FlopCounterMode(display=False) as counter:
        adapter.forward(ids)
    product, square = 2.0 * vocab * d, 2.0 * d * d
    return Costs(
        forward=counter.get_total_flops() / ids.numel(),
        teacher=product * (2 if fisher else 1),
        evaluation=2 * product + square * (3 if fisher else 2),
        layers=len(adapter.fitted_layers),
        overhead=PASS_OVERHEAD.get(device.type, 1.0),
    )

"""Layer transfer: how well each translator reads the hidden states of every other layer (Belrose et al. 2023, arXiv
2303.08112).

Layers that speak alike can be read by one another's translators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.metrics import batches, figure_sums, token_spans, total
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from lens_rnn.rows import Aim

import numpy as np
import torch
from jaxtyping import Float64
from tuned_lens.nn.lenses import Lens


@dataclass(frozen=True, eq=False)
class Transfer:
    """Means over tokens in nats a token: row t reads the states of layer s, column s, with translator t."""

    ce: Float64[np.ndarray, "translators sources"]
    """Cross-entropy of the next token."""
    kl: Float64[np.ndarray, "translators sources"]
    """KL(what layer s's own translator reads ‖ what translator t reads): 0 on the diagonal."""


@torch.no_grad()
def layer_transfer(
    adapter: ModelAdapter,
    lens: Lens,
    blocks: TokenBlocks,
    *,
    processes: Processes | None = None,
    micro_batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> Transfer:
    """Read every layer with every translator on all blocks, shared among the processes: n_layers² readings of each
    token.

    on_batch is told the tokens done.
    """
    processes = processes or Processes()
    n = adapter.n_layers
    sums = torch.zeros(n, n, 2, dtype=torch.float64)  # (translators, sources, ce and kl)
    counts = torch.zeros(2, dtype=torch.float64)  # positions with a next token, positions
    for ids, forward in batches(adapter, blocks, processes, micro_batch_size, on_batch):
        counts += torch.tensor([ids[:, 1:].numel(), ids.numel()])
        for span in token_spans(adapter, forward, ids):
            for source, hidden in enumerate(span.hidden):
                own = lens(hidden, source)
                aimed = span._replace(aim=Aim.of(own.float()))
                for translator in range(n):
                    logits = own if translator == source else lens(hidden, translator)
                    sums[translator, source] += figure_sums(logits, aimed)[:2]
    ce, kl = (total(adapter, processes, sums) / total(adapter, processes, counts)).unbind(-1)
    kl.fill_diagonal_(0.0)  # of a translator from itself, but for rounding
    return Transfer(ce.numpy(), kl.numpy())

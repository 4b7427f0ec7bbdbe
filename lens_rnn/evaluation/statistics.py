"""What a lens says on the whole, and how far two lenses are apart: marginal token distributions, Jensen–Shannon
divergence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.evaluation.metrics import batches, rows_of, token_spans, total
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from jaxtyping import Float64
from tuned_lens.nn.lenses import Lens


@dataclass(frozen=True, eq=False)
class Marginals:
    """How often each token is predicted: predictions averaged over all positions.

    A lens whose marginal is far from the model's is biased: it prefers tokens whatever the text (Belrose et al. 2023,
    section 3).
    """

    model: Float64[np.ndarray, " vocab"]
    lenses: Mapping[str, Float64[np.ndarray, "layers vocab"]]
    """By lens. A trivial layer's is the model's."""

    def entropy(self, lens: str) -> Float64[np.ndarray, " layers"]:
        """Entropy in nats of a lens's marginals."""
        return np.array([_entropy(q) for q in self.lenses[lens]])

    def kl(self, lens: str) -> Float64[np.ndarray, " layers"]:
        """KL(model's marginal ‖ lens's) in nats: the lens's bias."""
        # keeps a lens that is certain of another token everywhere from being infinitely wrong
        least = np.finfo(np.float64).tiny
        return -(self.model * np.log(self.lenses[lens].clip(min=least))).sum(-1) - _entropy(self.model)

    def metrics(self) -> dict[str, Any]:
        """Entropy and KL by lens and layer, in nats."""
        kinds = {"entropy": self.entropy, "kl": self.kl}
        lenses = {
            name: {kind: {f"layer_{i}": float(x) for i, x in enumerate(of(name))} for kind, of in kinds.items()}
            for name in self.lenses
        }
        return {"units": "nats", "model": {"entropy": _entropy(self.model)}} | lenses


@torch.no_grad()
def marginals(
    adapter: ModelAdapter,
    lenses: Mapping[str, Lens],
    blocks: TokenBlocks,
    *,
    processes: Processes | None = None,
    micro_batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> Marginals:
    """Average the predictions of the model and of every lens at every layer over all blocks, shared among the
    processes.

    on_batch is told the tokens done.
    """
    processes = processes or Processes()
    layers = adapter.fitted_layers
    sums = torch.zeros(1 + len(lenses) * len(layers), adapter.vocab_size, dtype=torch.float64)  # (rows, vocab)
    for ids, forward in batches(adapter, blocks, processes, micro_batch_size, on_batch):
        for span in token_spans(adapter, forward, ids):
            rows_of(span.logits).add_probabilities(span.logits, sums[0])
            read = ((lens, layer) for lens in lenses.values() for layer in layers)
            for row, (lens, layer) in enumerate(read, start=1):
                logits = lens(span.hidden[layer], layer)
                rows_of(logits).add_probabilities(logits, sums[row])
    sums = total(adapter, processes, sums)
    model, rows = (sums / sums.sum(-1, keepdim=True)).split([1, len(sums) - 1])
    by_lens = model.repeat(len(lenses), adapter.n_layers, 1)  # (lenses, layers, vocab)
    by_lens[:, list(layers)] = rows.view(len(lenses), len(layers), -1)
    return Marginals(model[0].numpy(), dict(zip(lenses, by_lens.numpy(), strict=True)))


@torch.no_grad()
def js_between(
    adapter: ModelAdapter,
    a: Lens,
    b: Lens,
    blocks: TokenBlocks,
    *,
    processes: Processes | None = None,
    micro_batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> Float64[np.ndarray, " layers"]:
    """Mean over tokens of the Jensen–Shannon divergence between two lenses of one model, in nats; 0 at a trivial layer.

    Blocks are shared among the processes; on_batch is told the tokens done.
    """
    processes = processes or Processes()
    sums, count = torch.zeros(adapter.n_layers, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for ids, forward in batches(adapter, blocks, processes, micro_batch_size, on_batch):
        count += ids.numel()
        for span in token_spans(adapter, forward, ids):
            for layer in adapter.fitted_layers:
                of_a, of_b = (lens(span.hidden[layer], layer) for lens in (a, b))
                sums[layer] += rows_of(of_a).js(of_a, of_b).sum(dtype=torch.float64).cpu()
    return (total(adapter, processes, sums) / total(adapter, processes, count)).numpy()


def _entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum())

"""Cross-entropy, KL divergence from the model, and entropy of each layer's predictions, on held-out blocks.

All figures are means over tokens, in nats a token: KL and entropy over every position, cross-entropy over those with a next token.
Multiply by `TokenBlocks.bits_per_byte` for bits per byte.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from torch import Tensor
from tuned_lens.nn.lenses import Lens

_CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**29}  # of one float32 (tokens, vocab) buffer


class Figures(NamedTuple):
    """What one distribution per position is worth, in nats a token."""

    ce: float
    kl: float
    entropy: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model itself and of each lens at each layer."""

    model: Figures
    lenses: Mapping[str, Mapping[int, Figures]]
    uniform_ce: float
    """ln(vocabulary): the cross-entropy of knowing nothing."""
    unigram_ce: float | None = None
    """Cross-entropy of knowing only how often each token occurs in the fitting data."""


@torch.no_grad()
def evaluate(
    adapter: ModelAdapter,
    lenses: Mapping[str, Lens],
    blocks: TokenBlocks,
    *,
    processes: Processes | None = None,
    micro_batch_size: int = 8,
    unigram_ce: float | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Run every lens on every layer of all blocks, shared among the processes.

    A trivial layer is the model's own prediction: its figures are the model's, with a KL of 0. on_batch is told the tokens done.
    """
    processes = processes or Processes()
    names, layers = list(lenses), adapter.fitted_layers
    sums = torch.zeros(1 + len(names) * len(layers), 3, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)  # positions with a next token, positions
    for rows, real in processes.shares(np.arange(len(blocks)), micro_batch_size):
        ids = blocks.batch(rows, adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        sums += _batch_sums(adapter, [lenses[name] for name in names], layers, forward, ids)
        counts += torch.tensor([ids[:, 1:].numel(), ids.numel()])
        if on_batch:
            on_batch(ids.numel() * processes.world)
    device = adapter.device if adapter.device.type != "mps" else torch.device("cpu")
    sums, counts = processes.sum(sums.to(device)).cpu(), processes.sum(counts.to(device)).cpu()
    means = sums / torch.stack([counts[0], counts[1], counts[1]])
    model = Figures(*means[0].tolist())
    by_lens = means[1:].reshape(len(names), len(layers), 3).tolist()
    trivial = dict.fromkeys(adapter.trivial_layers, model)
    figures = {
        name: {layer: Figures(*row) for layer, row in zip(layers, rows, strict=True)} | trivial
        for name, rows in zip(names, by_lens, strict=True)
    }
    return Evaluation(model, figures, log(adapter.vocab_size), unigram_ce)


def _batch_sums(adapter: ModelAdapter, lenses: list[Lens], layers: tuple[int, ...], forward: Forward, ids: Tensor) -> Tensor:
    """Sums over a batch's tokens of (ce, kl, entropy): the model's, then each lens's at each layer. (rows, 3), float64."""
    sums = torch.zeros(1 + len(lenses) * len(layers), 3, dtype=torch.float64)
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()  # −1: nothing follows
    final = forward.final.flatten(0, 1)
    hidden = [h.flatten(0, 1) for h in forward.hidden_states]
    size = max(64, _CHUNK_BYTES.get(ids.device.type, 2**26) // (4 * adapter.vocab_size))
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        log_p = torch.log_softmax(adapter.head(final[part].to(adapter.dtype)).float(), dim=-1)
        p = log_p.exp()
        sums[0] += _sums(log_p, p, log_p, labels[part])
        row = 1
        for lens in lenses:
            for layer in layers:
                log_q = torch.log_softmax(lens(hidden[layer][part], layer).float(), dim=-1)
                sums[row] += _sums(log_q, p, log_p, labels[part])
                row += 1
    return sums


def _sums(log_q: Tensor, p: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
    """Σ over tokens of (−log q[label], KL(p ‖ q), −Σ q log q), (3), float64."""
    has_label = labels >= 0
    ce = -log_q.gather(-1, labels.clamp(min=0)[:, None])[has_label]
    kl = torch.linalg.vecdot(p, log_p - log_q)
    entropy = -torch.linalg.vecdot(log_q.exp(), log_q)
    return torch.stack([x.sum(dtype=torch.float64) for x in (ce, kl, entropy)]).cpu()


def aggregate_metrics(evaluation: Evaluation, bits_per_byte: float) -> dict[str, Any]:
    """The figures in the schema of tuned-lens's aggregate_metrics.json, in bits per byte."""
    lenses: dict[str, Any] = {
        name: {kind: {f"layer_{i}": getattr(layers[i], kind) * bits_per_byte for i in sorted(layers)} for kind in ("ce", "entropy", "kl")}
        for name, layers in evaluation.lenses.items()
    }
    baseline = {kind: {"final": getattr(evaluation.model, kind) * bits_per_byte} for kind in ("ce", "entropy")}
    return lenses | {"baseline": baseline}


def doubts(evaluation: Evaluation, fitted_layers: tuple[int, ...], lens: str = "tuned") -> list[str]:
    """One line for each fitted layer whose lens is worse than the logit lens, the unigram model or the uniform distribution."""
    lines = []
    for i in fitted_layers:
        figures = evaluation.lenses[lens][i]
        worse = [
            name
            for name, is_worse in (
                ("the logit lens", "logit" in evaluation.lenses and not figures.kl < evaluation.lenses["logit"][i].kl),
                ("the unigram model", evaluation.unigram_ce is not None and not figures.ce < evaluation.unigram_ce),
                ("the uniform distribution", not figures.ce < evaluation.uniform_ce),
            )
            if is_worse
        ]
        if worse:
            lines.append(f"layer {i}: the {lens} lens is no better than {' and '.join(worse)}")
    return lines

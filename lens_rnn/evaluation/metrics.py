"""Cross-entropy, KL divergence from the model, and entropy of each layer's predictions, on held-out blocks.

All figures are means over tokens, in nats a token: KL and entropy over every position, cross-entropy over those with a
next token. Multiply by `TokenBlocks.bits_per_byte` for bits per byte.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.lens import Lens as OurLens
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.processes import Processes
from lens_rnn.rows import Aim, RowKernels, rows_for

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tuned_lens.nn.lenses import Lens

_SPAN_BYTES = {"cpu": 2**23, "cuda": 2**29}  # of one float32 (tokens, vocab) buffer
_LEAST_SPAN = 128  # tokens: products of fewer rows are slow


class LayerMetrics(NamedTuple):
    """What one distribution per position is worth, in nats a token."""

    ce: float
    kl: float
    entropy: float


class TokenSpan(NamedTuple):
    """Some tokens of a batch: so few that a (tokens, vocab) buffer is small."""

    hidden: list[Float[Tensor, "tokens d_model"]]
    """Of each layer."""
    logits: Float[Tensor, "tokens vocab"]
    """The model's own."""
    aim: Aim
    """The model's own predictions."""
    labels: Int[Tensor, " tokens"]
    """The next token, −1 where nothing follows."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model itself and of each lens at each layer."""

    model: LayerMetrics
    lenses: Mapping[str, Mapping[int, LayerMetrics]]
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

    A trivial layer is the model's own prediction: its figures are the model's, with a KL of 0. A layer that a lens does
    not read has no figures. on_batch is told the tokens done.
    """
    processes = processes or Processes()
    readings = [(name, layer) for name, lens in lenses.items() for layer in adapter.fitted_layers if reads(lens, layer)]
    sums = torch.zeros(1 + len(readings), 3, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)  # positions with a next token, positions
    for ids, forward in batches(adapter, blocks, processes, micro_batch_size, on_batch):
        sums += _batch_sums(adapter, [(lenses[name], layer) for name, layer in readings], forward, ids)
        counts += torch.tensor([ids[:, 1:].numel(), ids.numel()])
    sums, counts = total(adapter, processes, sums), total(adapter, processes, counts)
    means = sums / torch.stack([counts[0], counts[1], counts[1]])
    model = LayerMetrics(*means[0].tolist())._replace(kl=0.0)  # of itself, but for rounding
    figures: dict[str, dict[int, LayerMetrics]] = {name: {} for name in lenses}
    for (name, layer), row in zip(readings, means[1:].tolist(), strict=True):
        figures[name][layer] = LayerMetrics(*row)
    for of_lens in figures.values():
        of_lens |= dict.fromkeys(adapter.trivial_layers, model)
    return Evaluation(model, figures, log(adapter.vocab_size), unigram_ce)


def reads(lens: Lens, layer: int) -> bool:
    """Whether a lens, ours or another package's, has something to read this layer with."""
    return lens.reads(layer) if isinstance(lens, OurLens) else True


def batches(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    processes: Processes,
    micro_batch_size: int,
    on_batch: Callable[[int], Any] | None = None,
) -> Iterator[tuple[Int[Tensor, "batch seq"], Forward]]:
    """This process's share of the blocks, as ids (batch, seq) and what the model makes of them. on_batch is told the
    tokens done."""
    for rows, real in processes.shares(np.arange(len(blocks)), micro_batch_size):
        ids = blocks.batch(rows, adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        yield ids, forward
        if on_batch:
            on_batch(ids.numel() * processes.world)


def token_spans(adapter: ModelAdapter, forward: Forward, ids: Int[Tensor, "batch seq"]) -> Iterator[TokenSpan]:
    """The tokens of a batch in order, a few hundred at a time."""
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()  # −1: nothing follows
    final = forward.final.flatten(0, 1)
    hidden = [h.flatten(0, 1) for h in forward.hidden_states]
    size = span_size(adapter)
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        logits = adapter.logits(final[part])
        yield TokenSpan([h[part] for h in hidden], logits, Aim.of(logits.float()), labels[part])


def rows_of(logits: Tensor) -> RowKernels:
    """The passes over rows of logits such as these."""
    return rows_for(logits.dtype, logits.device)


def span_size(adapter: ModelAdapter) -> int:
    """Tokens whose float32 (tokens, vocab) buffer is small, and yet large enough for quick products."""
    return max(_LEAST_SPAN, _SPAN_BYTES.get(adapter.device.type, 2**26) // (4 * adapter.vocab_size))


def log_predictions(lens: Lens, hidden: Float[Tensor, "*tokens d_model"], layer: int) -> Float[Tensor, "*tokens vocab"]:
    """Log-probabilities, float32, that a lens reads from hidden states at a layer."""
    return torch.log_softmax(lens(hidden, layer).float(), dim=-1)


def total(adapter: ModelAdapter, processes: Processes, sums: Float64[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """The `sums` of this process added up over all of them, on the CPU."""
    device = adapter.device if adapter.device.type != "mps" else torch.device("cpu")
    return processes.sum(sums.to(device)).cpu()


def _batch_sums(adapter: ModelAdapter, readings: list[tuple[Lens, int]], forward: Forward, ids: Tensor) -> Tensor:
    """Sums over a batch's tokens of (ce, kl, entropy): the model's, then each lens's at its layer. (rows, 3),
    float64."""
    sums = torch.zeros(1 + len(readings), 3, dtype=torch.float64)
    for span in token_spans(adapter, forward, ids):
        sums[0] += figure_sums(span.logits, span)
        for row, (lens, layer) in enumerate(readings, start=1):
            sums[row] += figure_sums(lens(span.hidden[layer], layer), span)
    return sums


def figure_sums(logits: Float[Tensor, "tokens vocab"], span: TokenSpan) -> Float64[Tensor, " 3"]:
    """Σ over a span's tokens of −log q[label], KL(p ‖ q) and the entropy of q = softmax(logits)."""
    return rows_of(logits).figures(logits, span.aim, span.labels).sum(0, dtype=torch.float64).cpu()


def doubts(
    evaluation: Evaluation,
    fitted_layers: tuple[int, ...],
    lens: str = "tuned",
) -> list[str]:
    """One line for each fitted layer whose lens is no better than the logit lens, the unigram model or the uniform
    distribution, or worse than the start of its fit: those that were evaluated as "logit" and "start"."""
    start = evaluation.lenses.get("start", {})
    lines = []
    for i in fitted_layers:
        figures = evaluation.lenses[lens][i]
        worse = [
            name
            for name, is_worse in (
                ("the logit lens", "logit" in evaluation.lenses and not figures.kl < evaluation.lenses["logit"][i].kl),
                ("the unigram model", evaluation.unigram_ce is not None and not figures.ce < evaluation.unigram_ce),
                ("the uniform distribution", not figures.ce < evaluation.uniform_ce),
                ("its own start", i in start and not figures.kl <= start[i].kl),
            )
            if is_worse
        ]
        if worse:
            lines.append(f"layer {i}: the {lens} lens is no better than {' and '.join(worse)}")
    return lines

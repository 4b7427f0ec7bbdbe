"""Prediction trajectories: what a lens reads at each layer and token of one text, and what the model says in the end.

Belrose et al. 2023, arXiv 2303.08112, figure 1. Arrays are (rows, tokens): one row for each layer read, the last for
the model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.metrics import Chunk, chunks, log_predictions
from lens_rnn.models import ModelAdapter

import numpy as np
import torch
from torch import Tensor
from tuned_lens.nn.lenses import Lens

NO_TARGET = -1
"""The target of a token that nothing follows; also its rank. Its cross-entropy is NaN."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Predictions by layer and token of one text. A trivial layer has no row: it is the model itself, which is the last
    row."""

    layers: tuple[int, ...]
    """The layer of each row but the last."""
    depths: np.ndarray
    """(rows): fraction of the blocks applied; 1 for the model."""
    input_ids: np.ndarray
    """(tokens): the text, int64."""
    targets: np.ndarray
    """(tokens): what should be predicted, int64; by default the next token. NO_TARGET where there is none."""
    entropy: np.ndarray
    """(rows, tokens): of the prediction q, in nats."""
    ce: np.ndarray
    """(rows, tokens): −ln q(target), in nats; NaN where there is no target."""
    kl: np.ndarray
    """(rows, tokens): KL(p ‖ q) from the model's prediction p, in nats; 0 for the model."""
    rank: np.ndarray
    """(rows, tokens): how many tokens are likelier than the target, int64: 0 if it is the first choice."""
    top_ids: np.ndarray
    """(rows, tokens, k): the likeliest tokens, int64, the likeliest first."""
    top_probabilities: np.ndarray
    """(rows, tokens, k): their probabilities."""
    vocab_size: int

    @property
    def names(self) -> tuple[str, ...]:
        """What each row is: "layer 0", …, "model"."""
        return (*(f"layer {layer}" for layer in self.layers), "model")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, tokens)."""
        rows, tokens = self.entropy.shape
        return rows, tokens

    def values(self, statistic: str) -> np.ndarray:
        """(rows, tokens) of a statistic by its name in STATISTICS, float; NaN where it needs a target and there is
        none."""
        return named(statistic).of(self)

    def minus(self, other: "Trajectory", statistic: str) -> np.ndarray:
        """(rows, tokens): a statistic here less what it is in `other`, another lens, model or text of as many rows and
        tokens.

        Raises DataError if the shapes differ.
        """
        if self.shape != other.shape:
            raise DataError(
                f"trajectories of {self.shape[0]} rows × {self.shape[1]} tokens and {other.shape[0]} × "
                f"{other.shape[1]} "
                "have no difference; read texts of the same length at the same layers"
            )
        return self.values(statistic) - other.values(statistic)

    def report(self, text: Callable[[int], str]) -> dict[str, Any]:
        """All of it as JSON-ready values, null for NaN; `text` reads a token id."""
        statistics = {
            name: {
                "title": statistic.title,
                "unit": statistic.unit,
                "values": [[None if np.isnan(x) else float(x) for x in row] for row in statistic.of(self)],
            }
            for name, statistic in STATISTICS.items()
        }
        return {
            "rows": [
                {"name": name, "depth": float(depth)} for name, depth in zip(self.names, self.depths, strict=True)
            ],
            "tokens": [{"id": i, "text": text(i)} for i in self.input_ids.tolist()],
            "targets": [None if i == NO_TARGET else {"id": i, "text": text(i)} for i in self.targets.tolist()],
            "statistics": statistics,
            "top": {
                "ids": self.top_ids.tolist(),
                "texts": [[[text(i) for i in top] for top in row] for row in self.top_ids.tolist()],
                "probabilities": self.top_probabilities.astype(float).tolist(),
            },
        }


class Statistic(NamedTuple):
    """A number for each row and token of a trajectory."""

    title: str
    unit: str
    """nats, rank or probability; a picture chooses colours and limits by it."""
    of: Callable[[Trajectory], np.ndarray]
    """Its values (rows, tokens), float."""


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "entropy": Statistic("Entropy", "nats", lambda t: t.entropy),
        "ce": Statistic("Cross-entropy of the target", "nats", lambda t: t.ce),
        "kl": Statistic("KL divergence from the model", "nats", lambda t: t.kl),
        "rank": Statistic("Rank of the target", "rank", lambda t: np.where(t.targets == NO_TARGET, np.nan, t.rank)),
        "probability": Statistic(
            "Probability of the likeliest token", "probability", lambda t: t.top_probabilities[..., 0]
        ),
    }
)
"""What a trajectory can be asked for, by name."""


def named(statistic: str) -> Statistic:
    """Of STATISTICS. Raises ConfigError, listing them, for an unknown name."""
    if statistic not in STATISTICS:
        raise ConfigError(f"there is no statistic {statistic!r}; choose from {', '.join(STATISTICS)}")
    return STATISTICS[statistic]


@torch.no_grad()
def predict(
    adapter: ModelAdapter,
    lens: Lens,
    input_ids: Tensor | Sequence[int],
    targets: Tensor | Sequence[int] | None = None,
    *,
    top_k: int = 20,
    stride: int = 1,
) -> Trajectory:
    """Read one text, input_ids (tokens), at every layer that is not trivial, or every `stride`-th of them, and at the
    model's output.

    targets (tokens): what each position should predict, NO_TARGET for nothing; by default the next token. Logits are
    held for a few hundred tokens and one layer at a time.

    Raises DataError for no tokens, more than the model can read, ids that it does not have, or another number of
    targets; ConfigError for a top_k or stride below 1.
    """
    if top_k < 1 or stride < 1:
        raise ConfigError(f"top_k is {top_k} and stride {stride}; both must be at least 1")
    ids = _checked(input_ids, adapter, 0)
    if not len(ids):
        raise DataError("the text has no tokens; give at least one")
    if adapter.longest_sequence is not None and len(ids) > adapter.longest_sequence:
        raise DataError(
            f"the text has {len(ids)} tokens, and {adapter.name} reads at most {adapter.longest_sequence}; shorten it"
        )
    wanted = np.append(ids[1:], NO_TARGET) if targets is None else _checked(targets, adapter, NO_TARGET)
    if len(wanted) != len(ids):
        raise DataError(
            f"there are {len(wanted)} targets for {len(ids)} tokens; give one a token, {NO_TARGET} for none"
        )

    batch = torch.from_numpy(ids)[None].to(adapter.device)
    layers = adapter.fitted_layers[::stride]
    parts, done = [], 0
    for chunk in chunks(adapter, adapter.forward(batch), batch):
        tokens = len(chunk.log_p)
        labels = torch.from_numpy(wanted[done : done + tokens]).to(batch.device)
        parts.append(_read(lens, layers, chunk._replace(labels=labels), min(top_k, adapter.vocab_size)))
        done += tokens
    entropy, ce, kl, rank, top_probabilities, top_ids = (
        np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)
    )
    return Trajectory(
        layers=layers,
        depths=np.array([*(adapter.depth(layer) for layer in layers), 1.0]),
        input_ids=ids,
        targets=wanted,
        entropy=entropy,
        ce=ce,
        kl=kl,
        rank=rank,
        top_ids=top_ids,
        top_probabilities=top_probabilities,
        vocab_size=adapter.vocab_size,
    )


def _read(lens: Lens, layers: Sequence[int], chunk: Chunk, k: int) -> list[np.ndarray]:
    """Entropy, ce, kl, rank (rows, tokens), top probabilities and ids (rows, tokens, k) of some tokens."""
    p, aimed = chunk.log_p.exp(), chunk.labels != NO_TARGET
    rows = []
    for layer in (*layers, None):
        log_q = chunk.log_p if layer is None else log_predictions(lens, chunk.hidden[layer], layer)
        log_target = log_q.gather(-1, chunk.labels.clamp(min=0)[:, None])  # (tokens, 1)
        top = log_q.topk(k, dim=-1)
        rows.append(
            (
                -torch.linalg.vecdot(log_q.exp(), log_q),
                torch.where(aimed, -log_target[:, 0], torch.nan),
                torch.linalg.vecdot(p, chunk.log_p - log_q),
                torch.where(aimed, (log_q > log_target).sum(-1), NO_TARGET),
                top.values.exp(),
                top.indices,
            )
        )
    return [torch.stack(figures).cpu().numpy() for figures in zip(*rows, strict=True)]


def _checked(ids: Tensor | Sequence[int], adapter: ModelAdapter, lowest: int) -> np.ndarray:
    """Token ids (tokens), int64. Raises DataError unless it is a sequence of whole numbers between `lowest` and the
    vocabulary's end."""
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids if len(ids) else np.empty(0, np.int64))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"token ids have the shape {array.shape} and type {array.dtype}; give one sequence of whole numbers"
        )
    if len(array) and not (lowest <= array.min() and array.max() < adapter.vocab_size):
        raise DataError(
            f"token ids run from {array.min()} to {array.max()}, and {adapter.name} has 0 to {adapter.vocab_size - 1}"
        )
    return array.astype(np.int64)

"""Prediction trajectories: what a lens reads at each layer and token of one text, and what the model says in the end.

Belrose et al. 2023, arXiv 2303.08112, figure 1. Arrays are (rows, tokens): one row for each layer read, the last for
the model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.metrics import TokenSpan, reads, rows_of, token_spans
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import OneText, one_text, whole_numbers

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad
from tuned_lens.nn.lenses import Lens

FORMAT = 1
"""Of trajectory.json; files from before there were formats have none."""
NO_TARGET = -1
"""The target of a token that nothing follows; also its rank. Its cross-entropy is NaN."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Predictions by layer and token of one text. A trivial layer has no row: it is the model itself, which is the last
    row."""

    layers: tuple[int, ...]
    """The layer of each row but the last."""
    depths: Float64[np.ndarray, " rows"]
    """Fraction of the blocks applied; 1 for the model."""
    input_ids: Int64[np.ndarray, " tokens"]
    """The text."""
    targets: Int64[np.ndarray, " tokens"]
    """What should be predicted; by default the next token. NO_TARGET where there is none."""
    entropy: Float[np.ndarray, "rows tokens"]
    """Of the prediction q, in nats."""
    ce: Float[np.ndarray, "rows tokens"]
    """−ln q(target), in nats; NaN where there is no target."""
    kl: Float[np.ndarray, "rows tokens"]
    """KL(p ‖ q) from the model's prediction p, in nats; 0 for the model."""
    rank: Int64[np.ndarray, "rows tokens"]
    """How many tokens are likelier than the target: 0 if it is the first choice."""
    top_ids: Int64[np.ndarray, "rows tokens k"]
    """The likeliest tokens, the likeliest first."""
    top_probabilities: Float[np.ndarray, "rows tokens k"]
    """Their probabilities."""
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

    def values(self, statistic: str) -> Float[np.ndarray, "rows tokens"]:
        """A statistic by its name in STATISTICS; NaN where it needs a target and there is none."""
        return named(statistic).of(self)

    def minus(self, other: "Trajectory", statistic: str) -> Float[np.ndarray, "rows tokens"]:
        """A statistic here less what it is in `other`, another lens, model or text of as many rows and tokens.

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
    of: Callable[[Trajectory], Float[np.ndarray, "rows tokens"]]
    """Its values."""


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
    input_ids: OneText,
    targets: Tensor | Sequence[int] | None = None,
    *,
    top_k: int = 20,
    stride: int = 1,
) -> Trajectory:
    """Read one text or its token ids (tokens), at every layer that is not trivial and that the lens reads, or every
    `stride`-th of them, and at the model's output.

    targets (tokens): what each position should predict, NO_TARGET for nothing; by default the next token. Logits are
    held for a few hundred tokens and one layer at a time.

    Raises DataError for no tokens, more than the model can read, ids that it does not have, or another number of
    targets; ConfigError for a top_k or stride below 1.
    """
    if top_k < 1 or stride < 1:
        raise ConfigError(f"top_k is {top_k} and stride {stride}; both must be at least 1")
    batch = one_text(adapter, input_ids)  # (1, tokens)
    ids = batch[0].cpu()  # a copy of what was given
    wanted = pad(ids[1:], (0, 1), value=NO_TARGET) if targets is None else _checked_targets(adapter, targets, len(ids))
    layers = tuple(layer for layer in adapter.fitted_layers if reads(lens, layer))[::stride]
    parts, done = [], 0
    for span in token_spans(adapter, adapter.forward(batch), batch):
        tokens = len(span.labels)
        labels = wanted[done : done + tokens].to(batch.device)
        parts.append(_read(lens, layers, span._replace(labels=labels), min(top_k, adapter.vocab_size)))
        done += tokens
    entropy, ce, kl, rank, top_probabilities, top_ids = (
        np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)
    )
    return Trajectory(
        layers=layers,
        depths=np.array([*(adapter.depth(layer) for layer in layers), 1.0]),
        input_ids=ids.numpy(),
        targets=wanted.numpy(),
        entropy=entropy,
        ce=ce,
        kl=kl,
        rank=rank,
        top_ids=top_ids,
        top_probabilities=top_probabilities,
        vocab_size=adapter.vocab_size,
    )


def _read(lens: Lens, layers: Sequence[int], span: TokenSpan, k: int) -> list[np.ndarray]:
    """Entropy, ce, kl, rank (rows, tokens), top probabilities and ids (rows, tokens, k) of some tokens."""
    aimed = span.labels != NO_TARGET
    rows = []
    for layer in (*layers, None):
        logits = span.logits if layer is None else lens(span.hidden[layer], layer)
        passes = rows_of(logits)
        ce, kl, entropy = passes.figures(logits, span.aim, span.labels).unbind(1)
        of_target = logits.gather(-1, span.labels.clamp(min=0)[:, None])  # (tokens, 1)
        top = logits.topk(k, dim=-1)
        rows.append(
            (
                entropy,
                torch.where(aimed, ce, torch.nan),
                kl if layer is not None else torch.zeros_like(kl),  # of the model from itself, but for rounding
                torch.where(aimed, (logits > of_target).sum(-1), NO_TARGET),
                (top.values.float() - passes.normalizers(logits)[:, None]).exp(),
                top.indices,
            )
        )
    return [torch.stack(values).cpu().numpy() for values in zip(*rows, strict=True)]


def _checked_targets(adapter: ModelAdapter, targets: Tensor | Sequence[int], tokens: int) -> Tensor:
    """The targets (tokens), int64, on the CPU. Raises DataError for another number of them, or for one that the
    vocabulary does not have and that is not NO_TARGET."""
    wanted = whole_numbers(targets, "targets")
    if len(wanted) != tokens:
        raise DataError(f"there are {len(wanted)} targets for {tokens} tokens; give one a token, {NO_TARGET} for none")
    one_text(adapter, wanted.where(wanted != NO_TARGET, 0))
    return wanted

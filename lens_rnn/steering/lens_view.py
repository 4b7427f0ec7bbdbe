"""Steering seen through the tuned lens: what it does to latent predictions layer by layer, and what a vector itself
says."""

from collections.abc import Sequence
from dataclasses import dataclass

from lens_rnn.lens import Lens
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.steering.evaluation import Edit, Prefix
from lens_rnn.steering.pairs import Question
from lens_rnn.steering.vectors import RESIDUAL, last_states

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentEffect:
    """Change of what the lens reads at the last token of each question. The last row is the model itself."""

    layers: tuple[int, ...]
    """The layer of each row but the last."""
    depths: np.ndarray
    """(rows): fraction of blocks applied; 1 for the model."""
    log_odds: np.ndarray
    """(rows, multipliers, questions): steered less unsteered log-odds of the matching answer, in nats. 0 before the
    layer steered."""
    kl: np.ndarray
    """(rows, multipliers, questions): KL(unsteered ‖ steered), in nats."""


@torch.no_grad()
def latent_effect(
    adapter: ModelAdapter, lens: Lens, questions: Sequence[Question], edit: Edit, multipliers: Sequence[float]
) -> LatentEffect:
    """Read every layer that is not trivial, unsteered and at each multiplier."""
    times = torch.tensor([0.0, *multipliers], dtype=torch.float32, device=adapter.device)
    layers = adapter.fitted_layers
    log_odds = np.zeros((len(layers) + 1, len(multipliers), len(questions)))
    kl = np.zeros_like(log_odds)
    for q, question in enumerate(questions):
        forward = Prefix.of(adapter, question.ids, len(times)).finish(adapter, edit, times)
        for row, log_p in enumerate(_log_probabilities(adapter, lens, forward)):  # (1 + multipliers, vocab)
            odds = log_p[:, question.matching] - log_p[:, question.other]
            log_odds[row, :, q] = (odds[1:] - odds[0]).cpu()
            kl[row, :, q] = (log_p[0].exp() * (log_p[0] - log_p[1:])).sum(-1).cpu()
    depths = np.array([*(adapter.depth(layer) for layer in layers), 1.0])
    return LatentEffect(layers=layers, depths=depths, log_odds=log_odds, kl=kl)


def _log_probabilities(adapter: ModelAdapter, lens: Lens, forward: Forward) -> list[Tensor]:
    """ln q (batch, vocab), float64, at the last token: of each layer that is not trivial, then of the model."""
    logits = [lens(forward.hidden_states[layer][:, -1], layer) for layer in adapter.fitted_layers]
    logits.append(adapter.logits(forward.final[:, -1]))
    return [torch.log_softmax(x.double(), -1) for x in logits]


def mean_hidden(adapter: ModelAdapter, questions: Sequence[Question], layer: int, batch_size: int = 16) -> Tensor:
    """The mean hidden state (d_model) of a layer at the last tokens of the questions, where a vector is added."""
    total = torch.zeros(adapter.d_model, dtype=torch.float64)
    for start in range(0, len(questions), batch_size):
        texts = [question.ids for question in questions[start : start + batch_size]]
        total += last_states(adapter, texts, states=False)[f"{RESIDUAL}.{layer}"].double().sum(0)
    return (total / len(questions)).float()


def read_vector(lens: Lens, vector: Tensor, layer: int, mean: Tensor) -> Tensor:
    """Logits (vocab) that a small step along a residual vector (d_model) adds, read by the lens: U J(z̄) (I + W) v,
    float32.

    The translator's bias drops out: it is not the vector's. J is the Jacobian of the final norm at z̄, the translated
    mean hidden state `mean` (d_model); U is the head, before any cap.
    """
    device = lens.unembed.unembedding.weight.device
    h, v = mean.to(device), vector.to(device)
    z = lens.transform_hidden(h, layer)  # (d_model): z̄, the mean of translated states: a translator is affine
    along = lens.transform_hidden(v, layer) - lens.transform_hidden(torch.zeros_like(v), layer)  # every kind is affine
    # not torch.func.jvp: of a LayerNorm its rounding is another (2e-7), and published figures would change
    moved = torch.autograd.functional.jvp(lens.unembed.normed, z, along)[1]  # (d_model): J (I + W) v
    head = lens.unembed.unembedding.weight
    return (head.float() @ moved.float()).detach()


def top_tokens(logits: Tensor, count: int = 10) -> tuple[list[int], list[int]]:
    """The tokens that a reading promotes most, and those that it suppresses most, the strongest first."""
    return logits.topk(count).indices.tolist(), (-logits).topk(count).indices.tolist()

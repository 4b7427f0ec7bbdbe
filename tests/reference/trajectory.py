"""Naive twins of trajectories, transfer, marginals and JS divergence: all logits at once, in float64, from transformers
itself."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from tuned_lens.nn.lenses import Lens


class Naive(NamedTuple):
    """(rows, tokens) each; rows are the given layers and the model."""

    entropy: np.ndarray
    ce: np.ndarray
    kl: np.ndarray
    rank: np.ndarray
    order: np.ndarray
    """(rows, tokens, vocab): all tokens, the likeliest first."""
    probabilities: np.ndarray
    """(rows, tokens, vocab)."""


@torch.no_grad()
def read(model: PreTrainedModel, lens: Lens, ids: Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Probabilities (…, vocab) of ids (batch, seq): the lens's at every hidden state but the last, and the model's."""
    output = model(ids, output_hidden_states=True, use_cache=False)
    layers = [lens(h, i).double().softmax(-1).numpy() for i, h in enumerate(output.hidden_states[:-1])]
    return layers, output.logits.double().softmax(-1).numpy()


def predict(model: PreTrainedModel, lens: Lens, ids: list[int], targets: list[int], layers: tuple[int, ...]) -> Naive:
    """One text, token by token; a target of −1 is none."""
    read_layers, p = read(model, lens, torch.tensor([ids]))
    rows = [*(read_layers[i][0] for i in layers), p[0]]
    out = Naive(
        *(np.full((len(rows), len(ids)), np.nan) for _ in range(4)), np.argsort(-np.array(rows), -1), np.array(rows)
    )
    for r, row in enumerate(rows):
        for t, q in enumerate(row):
            out.entropy[r, t] = -sum(x * np.log(x) for x in q)
            out.kl[r, t] = sum(y * np.log(y / x) for x, y in zip(q, p[0, t], strict=True))
            if targets[t] >= 0:
                out.ce[r, t] = -np.log(q[targets[t]])
                out.rank[r, t] = sorted(q, reverse=True).index(q[targets[t]])
    return out


@torch.no_grad()
def transfer(model: PreTrainedModel, lens: Lens, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(ce, kl), (translators, sources) each, of ids (batch, seq)."""
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states[:-1]
    ce, kl = np.zeros((2, len(states), len(states)))
    for s, h in enumerate(states):
        own = lens(h, s).double().log_softmax(-1)
        for t in range(len(states)):
            q = lens(h, t).double().log_softmax(-1)
            ce[t, s] = torch.nn.functional.cross_entropy(q[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            kl[t, s] = torch.nn.functional.kl_div(q, own, log_target=True, reduction="none").sum(-1).mean()
    return ce, kl

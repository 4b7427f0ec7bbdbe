"""The naive twin of the evaluation: every logit of every token at once, in float64, from transformers' own outputs."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from tuned_lens.nn.lenses import Lens


class Naive(NamedTuple):
    """(ce, kl, entropy) in nats a token: of the model, and of the lens at each hidden state that transformers returns
    but the last."""

    model: tuple[float, float, float]
    layers: list[tuple[float, float, float]]


@torch.no_grad()
def evaluate(model: PreTrainedModel, lens: Lens, ids: Tensor) -> Naive:
    """ids (batch, seq). KL and entropy over all positions, cross-entropy over those that another token follows."""
    output = model(ids, output_hidden_states=True, use_cache=False)
    log_p = output.logits.double().log_softmax(-1)  # (batch, seq, vocab)
    layers = [figures(lens(h, i).double().log_softmax(-1), log_p, ids) for i, h in enumerate(output.hidden_states[:-1])]
    return Naive(figures(log_p, log_p, ids), layers)


def figures(log_q: Tensor, log_p: Tensor, ids: Tensor) -> tuple[float, float, float]:
    """(ce, kl, entropy) of predictions q (batch, seq, vocab) beside the model's p."""
    ce = [-log_q[b, t, ids[b, t + 1]] for b in range(ids.shape[0]) for t in range(ids.shape[1] - 1)]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    return float(torch.stack(ce).mean()), float(kl.mean()), float(entropy.mean())

"""Naive twins of the fit: the losses by autograd over the whole vocabulary, and ridge regression by least squares on
stacked rows."""

from lens_rnn.lens import Unembedding

import torch
from torch import Tensor


def kl(z: Tensor, final: Tensor, unembedding: Unembedding) -> Tensor:
    """KL(p ‖ q) per token; z and final are (tokens, d_model), before and after the final norm."""
    scale, cap = unembedding.logit_map
    logits = scale * unembedding.unembedding(final)
    log_p = (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)
    log_q = unembedding(z).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def ce(z: Tensor, labels: Tensor, unembedding: Unembedding) -> Tensor:
    """Cross-entropy per token; labels (tokens)."""
    return torch.nn.functional.cross_entropy(unembedding(z), labels, reduction="none")


def draws_of(labels: Tensor, z: Tensor, unembedding: Unembedding) -> Tensor:
    """Draws in [0, 1) (tokens) from which the inverse CDF of q, in the order of the labels, makes just these labels
    (tokens)."""
    q = unembedding(z).double().softmax(-1)
    middles = q.cumsum(-1) - q / 2
    return middles.gather(-1, labels[:, None])[:, 0].to(z.dtype)


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W and b that minimise mean ‖y − W x − b‖² + λ ‖W‖² with λ = strength × mean variance of x, by stacked least
    squares."""
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    penalty = strength * centred_x.square().mean()
    rows = torch.cat([centred_x, torch.eye(x.shape[1]).to(x) * (penalty * len(x)).sqrt()])
    targets = torch.cat([centred_y, torch.zeros(x.shape[1], y.shape[1]).to(y)])
    weight = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    return weight, y.mean(0) - weight @ x.mean(0)

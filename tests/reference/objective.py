"""Naive twins of the fit: the losses by autograd over the whole vocabulary, and ridge regression by least squares on
stacked rows."""

from lens_rnn.lens import Unembedding

import torch
from torch import Tensor


def kl(z: Tensor, final: Tensor, unembedding: Unembedding) -> Tensor:
    """KL(p ‖ q) per token; z and final are (tokens, d_model), before and after the final norm."""
    log_p = model_logits(final, unembedding).log_softmax(-1)
    log_q = unembedding(z).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def ce(z: Tensor, labels: Tensor, unembedding: Unembedding) -> Tensor:
    """Cross-entropy per token; labels (tokens)."""
    return torch.nn.functional.cross_entropy(unembedding(z), labels, reduction="none")


def model_logits(final: Tensor, unembedding: Unembedding) -> Tensor:
    """The model's own logits (tokens, vocab) from its normed final states (tokens, d_model)."""
    scale, cap = unembedding.logit_map
    logits = scale * unembedding.unembedding(final)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def draws_of(labels: Tensor, final: Tensor, unembedding: Unembedding) -> Tensor:
    """Draws in [0, 1) (tokens) from which the inverse CDF of p, in the order of the labels, makes just these labels
    (tokens)."""
    p = model_logits(final, unembedding).double().softmax(-1)
    middles = p.cumsum(-1) - p / 2
    return middles.gather(-1, labels[:, None])[:, 0].to(final.dtype)


def score(z: Tensor, final: Tensor, labels: Tensor, unembedding: Unembedding) -> Tensor:
    """s (tokens, d_model): the gradient at z of logits(z) · (p − e[y]), with p held still."""
    p = model_logits(final, unembedding).softmax(-1).detach()
    z = z.detach().requires_grad_()
    along = p - torch.nn.functional.one_hot(labels, p.shape[-1])
    return torch.autograd.grad((unembedding(z) * along).sum(), z)[0]


def ridge(x: Tensor, y: Tensor, strength: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """W and b that minimise mean w ‖y − W x − b‖² + λ ‖W‖² with λ = strength × mean variance of x, by stacked least
    squares; weights of mean 1, all alike by default."""
    w = torch.ones(len(x)).to(x) if weights is None else weights / weights.mean()
    mean_x, mean_y = (w[:, None] * x).mean(0), (w[:, None] * y).mean(0)
    root = w.sqrt()[:, None]
    centred_x, centred_y = root * (x - mean_x), root * (y - mean_y)
    penalty = strength * centred_x.square().mean()
    rows = torch.cat([centred_x, torch.eye(x.shape[1]).to(x) * (penalty * len(x)).sqrt()])
    targets = torch.cat([centred_y, torch.zeros(x.shape[1], y.shape[1]).to(y)])
    weight = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    return weight, mean_y - weight @ mean_x

"""The passes over rows of logits in torch, for any device and precision: in float64 where the logits are, else in
float32."""

from math import log

from lens_rnn.rows import Aim, Target

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


class PlainRows:
    """For logits of any dtype on any device."""

    def normalizers(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
        return _wide(logits).logsumexp(-1)

    def sample_(
        self, logits: Float[Tensor, "tokens vocab"], draws: Float[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        normalizers = self.normalizers(logits)
        p = (_wide(logits) - normalizers[:, None]).exp_()
        below = p.cumsum(-1) <= draws[:, None]  # rounding can leave the last sum below the draw
        labels = below.sum(-1).clamp(max=p.shape[1] - 1)
        logits.copy_(_less_one(p, labels))
        return normalizers, labels

    def difference_(self, logits: Float[Tensor, "tokens vocab"], target: Target) -> Float[Tensor, " tokens"]:
        log_q = _wide(logits).log_softmax(-1)
        q = log_q.exp()
        if target.labels is not None:
            logits.copy_(_less_one(q, target.labels))
            return -log_q.gather(-1, target.labels[:, None])[:, 0]
        log_p = _wide(target.logits) - target.normalizers[:, None]
        p = log_p.exp()
        loss = torch.linalg.vecdot(p, log_p - log_q)
        logits.copy_(q.sub_(p))
        return loss

    def figures(
        self, logits: Float[Tensor, "tokens vocab"], aim: Aim, labels: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens 3"]:
        log_q = _wide(logits).log_softmax(-1)
        ce = -log_q.gather(-1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels < 0, 0.0)
        kl = torch.linalg.vecdot(aim.p.to(log_q.dtype), aim.log_p - log_q)
        return torch.stack([ce, kl, -torch.linalg.vecdot(log_q.exp(), log_q)], dim=1)

    def add_probabilities(self, logits: Float[Tensor, "tokens vocab"], total: Float64[Tensor, " vocab"]) -> None:
        total += _wide(logits).log_softmax(-1).logsumexp(0).double().exp().to(total.device)

    def js(
        self, logits: Float[Tensor, "tokens vocab"], others: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, " tokens"]:
        log_p, log_q = _wide(logits).log_softmax(-1), _wide(others).log_softmax(-1)
        log_m = torch.logaddexp(log_p, log_q) - log(2)
        return (torch.linalg.vecdot(log_p.exp(), log_p - log_m) + torch.linalg.vecdot(log_q.exp(), log_q - log_m)) / 2


def _less_one(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (tokens, vocab) less 1 at each token's label, in place."""
    at = labels[:, None]
    return probabilities.scatter_add_(-1, at, -torch.ones_like(at, dtype=probabilities.dtype))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

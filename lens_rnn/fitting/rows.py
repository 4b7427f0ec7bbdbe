"""Elementwise work on rows of logits, one row a token: normalizers, loss, q − p, and a label drawn from p.

Here in plain torch, for any device and precision; `rows_cpu` and `rows_cuda` do the same in one pass over memory, in
float32. `rows_for` picks.
"""

import logging
from functools import cache
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Target(NamedTuple):
    """What the lens should predict for some tokens: the distribution p, by the model's logits, or the next tokens."""

    logits: Tensor
    """(tokens, vocab): p = exp(logits − normalizers); empty where labels are given."""
    normalizers: Tensor
    """(tokens): log Σ exp(logits); empty where labels are given."""
    labels: Tensor | None = None
    """Next tokens (tokens): p is one-hot."""


class RowKernels(Protocol):
    """The passes over rows of logits (tokens, vocab), on one kind of device."""

    def normalizers(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
        """log Σ exp(logits) (tokens)."""

    def sample_(
        self, logits: Float[Tensor, "tokens vocab"], draws: Float[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """Turn logits, with p = softmax(logits), into p − e[y], in place, for labels y that are drawn from p: of each
        token the first whose cumulated probability exceeds its draw, uniform in [0, 1).

        Returns log Σ exp(logits) (tokens), and the labels (tokens).
        """

    def difference_(self, logits: Float[Tensor, "tokens vocab"], target: Target) -> Float[Tensor, " tokens"]:
        """Turn logits, with q = softmax(logits), into q − p, in place.

        Returns the loss (tokens) in nats, KL(p ‖ q) or −log q[label].
        """


class PlainRows:
    """In torch, in float64 where the logits are, else in float32."""

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


def rows_for(logits_dtype: torch.dtype, device: torch.device) -> RowKernels:
    """The fastest passes that there are for logits of this dtype on this device."""
    if device.type == "cpu" and logits_dtype in (torch.float32, torch.bfloat16):
        from lens_rnn.fitting.rows_cpu import CompiledRows

        return CompiledRows()
    if device.type == "cuda" and logits_dtype in (torch.float32, torch.bfloat16):
        try:
            from lens_rnn.fitting.rows_cuda import TritonRows
        except ImportError as error:
            _log_once(f"the fit's passes over logits run in plain torch, which is slower: {error}")
        else:
            return TritonRows()
    return PlainRows()


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _less_one(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (tokens, vocab) less 1 at each token's label, in place."""
    at = labels[:, None]
    return probabilities.scatter_add_(-1, at, -torch.ones_like(at, dtype=probabilities.dtype))


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

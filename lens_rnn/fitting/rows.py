"""Elementwise work on rows of logits, one row a token: softmax, loss, q − p, and a label drawn from q.

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

    def softmax_(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
        """Turn logits into probabilities, in place. Returns log Σ exp(logits) (tokens)."""

    def difference_(
        self, logits: Float[Tensor, "tokens vocab"], target: Target, draws: Float[Tensor, " tokens"] | None
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"] | None]:
        """Turn logits, with q = softmax(logits), into q − p, in place.

        Returns the loss (tokens) in nats, KL(p ‖ q) or −log q[label], and, where draws (tokens), uniform in [0, 1), are
        given, a label drawn from q for each token: the first whose cumulated probability exceeds its draw.
        """


class PlainRows:
    """In torch, in float64 where the logits are, else in float32."""

    def softmax_(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
        wide = _wide(logits)
        normalizers = wide.logsumexp(-1)
        logits.copy_((wide - normalizers[:, None]).exp_())
        return normalizers

    def difference_(
        self, logits: Float[Tensor, "tokens vocab"], target: Target, draws: Float[Tensor, " tokens"] | None
    ) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"] | None]:
        log_q = _wide(logits).log_softmax(-1)
        q = log_q.exp()
        samples = None
        if draws is not None:
            below = q.cumsum(-1) <= draws[:, None]  # rounding can leave the last sum below the draw
            samples = below.sum(-1).clamp(max=q.shape[1] - 1)
        if target.labels is not None:
            labels = target.labels[:, None]
            loss = -log_q.gather(-1, labels)[:, 0]
            logits.copy_(q.scatter_add_(-1, labels, -torch.ones_like(loss)[:, None]))
            return loss, samples
        log_p = _wide(target.logits) - target.normalizers[:, None]
        p = log_p.exp()
        loss = torch.linalg.vecdot(p, log_p - log_q)
        logits.copy_(q.sub_(p))
        return loss, samples


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


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

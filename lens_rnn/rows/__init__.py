"""Elementwise work on rows of logits, one row a token: normalizers, loss, q − p, a label drawn from p, and what an
evaluation says of q.

`plain` does it in torch, for any device and precision; `cpu` and `cuda` do the same in one pass over memory, in
float32. `rows_for` picks.
"""

import logging
from functools import cache
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


class Target(NamedTuple):
    """What the lens should predict for some tokens: the distribution p, by the model's logits, or the next tokens."""

    logits: Tensor
    """(tokens, vocab): p = exp(logits − normalizers); empty where labels are given."""
    normalizers: Tensor
    """(tokens): log Σ exp(logits); empty where labels are given."""
    labels: Tensor | None = None
    """Next tokens (tokens): p is one-hot."""


class Aim(NamedTuple):
    """What predictions are measured by: the distribution p of some tokens, made once for all that is."""

    log_p: Tensor
    """(tokens, vocab), float32, or float64 where the logits are."""
    p: Tensor
    """(tokens, vocab)."""

    @classmethod
    def of(cls, logits: Float[Tensor, "tokens vocab"]) -> "Aim":
        """p = softmax(logits)."""
        log_p = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
        return cls(log_p, log_p.exp())


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

    def figures(
        self, logits: Float[Tensor, "tokens vocab"], aim: Aim, labels: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens 3"]:
        """−log q[label], KL(p ‖ q) and the entropy of q = softmax(logits), in nats. The first is 0 where a label is
        below 0."""

    def add_probabilities(self, logits: Float[Tensor, "tokens vocab"], total: Float64[Tensor, " vocab"]) -> None:
        """Add Σ over tokens of q = softmax(logits) to `total`, to which far less than the smallest float32 counts."""

    def js(
        self, logits: Float[Tensor, "tokens vocab"], others: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, " tokens"]:
        """Jensen–Shannon divergence (tokens) of the two distributions, in nats."""


def rows_for(logits_dtype: torch.dtype, device: torch.device) -> RowKernels:
    """The fastest passes that there are for logits of this dtype on this device."""
    if device.type == "cpu" and logits_dtype in (torch.float32, torch.bfloat16):
        from lens_rnn.rows.cpu import CompiledRows

        return CompiledRows()
    if device.type == "cuda" and logits_dtype in (torch.float32, torch.bfloat16):
        try:
            from lens_rnn.rows.cuda import TritonRows
        except ImportError as error:
            _log_once(f"passes over logits run in plain torch, which is slower: {error}")
        else:
            return TritonRows()
    from lens_rnn.rows.plain import PlainRows

    return PlainRows()


@cache
def _log_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)

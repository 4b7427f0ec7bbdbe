"""The fit's loss and its gradient at the translated states, without an autograd graph over the vocabulary.

Symbols, per token (Belrose et al. 2023, arXiv 2303.08112, eqs. 5 to 7; there the lens is fitted by autograd):

    z   translated state                        (d_model)
    u   final_norm(z)                           (d_model)
    U   head's weight                           (vocab, d_model)
    q   softmax(U u)                            (vocab)
    p   the model's own next-token distribution (vocab), or the next token itself, one-hot
    γ   gradient of the loss at u = Uᵀ(q − p)   (d_model)
    g   gradient at z = Jᵀ γ, J the norm's Jacobian at z

A chunk of tokens is all that is ever held at vocabulary size. The naive twin stands in tests/reference/objective.py.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from lens_rnn.lens import Unembedding
from lens_rnn.models import Forward

import torch
from torch import Tensor

Loss = Literal["kl", "ce"]
LOSSES: tuple[Loss, ...] = ("kl", "ce")
_CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**29}  # of one float32 (tokens, vocab) buffer: on a CPU it should stay in the last-level cache


class Target(NamedTuple):
    """What the lens should predict for a chunk of tokens."""

    probabilities: Tensor
    """p (tokens, vocab), float32; empty where labels are given."""
    entropy: Tensor
    """−Σ p log p (tokens); empty where labels are given."""
    labels: Tensor | None = None
    """Next tokens (tokens), for cross-entropy."""


class Chunk(NamedTuple):
    """Some tokens of a batch: the hidden states of every layer, and what they should lead to."""

    hidden: list[Tensor]
    """One (tokens, d_model) per layer."""
    target: Target


class FusedObjective:
    """KL(p ‖ q) or cross-entropy per token, with the gradient at z."""

    def __init__(self, unembedding: Unembedding, loss: Loss = "kl", products: torch.dtype | None = None, chunk_tokens: int | None = None):
        """products: dtype of the two matrix products with U, by default the head's own. Softmax and losses are float32, or float64
        where the head is. chunk_tokens: tokens at a time, by default what keeps one buffer small."""
        self.unembedding = unembedding
        self.loss = loss
        head = unembedding.unembedding
        self.products = products or head.weight.dtype
        self.weight = head.weight.detach().to(self.products)
        self.bias = None if head.bias is None else head.bias.detach().to(self.products)
        self.precision = torch.float64 if head.weight.dtype == torch.float64 else torch.float32
        self.chunk_tokens = chunk_tokens or default_chunk_tokens(head.out_features, self.weight.device.type)

    def chunks(self, forward: Forward, input_ids: Tensor) -> Iterator[Chunk]:
        """Cut a batch into chunks. For cross-entropy the last token of a sequence has no target and is left out."""
        keep = slice(None) if self.loss == "kl" else slice(None, -1)
        labels = input_ids[:, 1:].reshape(-1) if self.loss == "ce" else None
        final = forward.final[:, keep].flatten(0, 1)
        hidden = [h[:, keep].flatten(0, 1) for h in forward.hidden_states]
        for start in range(0, len(final), self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            yield Chunk([h[part] for h in hidden], self.target(final[part], None if labels is None else labels[part]))

    @torch.no_grad()
    def target(self, final: Tensor, labels: Tensor | None = None) -> Target:
        """The target of some tokens, from the normed final states (tokens, d_model) or from the next tokens (tokens)."""
        if labels is not None:
            return Target(final.new_empty(0), final.new_empty(0), labels)
        log_p = torch.log_softmax(self._logits(final), dim=-1)
        p = log_p.exp()
        return Target(p, -torch.linalg.vecdot(p, log_p))

    def value_and_gradient(self, z: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Losses (tokens), in nats, and their gradients at z (tokens, d_model). z is not part of any graph afterwards."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            u = self.unembedding.normed(z)
        with torch.no_grad():
            loss, at_logits = self._at_logits(self._logits(u), target)
            at_u = (at_logits.to(self.products) @ self.weight).to(u.dtype)
        (gradient,) = torch.autograd.grad(u, z, at_u)
        return loss, gradient

    def _logits(self, u: Tensor) -> Tensor:
        return torch.nn.functional.linear(u.to(self.products), self.weight, self.bias).to(self.precision)

    @staticmethod
    def _at_logits(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Losses and q − p, which reuses one (tokens, vocab) buffer."""
        log_q = torch.log_softmax(logits, dim=-1)
        if target.labels is not None:
            labels = target.labels[:, None]
            loss = -log_q.gather(-1, labels)[:, 0]
            return loss, log_q.exp_().scatter_add_(-1, labels, torch.full_like(loss, -1)[:, None])
        loss = -target.entropy - torch.linalg.vecdot(target.probabilities, log_q)
        return loss, log_q.exp_().sub_(target.probabilities)


def default_chunk_tokens(vocab_size: int, device_type: str) -> int:
    """Tokens whose float32 logits fill one buffer of the size that suits the device, between 64 and 8,192."""
    return max(64, min(8192, _CHUNK_BYTES.get(device_type, 2**26) // (4 * vocab_size)))

"""The fit's loss and its gradient at the translated states, without an autograd graph over the vocabulary.

Symbols, per token (Belrose et al. 2023, arXiv 2303.08112, eqs. 5 to 7; there the lens is fitted by autograd):

    z   translated state                        (d_model)
    u   final_norm(z)                           (d_model)
    U   head's weight, times the model's scale of logits where it has one                    (vocab, d_model)
    c   the model's logit cap, ∞ for most: its logits are c · tanh(U u ÷ c), with derivative D = 1 − (logits ÷ c)²
        (vocab)
    q   softmax(logits)                         (vocab)
    p   the model's own next-token distribution (vocab), or the next token itself, one-hot
    γ   gradient of the loss at u = UᵀD(q − p)  (d_model)
    g   gradient at z = Jᵀ γ, J the norm's Jacobian at z
    y   a label drawn from the model's own prediction p, one a token for all layers
    s   Jᵀ UᵀD(p − e[y]), what the gradient at z of −log q[y] is where q = p; over labels, E[s sᵀ] is the Fisher
        information at z of a lens that has arrived (Martens & Grosse 2015, arXiv 1503.05671, section 2.1). Nothing in
        it but J and D depends on what is being fitted, so no rounding of the fit can tip a label. Without a cap,
        Uᵀ(p − e[y]) is one product for all layers

A chunk of tokens is all that is ever held at vocabulary size. The naive twin stands in tests/reference/objective.py.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple

from lens_rnn.lens import Unembedding
from lens_rnn.models import Forward
from lens_rnn.rows import Target, rows_for

import torch
from jaxtyping import Float, Int
from torch import Tensor

Loss = Literal["kl", "ce"]
LOSSES: tuple[Loss, ...] = ("kl", "ce")
_CHUNK_BYTES = {
    "cpu": 2**25,
    "cuda": 2**29,
}  # of one (tokens, vocab) buffer of logits: on a CPU two should fit the last-level cache
_CHUNK_TOKENS = {"cpu": (256, 1024), "cuda": (64, 8192)}  # least and most: products of fewer rows are slow


class Chunk(NamedTuple):
    """Some tokens of a batch: the hidden states of every layer, and what they should lead to."""

    hidden: list[Tensor]
    """One (tokens, d_model) per layer."""
    target: Target
    score: Tensor | None
    """Where draws were given: Uᵀ(p − e[y]) (tokens, d_model) or, for a model with a cap, p − e[y] (tokens, vocab)."""


class Derivatives(NamedTuple):
    """What the objective knows of one layer at some tokens."""

    loss: Tensor
    """(tokens), in nats."""
    gradient: Tensor
    """g (tokens, d_model)."""
    sampled: Tensor | None
    """s (tokens, d_model), where a score was given."""


class FusedObjective:
    """KL(p ‖ q) or cross-entropy per token, with the gradient at z."""

    def __init__(
        self,
        unembedding: Unembedding,
        loss: Loss = "kl",
        products: torch.dtype | None = None,
        chunk_tokens: int | None = None,
    ):
        """products: dtype of the matrix products with U and of their results, by default the head's own. Softmax and
        losses are float32, or float64 where the head is. chunk_tokens: tokens at a time, by default what keeps one
        buffer small."""
        self.unembedding = unembedding
        self.loss = loss
        head = unembedding.unembedding
        self.products = products or head.weight.dtype
        self.map = unembedding.logit_map
        # The map's scale is multiplied into both, so that only a cap is work for each logit.
        self.weight = self._scaled(head.weight)
        self.bias = None if head.bias is None else self._scaled(head.bias)
        device = self.weight.device
        self.rows = rows_for(self.products, device)
        self.chunk_tokens = chunk_tokens or default_chunk_tokens(head.out_features, self.products, device.type)

    def _scaled(self, of_head: Tensor) -> Tensor:
        wide = of_head.detach().to(self.products)
        return wide if self.map.scale == 1 else wide * self.map.scale

    def targets(self, seq_len: int) -> int:
        """How many tokens of a sequence have a target."""
        return seq_len if self.loss == "kl" else seq_len - 1

    def chunks(
        self,
        forward: Forward,
        input_ids: Int[Tensor, "batch seq"],
        draws: Float[Tensor, " chosen"] | None = None,
        positions: Int[Tensor, " chosen"] | None = None,
    ) -> Iterator[Chunk]:
        """Cut a batch into chunks. For cross-entropy the last token of a sequence has no target and is left out.

        positions: which tokens to look at, counted over those with a target, sequence after sequence; by default all.
        draws: uniform in [0, 1), one for each of them, where labels are to be drawn.
        """
        targets = self.targets(input_ids.shape[1])
        labels = input_ids[:, 1:].reshape(-1) if self.loss == "ce" else None
        if positions is None:
            positions = torch.arange(len(input_ids) * targets)
        positions = positions.to(input_ids.device)
        # Of a sequence with targets for all its tokens the place is the position itself.
        places = positions if targets == input_ids.shape[1] else positions + positions // targets
        final, hidden = forward.final.flatten(0, 1), [h.flatten(0, 1) for h in forward.hidden_states]
        for start in range(0, len(places), self.chunk_tokens):
            part = slice(start, min(len(places), start + self.chunk_tokens))
            target, score = self.target(
                final[places[part]],
                None if labels is None else labels[positions[part]],
                None if draws is None else draws[part],
            )
            yield Chunk([h[places[part]] for h in hidden], target, score)

    @torch.no_grad()
    def target(
        self,
        final: Float[Tensor, "tokens d_model"],
        labels: Int[Tensor, " tokens"] | None = None,
        draws: Float[Tensor, " tokens"] | None = None,
    ) -> tuple[Target, Float[Tensor, "tokens width"] | None]:
        """The target of some tokens, from the normed final states (tokens, d_model) or from the next tokens (tokens);
        and, with draws (tokens), what `derivatives` takes as score."""
        if labels is not None:
            target = Target(final.new_empty(0), final.new_empty(0), labels)
            return target, None if draws is None else self._score(self._logits(final), draws)[1]
        logits = self._logits(final)
        if draws is None:
            return Target(logits, self.rows.normalizers(logits)), None
        normalizers, score = self._score(logits.clone(), draws)
        return Target(logits, normalizers), score

    def _score(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Normalizers of the model's logits, which are overwritten, and the score of the drawn labels."""
        normalizers, _ = self.rows.sample_(logits, draws.to(logits.device))
        return normalizers, logits if self.map.cap is not None else logits @ self.weight

    def derivatives(
        self,
        z: Float[Tensor, "tokens d_model"],
        target: Target,
        score: Float[Tensor, "tokens width"] | None = None,
    ) -> Derivatives:
        """Loss and gradient at z (tokens, d_model); with the score of drawn labels (tokens, d_model or vocab) also
        s."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            u = self.unembedding.normed(z)
        with torch.no_grad():
            logits = self._logits(u)
            slope = self.map.slope(logits)  # D (tokens, vocab)
            loss = self.rows.difference_(logits, target)
            if slope is not None:
                logits *= slope
            at_u = (logits @ self.weight).to(u.dtype)
        (gradient,) = torch.autograd.grad(u, z, at_u, retain_graph=score is not None)
        if score is None:
            return Derivatives(loss, gradient, None)
        with torch.no_grad():
            at_u = score if slope is None else slope.mul_(score) @ self.weight
        (sampled,) = torch.autograd.grad(u, z, at_u.to(u.dtype))
        return Derivatives(loss, gradient, sampled)

    @torch.no_grad()
    def losses(self, z: Float[Tensor, "tokens d_model"], target: Target) -> Float[Tensor, " tokens"]:
        """The loss at z (tokens, d_model) alone, in nats (tokens)."""
        return self.rows.difference_(self._logits(self.unembedding.normed(z)), target)

    def openness(self, final: Float[Tensor, "tokens d_model"]) -> Float[Tensor, " tokens"]:
        """How far the model's predictions p are open: tr of UᵀD(diag p − p pᵀ)DU (tokens), the trace of the Fisher
        information at u = `final` (tokens, d_model), the normed final state.

        Where a prediction is certain it is 0: an error there costs nothing.
        """
        logits = self._logits(final)
        slope = self.map.slope(logits)
        normalizers = self.rows.normalizers(logits)
        p = logits.to(normalizers.dtype).sub_(normalizers[:, None]).exp_()  # in place where nothing is widened
        weighted = p if slope is None else p * slope
        mean = weighted.to(self.products) @ self.weight  # Uᵀ D p
        square = (weighted if slope is None else weighted * slope) @ self._row_squares.to(p.dtype)
        return (square - mean.to(p.dtype).square().sum(-1)).clamp(min=0)

    @cached_property
    def _row_squares(self) -> Float[Tensor, " vocab"]:
        """‖U_y‖² (vocab)."""
        return self.weight.float().square().sum(-1)

    def _logits(self, u: Tensor) -> Tensor:
        return self.map.bend_(torch.nn.functional.linear(u.to(self.products), self.weight, self.bias))


def default_chunk_tokens(vocab_size: int, products: torch.dtype, device_type: str) -> int:
    """Tokens whose logits fill one buffer of the size that suits the device, within what makes its products fast."""
    least, most = _CHUNK_TOKENS.get(device_type, _CHUNK_TOKENS["cuda"])
    return max(least, min(most, _CHUNK_BYTES.get(device_type, 2**26) // (products.itemsize * vocab_size)))

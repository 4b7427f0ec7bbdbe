"""What the time mixing of RWKV-5 (Eagle), RWKV-6 (Finch) and RWKV-7 (Goose) shares, with the official names of tensors.

Papers: Peng et al. 2024, arXiv 2404.05892 (RWKV-5 and 6, "EF" below); Peng et al. 2025, arXiv 2503.14456 (RWKV-7, "G").
Where an equation is computed it is named beside the code.

    x          normed input of a sub-layer                              (batch, seq, d_model)
    x_prev     the same one token earlier: the token shift              (batch, seq, d_model)
    μ          how much of x_prev is mixed in, per channel              EF eqs. 3, 14 and 15; G section 4.1
    LoRA       two thin matrices, tanh, sigmoid or nothing between      EF eq. 14; G section 4.1 (loramlp)
    r, k, v    receptance, key, value; g the gate                       EF eqs. 4 and 16; G section 4.1
    w          decay of the state: exp(−exp(·)) in RWKV-5 and 6         EF eqs. 5, 17 and 18
               and exp(−e^{−½} σ(·)) in RWKV-7                          G section 4.1
    u          bonus of the current token (time_first, time_faaaa)      EF eqs. 6 and 19
    κ          removal key, normed per head; k̃ replacement key          G section 4.1
    a          in-context learning rate                                 G section 4.1
    v_first    the first block's values, which later blocks mix in      G section 4.1
    S          state of one head, see models/wkv.py                     EF eqs. 8, 9, 21 and 22; G eq. 17
    ρ          bonus of the current token (r_k)                         G section 4.1
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lens_rnn.models.families.rwkv_config import RWKVConfig

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
"""What a recurrence works on: r, k, v, log w and, of RWKV-7, −κ and κ ⊙ a; each (batch, seq, heads, n)."""


class Mixed(NamedTuple):
    """What a time mixing makes of its input before it recurs."""

    inputs: Inputs
    gate: Tensor | None
    """Of the recurrence's output (batch, seq, inner); RWKV-5.0 has none."""
    first: Tensor | None
    """v_first (batch, seq, inner)."""


class TimeMix(nn.Module):
    """What the time mixing of every version has: four projections, and a norm of each head's output."""

    def __init__(self, config: RWKVConfig):
        super().__init__()
        self.heads, self.head_size, self.eps = config.heads, config.head_size, config.group_norm_eps
        d, inner = config.hidden_size, config.attention_size
        self.receptance, self.key, self.value = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, d, bias=False)
        self.ln_x = nn.GroupNorm(config.heads, inner)

    def mix(self, x: Tensor, previous: Tensor, first: Tensor | None) -> Mixed:
        """x and the same one token earlier, (batch, seq, d_model) each, and v_first where there is one already."""
        raise NotImplementedError

    def recur(self, inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """y (batch, seq, heads, n) from S on, and S after the last token."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, previous: Tensor, state: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mixed = self.mix(x, previous, first)
        y, state = self.recur(mixed.inputs, state)
        y = self.normed(y, mixed.inputs, x)
        return self.output(y if mixed.gate is None else y * mixed.gate), state, mixed.first

    def normed(self, y: Tensor, _inputs: Inputs, like: Tensor) -> Tensor:
        """The recurrence's output y (batch, seq, heads, n) as the gate takes it (batch, seq, inner)."""
        return self.norm_heads(y, like)

    def weights(self, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """The recurrence over one text as a causal matrix a head: a head that is given the value "1 at token j" answers
        with column j."""
        tokens, n = inputs[0].shape[1], self.head_size
        eye = torch.eye(tokens, device=inputs[0].device)[None, :, None]

        def of(units: Tensor) -> Tensor:
            r, k, _, *others = (t[:, :, units] for t in inputs)
            ones = eye.expand(-1, -1, len(units), -1)
            y = self.respond((r, k, ones, *others), units, torch.zeros(1, len(units), n, tokens, device=units.device))
            return y[0].transpose(0, 1)

        return of

    def respond(self, inputs: Inputs, units: Tensor, state: Tensor) -> Tensor:
        """`recur` of some heads in plain torch, for values of any width; state (1, units, n, width) is empty. Returns
        y."""
        raise NotImplementedError

    def split(self, x: Tensor) -> Tensor:
        """(batch, seq, heads × head size) to (batch, seq, heads, head size)."""
        return x.unflatten(-1, (self.heads, self.head_size))

    def norm_heads(self, y: Tensor, like: Tensor) -> Tensor:
        """GroupNorm of y (batch, seq, heads, head size), each head by itself, in float32; returns (batch, seq, inner)
        in like's dtype."""
        flat = y.float().flatten(2).flatten(0, 1)
        normed = F.group_norm(flat, self.heads, self.ln_x.weight.float(), self.ln_x.bias.float(), self.eps)
        return normed.view(*y.shape[:2], -1).to(like.dtype)


def vectors(count: int, size: int) -> Iterator[nn.Parameter]:
    """Parameters of one value a channel, to be loaded."""
    return (nn.Parameter(torch.empty(size)) for _ in range(count))

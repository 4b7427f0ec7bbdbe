"""The recurrences of Mamba, Mamba-2, RWKV-4 and RG-LRU in plain torch: from any state, in chunks of tokens, on any
device.

Symbols as in models/recurrences.py, which has fused versions of two of them for the CPU. Parallel inside a chunk, one
chunk after another; differentiable in every input. No exponent is ever above 0, so nothing overflows. Low precision is
computed in float32.

The naive twins, one token at a time, stand in tests/reference/recurrences.py.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_CHUNK = 64  # tokens that are read in parallel: their states, or a head's pairs of them, are in memory at once
_CHANNEL_CHUNK = 32  # the same where every channel has pairs of its own
Channels = Float[Tensor, "batch channels seq"]
Rates = Float[Tensor, "channels n"]
Selected = Float[Tensor, "batch seq n"]
States = Float[Tensor, "batch channels n"]


def linear_scan(
    decay: Float[Tensor, "*rows tokens n"], drive: Float[Tensor, "*rows tokens n"], start: Float[Tensor, "*rows n"]
) -> Float[Tensor, "*rows tokens n"]:
    """h_t = decay_t h_{t−1} + drive_t from h_0 = start: all h.

    Each of log₂(tokens) rounds joins spans of twice the length (Hillis & Steele 1986).
    """
    h = torch.cat([drive[..., :1, :] + decay[..., :1, :] * start[..., None, :], drive[..., 1:, :]], dim=-2)
    reach = 1
    while reach < h.shape[-2]:
        joined = h[..., reach:, :] + decay[..., reach:, :] * h[..., :-reach, :]
        decay = torch.cat([decay[..., :reach, :], decay[..., reach:, :] * decay[..., :-reach, :]], dim=-2)
        h = torch.cat([h[..., :reach, :], joined], dim=-2)
        reach *= 2
    return h


def lru(
    decay: Selected, drive: Selected, start: Float[Tensor, "batch n"] | None
) -> tuple[Selected, Float[Tensor, "batch n"]]:
    """`linear_scan` over any number of tokens, from `start` or, for None, from zero. All h and the last."""
    decay, drive = wide(decay), wide(drive)
    last = torch.zeros_like(drive[:, 0]) if start is None else start.to(drive.dtype)
    parts = []
    for a, b in zip(decay.split(_CHUNK, 1), drive.split(_CHUNK, 1), strict=True):
        parts.append(linear_scan(a, b, last))
        last = parts[-1][:, -1]
    return torch.cat(parts, 1), last.clone()


def selective_scan(
    u: Channels, dt: Channels, A: Rates, B: Selected, C: Selected, state: States | None = None
) -> tuple[Channels, States]:
    """Mamba's scan, with the arguments and results of `recurrences.selective_scan`."""
    u, dt, A, B, C = (wide(t) for t in (u, dt, A, B, C))
    state = u.new_zeros(u.shape[0], *A.shape) if state is None else state.to(u.dtype)
    parts = []
    for u_c, dt_c, B_c, C_c in zip(*(t.split(_CHUNK, -1) for t in (u, dt, B.mT, C.mT)), strict=True):
        decay = torch.exp(dt_c[..., None] * A[:, None])  # (batch, channels, tokens, n)
        states = linear_scan(decay, (dt_c * u_c)[..., None] * B_c.mT[:, None], state)
        parts.append(torch.einsum("bdtn,bnt->bdt", states, C_c))
        state = states[:, :, -1]
    return torch.cat(parts, -1), state.clone()


def ssd(
    x: Float[Tensor, "batch seq heads p"],
    dt: Float[Tensor, "batch seq heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch seq groups n"],
    C: Float[Tensor, "batch seq groups n"],
    state: Float[Tensor, "batch heads p n"] | None = None,
) -> tuple[Float[Tensor, "batch seq heads p"], Float[Tensor, "batch heads p n"]]:
    """Mamba-2's scan S_t = exp(dt_t A) S_{t−1} + dt_t x_t B_tᵀ, y_t = S_t C_t (Dao & Gu 2024, arXiv 2405.21060, section
    6).

    A: negative. B, C: each group for as many heads in a row. state: None for zero. Returns y and the last state.
    """
    x, dt, A, B, C = (wide(t) for t in (x, dt, A, B, C))
    heads = x.shape[2] // B.shape[2]
    state = x.new_zeros(len(x), *x.shape[2:], B.shape[-1]) if state is None else state.to(x.dtype)
    parts = []
    for start in range(0, x.shape[1], _CHUNK):
        x_c, dt_c, B_c, C_c = (
            t[:, start : start + _CHUNK].transpose(1, 2) for t in (x, dt, B, C)
        )  # (batch, heads or groups, tokens, …)
        step = dt_c * A[:, None]  # log of each token's decay (batch, heads, tokens)
        later = torch.ones(step.shape[2], step.shape[2], dtype=torch.bool, device=x.device).tril(-1)
        # Summed over just the steps between two tokens: the difference of two long sums would lose its digits to
        # cancellation.
        between = (
            step[..., None].where(later, 0.0).cumsum(2)
        )  # (batch, heads, t, s): log of the decay from after s to after t
        scores = (C_c @ B_c.mT).repeat_interleave(heads, 1) * between.exp().tril()
        driven = x_c * dt_c[..., None]  # (batch, heads, tokens, p)
        B_h, C_h = (t.repeat_interleave(heads, 1) for t in (B_c, C_c))  # (batch, heads, tokens, n)
        since = step.cumsum(2)[..., None].exp()
        parts.append(scores @ driven + since * (C_h @ state.mT))
        state = since[:, :, -1:] * state + (driven * between[:, :, -1, :, None].exp()).mT @ B_h
    return torch.cat(parts, 2).transpose(1, 2), state


Decay = Float[Tensor, " channels"]
Keys = Float[Tensor, "batch seq channels"]
PerChannel = Float[Tensor, "batch channels"]
Sums = tuple[PerChannel, PerChannel, PerChannel]


def wkv4(w: Decay, u: Decay, k: Keys, v: Keys, state: Sums | None = None) -> tuple[Keys, Sums]:
    """RWKV-4's weighted average, with the arguments of `recurrences.wkv4_from_state`: output, and the state after.

    A token is an average of the chunk's values so far and of the state, which is one more value with a weight of its
    own.
    """
    w, u, k, v = (wide(t) for t in (w, u, k, v))
    num, den, top = (
        (torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e38))
        if state is None
        else state
    )
    parts = []
    for k_c, v_c in zip(k.split(_CHANNEL_CHUNK, 1), v.split(_CHANNEL_CHUNK, 1), strict=True):
        i = torch.arange(k_c.shape[1], device=k.device)
        age = (i[:, None] - i - 1)[..., None]  # (t, s, 1); −1 for the token itself, below that for what is to come
        exponents = torch.where(age >= 0, w * age.clamp_min(0), u) + k_c[:, None]  # (batch, t, s, channels)
        exponents = exponents.masked_fill(age < -1, -torch.inf)
        old = top[:, None] + w * i[:, None]  # (batch, t, channels): exponent of the state
        high = torch.maximum(exponents.amax(2), old)
        weights, of_state = torch.exp(exponents - high[:, :, None]), torch.exp(old - high)
        total = torch.einsum("btsd,bsd->btd", weights, v_c) + of_state * num[:, None]
        parts.append(total / (weights.sum(2) + of_state * den[:, None]))
        left = w * (len(i) - 1 - i)[:, None] + k_c  # (batch, s, channels): exponents after the last token
        old = top + w * len(i)
        top = torch.maximum(left.amax(1), old)
        weights, of_state = torch.exp(left - top[:, None]), torch.exp(old - top)
        num, den = (weights * v_c).sum(1) + of_state * num, weights.sum(1) + of_state * den
    return torch.cat(parts, 1), (num, den, top)


def causal_conv(conv: torch.nn.Conv1d, x: Channels, before: Float[Tensor, "batch channels past"] | None) -> Channels:
    """A depthwise convolution over past inputs: of x, after `before`, which are at least kernel − 1."""
    reach = conv.kernel_size[0] - 1
    past = x.new_zeros(*x.shape[:2], reach) if before is None else before[..., before.shape[-1] - reach :].to(x.dtype)
    return F.conv1d(torch.cat([past, x], -1), conv.weight, conv.bias, groups=conv.groups)


def last_inputs(
    x: Channels, before: Float[Tensor, "batch channels count"] | None, count: int
) -> Float[Tensor, "batch channels {count}"]:
    """The last `count` of the inputs `before` and x, zeros before them; a copy."""
    past = x.new_zeros(*x.shape[:2], count) if before is None else before.to(x.dtype)
    return torch.cat([past, x[..., -count:]], -1)[..., -count:].clone()


def token_shift(
    x: Float[Tensor, "batch seq d_model"], last: Float[Tensor, "batch d_model"] | None
) -> Float[Tensor, "batch seq d_model"]:
    """x one token earlier, with `last`, or zeros, before the first."""
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x.dtype)
    return torch.cat([first, x[:, :-1]], 1)


def wide(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """t in float32, or in its own dtype where that is wider."""
    return t.to(torch.promote_types(t.dtype, torch.float32))

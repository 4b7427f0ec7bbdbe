"""What stands around the products and recurrences of a block, in one pass over memory each: on the CPU, in float32,
without gradients. Each does what torch does in several passes.

x, u, z, y   (batch, seq, channels), channels next to one another: a kernel is fast on whole rows only, so that what is
             part of a product's columns comes with all of them
"""

from functools import lru_cache
from typing import Any

from lens_rnn.compiled import FASTMATH, exp

import numpy as np
import torch
from jaxtyping import Float, Float32
from numba import njit, prange
from torch import Tensor

_ROWS = 32  # tokens in one task
_CHANNELS, _TOKENS = 32, 128  # of the scan, in one buffer of a task: three of them stay in the second-level cache


def can_fuse(x: Tensor) -> bool:
    """Whether these passes may stand in for torch's: they take float32 on the CPU, and hand back no gradients."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def rms_norm(
    x: Float32[Tensor, "*shape d_model"], weight: Float[Tensor, " d_model"], eps: float
) -> Float32[Tensor, "*shape d_model"]:
    """x over its root mean square, times the weight."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    normed = torch.empty_like(rows)
    _rms_norm(rows.numpy(), _copied(weight), np.float32(eps), normed.numpy())
    return normed.view(x.shape)


def conv_silu(
    x: Float32[Tensor, "batch seq more"],
    conv: torch.nn.Conv1d,
    before: Float[Tensor, "batch channels past"] | None,
) -> Float32[Tensor, "batch seq channels"]:
    """silu of a depthwise convolution over past inputs: of x's first channels, as many as the convolution has, after
    `before`, which are at least kernel − 1."""
    reach, channels = conv.kernel_size[0] - 1, conv.in_channels
    past = x.new_zeros(len(x), reach, channels)
    if before is not None:
        past.copy_(before[..., before.shape[-1] - reach :].transpose(1, 2))
    weight = _copied(conv.weight[:, 0].T)  # (kernel, channels)
    bias = x.new_zeros(channels) if conv.bias is None else conv.bias
    u = torch.empty(*x.shape[:2], channels)
    _conv_silu(x.contiguous().numpy(), weight, _copied(bias), past.numpy(), u.numpy())
    return u


def gated_scan(
    u: Float32[Tensor, "batch seq channels"],
    dt: Float32[Tensor, "batch seq channels"],
    A: Float32[Tensor, "channels n"],
    B: Float32[Tensor, "batch seq n"],
    C: Float32[Tensor, "batch seq n"],
    D: Float32[Tensor, " channels"],
    z: Float32[Tensor, "batch seq more"],
    state: Float32[Tensor, "batch channels n"] | None,
) -> tuple[Float32[Tensor, "batch seq channels"], Float32[Tensor, "batch channels n"]]:
    """Mamba's scan of u (models/recurrences.py) with the steps softplus(dt), then (y + D u) silu(gate), of which z's
    last channels are the gates; and the last state."""
    last = torch.zeros(len(u), *A.shape) if state is None else state.detach().float().clone().contiguous()
    y = torch.empty_like(u)
    arrays = (t.contiguous().numpy() for t in (u, dt, A, B, C))
    _gated_scan(A.shape[1])(*arrays, _copied(D), z.contiguous().numpy(), last.numpy(), y.numpy())
    return y, last


def mixed(
    x: Float32[Tensor, "batch seq d_model"],
    last: Float[Tensor, "batch d_model"] | None,
    shares: Float32[Tensor, "count d_model"],
) -> tuple[Float32[Tensor, "batch seq d_model"], ...]:
    """x · share + x_prev · (1 − share) for each share, with x_prev the input one token earlier, `last` or zeros before
    the first."""
    first = x.new_zeros(len(x), x.shape[2]) if last is None else last.detach().float().contiguous()
    out = torch.empty(len(shares), *x.shape)
    _mixed(x.contiguous().numpy(), first.numpy(), shares.detach().contiguous().numpy(), out.numpy())
    return tuple(out.unbind(0))


def _copied(weights: Tensor) -> Any:
    """Weights for a kernel: its view of a tensor pins the storage, and that of a sharded parameter must be freed."""
    return weights.detach().clone(memory_format=torch.contiguous_format).numpy()


def sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In place, where it can be: x is what a product has just made."""
    return x.sigmoid_() if can_fuse(x) else torch.sigmoid(x)


def squared_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same of max(x, 0)²."""
    return x.relu_().square_() if can_fuse(x) else torch.square(torch.relu(x))


@njit(inline="always", fastmath=FASTMATH)
def _sigmoid(x):
    small = exp(-abs(x))
    return (np.float32(1.0) if x >= np.float32(0.0) else small) / (np.float32(1.0) + small)


@njit(inline="always", fastmath=FASTMATH)
def _softplus(x):
    """log(1 + e^x) = max(x, 0) + log(1 + e) with e = e^−|x|: the latter by the series of the inverse hyperbolic tangent
    at e ÷ (2 + e), which is at most a third, so that nine terms are exact to float32."""
    e = exp(-abs(x))
    s = e / (np.float32(2.0) + e)
    q = s * s
    p = np.float32(1 / 17)
    p = p * q + np.float32(1 / 15)
    p = p * q + np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + np.float32(1.0)
    return max(x, np.float32(0.0)) + np.float32(2.0) * s * p


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _rms_norm(x, weight, eps, normed):  # pragma: no cover - compiled
    rows, width = x.shape
    for task in prange((rows + _ROWS - 1) // _ROWS):
        for t in range(task * _ROWS, min(rows, (task + 1) * _ROWS)):
            total = np.float32(0.0)
            for d in range(width):
                total += x[t, d] * x[t, d]
            scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)
            for d in range(width):
                normed[t, d] = weight[d] * (x[t, d] * scale)


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _conv_silu(x, weight, bias, past, u):  # pragma: no cover - compiled
    batch, seq, _ = x.shape
    kernel, channels = weight.shape
    parts = (seq + _ROWS - 1) // _ROWS
    for task in prange(batch * parts):
        b, part = task // parts, task % parts
        for t in range(part * _ROWS, min(seq, (part + 1) * _ROWS)):
            row = u[b, t]
            for d in range(channels):
                row[d] = bias[d]
            for j in range(kernel):
                source = t + j - (kernel - 1)
                taken = x[b, source] if source >= 0 else past[b, source + kernel - 1]
                for d in range(channels):
                    row[d] += weight[j, d] * taken[d]
            for d in range(channels):
                row[d] = row[d] * _sigmoid(row[d])


@lru_cache(maxsize=8)
def _gated_scan(n: int) -> Any:
    """The kernel for SSM state size n, which is a constant in it so that loops over it unroll."""

    @njit(parallel=True, fastmath=FASTMATH, cache=True)
    def scan(u, dt, A, B, C, D, z, state, y):  # pragma: no cover - compiled
        batch, seq, channels = u.shape
        parts, before_gates = (channels + _CHANNELS - 1) // _CHANNELS, z.shape[2] - channels
        for task in prange(batch * parts):
            b, first = task // parts, task % parts * _CHANNELS
            width = min(channels - first, _CHANNELS)
            steps = np.empty((_CHANNELS, _TOKENS), dtype=np.float32)
            drives, sums = np.empty_like(steps), np.empty_like(steps)
            row, carried = np.empty(_CHANNELS, dtype=np.float32), np.empty(n, dtype=np.float32)
            for begin in range(0, seq, _TOKENS):
                length = min(_TOKENS, seq - begin)
                for t in range(length):  # to channel after channel, which the scan goes along
                    for c in range(width):
                        row[c] = _softplus(dt[b, begin + t, first + c])
                    for c in range(width):
                        steps[c, t] = row[c]
                        drives[c, t] = row[c] * u[b, begin + t, first + c]
                for c in range(width):
                    d = first + c
                    for j in range(n):
                        carried[j] = state[b, d, j]
                    for t in range(length):
                        step, drive, total = steps[c, t], drives[c, t], np.float32(0.0)
                        for j in range(n):
                            carried[j] = exp(step * A[d, j]) * carried[j] + drive * B[b, begin + t, j]
                            total += C[b, begin + t, j] * carried[j]
                        sums[c, t] = total
                    for j in range(n):
                        state[b, d, j] = carried[j]
                for t in range(length):
                    for c in range(width):
                        d, gate = first + c, z[b, begin + t, before_gates + first + c]
                        kept = sums[c, t] + D[d] * u[b, begin + t, d]
                        y[b, begin + t, d] = kept * (gate * _sigmoid(gate))

    return scan


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _mixed(x, first, shares, out):  # pragma: no cover - compiled
    batch, seq, width = x.shape
    parts = (seq + _ROWS - 1) // _ROWS
    for task in prange(batch * parts):
        b, part = task // parts, task % parts
        for t in range(part * _ROWS, min(seq, (part + 1) * _ROWS)):
            before = x[b, t - 1] if t > 0 else first[b]
            for k in range(len(shares)):
                for d in range(width):
                    share = shares[k, d]
                    out[k, b, t, d] = x[b, t, d] * share + before[d] * (np.float32(1.0) - share)

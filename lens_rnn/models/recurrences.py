"""Fused forward and backward passes, on the CPU, of the two recurrences that transformers runs as Python loops over
time.

Symbols (Mamba: Gu & Dao 2023, arXiv 2312.00752; RWKV-4: Peng et al. 2023, arXiv 2305.13048):

    u   input of the scan                 (batch, channels, seq)
    dt  step size, after softplus         (batch, channels, seq)
    A   transition, negative              (channels, n)            n = SSM state size
    B   input matrix                      (batch, seq, n)
    C   output matrix                     (batch, seq, n)
    S   SSM state                         (batch, channels, n)
    w   RWKV decay, negative, = −exp(time_decay)   (channels)
    u   RWKV bonus of the current token (time_first)   (channels)
    k,v RWKV key and value                (batch, seq, channels)

Each pass is one numba kernel in float32, parallel over batch and channel. The backward passes keep nothing but the
inputs: the states are computed again for a block of channels, in a buffer that fits the cache, so memory does not grow
with seq × channels × n. Results do not depend on the number of threads: every sum over channels or batch is split into
fixed parts.

The naive twins stand in tests/reference/recurrences.py.
"""

from functools import lru_cache
from typing import Any

from lens_rnn.compiled import FASTMATH, exp

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

_SCAN_CHANNELS = 32  # channels in one task of the scan: its part of dB and dC is summed before it leaves the task
_WKV_CHANNELS = 64  # channels in one task of WKV: the states of 64 channels and 128 steps fill 96 KiB


@lru_cache(maxsize=8)
def _scan_kernels(n: int) -> tuple[Any, Any]:
    """The forward and backward kernels for SSM state size n, which is a constant in them so that loops over it
    unroll."""

    @njit(parallel=True, fastmath=FASTMATH, cache=True)
    def forward(u, dt, A, B, C, start, y, last):
        batch, channels, seq = u.shape
        parts = (channels + _SCAN_CHANNELS - 1) // _SCAN_CHANNELS
        for task in prange(batch * parts):
            b, part = task // parts, task % parts
            state = np.empty(n, dtype=np.float32)
            for d in range(part * _SCAN_CHANNELS, min(channels, (part + 1) * _SCAN_CHANNELS)):
                for j in range(n):
                    state[j] = start[b, d, j]
                for t in range(seq):
                    step = dt[b, d, t]
                    drive = step * u[b, d, t]
                    total = np.float32(0.0)
                    for j in range(n):
                        state[j] = exp(step * A[d, j]) * state[j] + drive * B[b, t, j]
                        total += C[b, t, j] * state[j]
                    y[b, d, t] = total
                for j in range(n):
                    last[b, d, j] = state[j]

    @njit(parallel=True, fastmath=FASTMATH, cache=True)
    def backward(u, dt, A, B, C, start, gy, glast, gu, gdt, gA, gB, gC, gstart):
        batch, channels, seq = u.shape
        parts = gB.shape[1]
        for task in prange(batch * parts):
            b, part = task // parts, task % parts
            states = np.empty((seq + 1, n), dtype=np.float32)
            decays = np.empty((seq, n), dtype=np.float32)
            gstate = np.empty(n, dtype=np.float32)
            ga = np.empty(n, dtype=np.float32)
            for d in range(part * _SCAN_CHANNELS, min(channels, (part + 1) * _SCAN_CHANNELS)):
                for j in range(n):
                    states[0, j] = start[b, d, j]
                    gstate[j] = glast[b, d, j]
                    ga[j] = np.float32(0.0)
                for t in range(seq):
                    step = dt[b, d, t]
                    drive = step * u[b, d, t]
                    for j in range(n):
                        decays[t, j] = exp(step * A[d, j])
                        states[t + 1, j] = decays[t, j] * states[t, j] + drive * B[b, t, j]
                for back in range(seq):
                    t = seq - 1 - back
                    step, x, g = dt[b, d, t], u[b, d, t], gy[b, d, t]
                    along_b = np.float32(0.0)  # Σ gS B
                    along_a = np.float32(0.0)  # Σ gS S' A exp(dt A)
                    for j in range(n):
                        gs = gstate[j] + g * C[b, t, j]
                        gC[b, part, t, j] += g * states[t + 1, j]
                        gB[b, part, t, j] += gs * step * x
                        along_b += gs * B[b, t, j]
                        carried = gs * decays[t, j]
                        pulled = carried * states[t, j]
                        along_a += pulled * A[d, j]
                        ga[j] += pulled * step
                        gstate[j] = carried
                    gu[b, d, t] = step * along_b
                    gdt[b, d, t] = x * along_b + along_a
                for j in range(n):
                    gA[b, d, j] = ga[j]
                    gstart[b, d, j] = gstate[j]

    return forward, backward


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, dt, A, B, C, start = (t.detach().contiguous() for t in (u, dt, A, B, C, start))
        y, last = torch.empty_like(u), torch.empty_like(start)
        forward, _ = _scan_kernels(A.shape[1])
        forward(*(t.numpy() for t in (u, dt, A, B, C, start, y, last)))
        ctx.save_for_backward(u, dt, A, B, C, start)
        return y, last

    @staticmethod
    def backward(ctx: Any, gy: Tensor, glast: Tensor) -> tuple[Tensor, ...]:
        u, dt, A, B, C, start = ctx.saved_tensors
        batch, channels, _ = u.shape
        parts = -(-channels // _SCAN_CHANNELS)
        gu, gdt, gA, gstart = (
            torch.empty_like(u),
            torch.empty_like(dt),
            torch.empty_like(start),
            torch.empty_like(start),
        )
        gB, gC = (B.new_zeros(batch, parts, *B.shape[1:]) for _ in range(2))
        _, backward = _scan_kernels(A.shape[1])
        inputs = (u, dt, A, B, C, start, gy.contiguous(), glast.contiguous())
        backward(*(t.numpy() for t in (*inputs, gu, gdt, gA, gB, gC, gstart)))
        return gu, gdt, gA.sum(0), gB.sum(1), gC.sum(1), gstart


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mamba's scan S_t = exp(dt_t A) S_{t−1} + dt_t B_t u_t, y_t = C_t S_t (arXiv 2312.00752, eqs. 2a, 2b and 4).

    u, dt: (batch, channels, seq); A: (channels, n), negative; B, C: (batch, seq, n); state: (batch, channels, n) or
    None for zero. All on the CPU; computed in float32 whatever they come in. Returns y (batch, channels, seq) and the
    last state (batch, channels, n), float32. Differentiable in every input.
    """
    if state is None:
        state = torch.zeros(u.shape[0], *A.shape)
    return _SelectiveScan.apply(*(t.float() for t in (u, dt, A, B, C, state)))


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _wkv_forward(w, u, k, v, num, den, top, y):  # pragma: no cover - compiled
    batch, seq, channels = k.shape
    parts = (channels + _WKV_CHANNELS - 1) // _WKV_CHANNELS
    for task in prange(batch * parts):
        b, part = task // parts, task % parts
        first = part * _WKV_CHANNELS
        for t in range(seq):
            for d in range(first, min(channels, first + _WKV_CHANNELS)):
                key, value = k[b, t, d], v[b, t, d]
                high = max(top[b, d], key + u[d])
                old, new = exp(top[b, d] - high), exp(key + u[d] - high)
                y[b, t, d] = (old * num[b, d] + new * value) / (old * den[b, d] + new)
                high = max(top[b, d] + w[d], key)
                old, new = exp(top[b, d] + w[d] - high), exp(key - high)
                num[b, d] = old * num[b, d] + new * value
                den[b, d] = old * den[b, d] + new
                top[b, d] = high


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _wkv_backward(w, u, k, v, y, gy, gw, gu, gk, gv):  # pragma: no cover - compiled
    """Let N_t = Σ_{i<t} e^{w(t−1−i)+k_i} v_i, M_t the same without v, D_t = M_t + e^{u+k_t}; then y_t = (N_t +
    e^{u+k_t} v_t) / D_t and

    GN_t = gy_t / D_t + e^w GN_{t+1} and GM_t = −gy_t y_t / D_t + e^w GM_{t+1} are the gradients at N_t and M_t. Each
    quantity is kept as mantissa × e^exponent with a running exponent, as the forward pass keeps its sums, so that
    nothing overflows.
    """
    batch, seq, channels = k.shape
    parts = (channels + _WKV_CHANNELS - 1) // _WKV_CHANNELS
    for task in prange(batch * parts):
        b, part = task // parts, task % parts
        first = part * _WKV_CHANNELS
        width = min(channels, first + _WKV_CHANNELS) - first
        nums = np.zeros((seq + 1, width), dtype=np.float32)
        dens = np.zeros((seq + 1, width), dtype=np.float32)
        tops = np.full((seq + 1, width), np.float32(-1e38), dtype=np.float32)
        gn = np.zeros(width, dtype=np.float32)
        gm = np.zeros(width, dtype=np.float32)
        gtop = np.full(width, np.float32(-1e38), dtype=np.float32)
        for t in range(seq):
            for c in range(width):
                d = first + c
                high = max(tops[t, c] + w[d], k[b, t, d])
                old, new = exp(tops[t, c] + w[d] - high), exp(k[b, t, d] - high)
                nums[t + 1, c] = old * nums[t, c] + new * v[b, t, d]
                dens[t + 1, c] = old * dens[t, c] + new
                tops[t + 1, c] = high
        for back in range(seq):
            t = seq - 1 - back
            for c in range(width):
                d = first + c
                key, value, out, g = k[b, t, d], v[b, t, d], y[b, t, d], gy[b, t, d]
                later = exp(min(key + gtop[c], np.float32(0.0)))  # e^{k_t} on GN_{t+1}
                past = exp(min(tops[t, c] + w[d] + gtop[c], np.float32(0.0)))  # e^{w} N_t on GN_{t+1}
                gw[b, d] += past * (nums[t, c] * gn[c] + dens[t, c] * gm[c])
                high = max(tops[t, c], key + u[d])
                old, new = exp(tops[t, c] - high), exp(key + u[d] - high)
                scale = g / (old * dens[t, c] + new)
                now = scale * new
                gu[b, d] += now * (value - out)
                gv[b, t, d] = now + later * gn[c]
                gk[b, t, d] = now * (value - out) + later * (value * gn[c] + gm[c])
                next_top = max(-high, w[d] + gtop[c])
                fresh, carried = exp(-high - next_top), exp(w[d] + gtop[c] - next_top)
                gn[c] = carried * gn[c] + fresh * scale
                gm[c] = carried * gm[c] - fresh * scale * out
                gtop[c] = next_top


class _WKV4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        w, u, k, v = (t.detach().contiguous() for t in (w, u, k, v))
        num, den = (k.new_zeros(k.shape[0], k.shape[2]) for _ in range(2))
        top, y = torch.full_like(num, -1e38), torch.empty_like(k)
        _wkv_forward(*(t.numpy() for t in (w, u, k, v, num, den, top, y)))
        ctx.save_for_backward(w, u, k, v, y)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, ...]:
        w, u, k, v, y = ctx.saved_tensors
        gw, gu = (k.new_zeros(k.shape[0], k.shape[2]) for _ in range(2))
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        _wkv_backward(*(t.numpy() for t in (w, u, k, v, y, gy.contiguous(), gw, gu, gk, gv)))
        return gw.sum(0), gu.sum(0), gk, gv


def wkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """RWKV-4's weighted average (arXiv 2305.13048, eq. 16): wkv_t = (Σ_{i<t} e^{w(t−1−i)+k_i} v_i + e^{u+k_t} v_t) /
    (the same without v).

    w: (channels), negative, = −exp(time_decay); u: (channels), = time_first; k, v: (batch, seq, channels). All on the
    CPU; computed in float32 whatever they come in. Returns (batch, seq, channels), float32. Differentiable in every
    input. Starts from the empty state.
    """
    return _WKV4.apply(*(t.float() for t in (w, u, k, v)))


def wkv4_from_state(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`wkv4` from a state on, without gradients. state: numerator and denominator relative to exp(max), and max, each
    (batch, channels), left as they are; None for the empty one. Returns the output and the state after the last token,
    float32."""
    w, u, k, v = (t.detach().float().contiguous() for t in (w, u, k, v))
    nothing = torch.zeros_like(k[:, 0])
    start = (nothing, nothing, torch.full_like(nothing, -1e38)) if state is None else state
    num, den, top = (t.detach().to(torch.float32, copy=True).contiguous() for t in start)
    y = torch.empty_like(k)
    _wkv_forward(*(t.numpy() for t in (w, u, k, v, num, den, top, y)))
    return y, (num, den, top)

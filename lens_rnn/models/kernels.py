"""The compiled loops of `recurrences`: one numba kernel a pass, in float32, parallel over batch and channel.

The backward passes keep nothing but the inputs: the states are computed again for a block of channels, in a buffer that
fits the cache, so memory does not grow with seq × channels × n. Results do not depend on the number of threads: every
sum over channels or batch is split into fixed parts. Symbols and shapes are those of models/recurrences.py.
"""

from functools import lru_cache
from typing import Any

from lens_rnn.compiled import FASTMATH, exp

import numpy as np
from numba import njit, prange

SCAN_CHANNELS = 32  # channels in one task of the scan: its part of dB and dC is summed before it leaves the task
_WKV_CHANNELS = 64  # channels in one task of WKV: the states of 64 channels and 128 steps fill 96 KiB


@lru_cache(maxsize=8)
def scan_kernels(n: int) -> tuple[Any, Any]:
    """The forward and backward kernels for SSM state size n, which is a constant in them so that loops over it
    unroll."""

    @njit(parallel=True, fastmath=FASTMATH, cache=True)
    def forward(u, dt, A, B, C, start, y, last):
        batch, channels, seq = u.shape
        parts = (channels + SCAN_CHANNELS - 1) // SCAN_CHANNELS
        for task in prange(batch * parts):
            b, part = task // parts, task % parts
            state = np.empty(n, dtype=np.float32)
            for d in range(part * SCAN_CHANNELS, min(channels, (part + 1) * SCAN_CHANNELS)):
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
            for d in range(part * SCAN_CHANNELS, min(channels, (part + 1) * SCAN_CHANNELS)):
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


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def wkv_forward(w, u, k, v, num, den, top, y):  # pragma: no cover - compiled
    """Fills y, and carries the sums num, den and top, (batch, channels) each, on from what they hold."""
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
def wkv_backward(w, u, k, v, y, gy, gw, gu, gk, gv):  # pragma: no cover - compiled
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

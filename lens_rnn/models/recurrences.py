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

The loops are in models/kernels.py; the naive twins stand in tests/reference/recurrences.py.
"""

from typing import Any

from lens_rnn.models.kernels import SCAN_CHANNELS, scan_kernels, wkv_backward, wkv_forward
from lens_rnn.models.scans import Channels, Decay, Keys, Rates, Selected, States, Sums

import torch
from torch import Tensor


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, dt, A, B, C, start = (t.detach().contiguous() for t in (u, dt, A, B, C, start))
        y, last = torch.empty_like(u), torch.empty_like(start)
        forward, _ = scan_kernels(A.shape[1])
        forward(*(t.numpy() for t in (u, dt, A, B, C, start, y, last)))
        ctx.save_for_backward(u, dt, A, B, C, start)
        return y, last

    @staticmethod
    def backward(ctx: Any, gy: Tensor, glast: Tensor) -> tuple[Tensor, ...]:
        u, dt, A, B, C, start = ctx.saved_tensors
        batch, channels, _ = u.shape
        parts = -(-channels // SCAN_CHANNELS)
        gu, gdt, gA, gstart = (torch.empty_like(t) for t in (u, dt, start, start))
        gB, gC = (B.new_zeros(batch, parts, *B.shape[1:]) for _ in range(2))
        _, backward = scan_kernels(A.shape[1])
        inputs = (u, dt, A, B, C, start, gy.contiguous(), glast.contiguous())
        backward(*(t.numpy() for t in (*inputs, gu, gdt, gA, gB, gC, gstart)))
        return gu, gdt, gA.sum(0), gB.sum(1), gC.sum(1), gstart


def selective_scan(
    u: Channels, dt: Channels, A: Rates, B: Selected, C: Selected, state: States | None = None
) -> tuple[Channels, States]:
    """Mamba's scan S_t = exp(dt_t A) S_{t−1} + dt_t B_t u_t, y_t = C_t S_t (arXiv 2312.00752, eqs. 2a, 2b and 4).

    A: negative. state: None for zero. All on the CPU; computed in float32 whatever they come in. Returns y and the last
    state, float32. Differentiable in every input.
    """
    if state is None:
        state = torch.zeros(u.shape[0], *A.shape)
    return _SelectiveScan.apply(*(t.float() for t in (u, dt, A, B, C, state)))


class _WKV4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        w, u, k, v = (t.detach().contiguous() for t in (w, u, k, v))
        num, den = (k.new_zeros(k.shape[0], k.shape[2]) for _ in range(2))
        top, y = torch.full_like(num, -1e38), torch.empty_like(k)
        wkv_forward(*(t.numpy() for t in (w, u, k, v, num, den, top, y)))
        ctx.save_for_backward(w, u, k, v, y)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, ...]:
        w, u, k, v, y = ctx.saved_tensors
        gw, gu = (k.new_zeros(k.shape[0], k.shape[2]) for _ in range(2))
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        wkv_backward(*(t.numpy() for t in (w, u, k, v, y, gy.contiguous(), gw, gu, gk, gv)))
        return gw.sum(0), gu.sum(0), gk, gv


def wkv4(w: Decay, u: Decay, k: Keys, v: Keys) -> Keys:
    """RWKV-4's weighted average (arXiv 2305.13048, eq. 16): wkv_t = (Σ_{i<t} e^{w(t−1−i)+k_i} v_i + e^{u+k_t} v_t) /
    (the same without v).

    w: negative, = −exp(time_decay). u: = time_first. All on the CPU; computed in float32 whatever they come in.
    Returns float32. Differentiable in every input. Starts from the empty state.
    """
    return _WKV4.apply(*(t.float() for t in (w, u, k, v)))


def wkv4_from_state(w: Decay, u: Decay, k: Keys, v: Keys, state: Sums | None) -> tuple[Keys, Sums]:
    """`wkv4` from a state on, without gradients. state: numerator and denominator relative to exp(max), and max,
    left as they are; None for the empty one. Returns the output and the state after the last token, float32."""
    w, u, k, v = (t.detach().float().contiguous() for t in (w, u, k, v))
    nothing = torch.zeros_like(k[:, 0])
    start = (nothing, nothing, torch.full_like(nothing, -1e38)) if state is None else state
    num, den, top = (t.detach().to(torch.float32, copy=True).contiguous() for t in start)
    y = torch.empty_like(k)
    wkv_forward(*(t.numpy() for t in (w, u, k, v, num, den, top, y)))
    return y, (num, den, top)

"""The recurrences of lens_rnn.models.recurrences, one time step after another, in torch: any dtype, differentiable by
autograd."""

import torch
from torch import Tensor


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = exp(dt_t A) S_{t−1} + dt_t B_t u_t, y_t = C_t S_t, with the shapes and symbols of the fused scan."""
    if state is None:
        state = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype)
    outputs = []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]  # (batch, channels, 1)
        state = torch.exp(step * A) * state + step * B[:, None, t] * u[:, :, t, None]  # (batch, channels, n)
        outputs.append((state * C[:, None, t]).sum(-1))
    return torch.stack(outputs, dim=-1), state


def wkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """wkv_t = (Σ_{i<t} e^{w(t−1−i)+k_i} v_i + e^{u+k_t} v_t) / (the same sum without v), written out as the formula
    says.

    In float64 it needs no rescaling while |k| stays below about 300.
    """
    outputs = []
    for t in range(k.shape[1]):
        age = torch.arange(t - 1, -1, -1, dtype=k.dtype)[:, None]  # (t, 1): steps since each past token, the last one 0
        exponents = torch.cat([w * age + k[:, :t], (u + k[:, t])[:, None]], dim=1)  # (batch, t + 1, channels)
        weights = torch.exp(exponents)
        outputs.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
    return torch.stack(outputs, dim=1)


def wkv4_from_state(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same from sums num and den (batch, channels), both relative to e^max, on; returns them too, after the last
    token."""
    num, den, top = state
    num, den = num * torch.exp(top), den * torch.exp(top)
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        now = torch.exp(u + k_t)
        outputs.append((num + now * v_t) / (den + now))
        num, den = torch.exp(w) * num + torch.exp(k_t) * v_t, torch.exp(w) * den + torch.exp(k_t)
    return torch.stack(outputs, dim=1), num, den


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(dt_t A) S_{t−1} + dt_t x_t B_tᵀ, y_t = S_t C_t, with the shapes and symbols of the scan in chunks."""
    heads = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(heads, 2), C.repeat_interleave(heads, 2)  # (batch, seq, heads, n)
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None, None]  # (batch, heads, 1, 1)
        state = torch.exp(step * A[:, None, None]) * state + step * x[:, t, :, :, None] * B[:, t, :, None]
        outputs.append((state * C[:, t, :, None]).sum(-1))
    return torch.stack(outputs, dim=1), state


def lru(decay: Tensor, drive: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = decay_t h_{t−1} + drive_t: all h (batch, seq, n), and the last."""
    outputs = []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        start = a * start + b
        outputs.append(start)
    return torch.stack(outputs, dim=1), start

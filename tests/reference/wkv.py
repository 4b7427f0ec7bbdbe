"""Naive twins of lens_rnn.models.wkv: one token at a time, in float64, as the papers write the recurrences."""

import torch
from torch import Tensor


def wkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """arXiv 2404.05892, eqs. 21 and 22. state (batch, heads, key, value)."""
    r, k, v, w, u, state = (t.double() for t in (r, k, v, log_w.double().exp(), u, state))
    outputs = []
    for t in range(r.shape[1]):
        kv = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state + u[None, :, :, None] * kv))
        state = w[:, t, :, :, None] * state + kv
    return torch.stack(outputs, 1), state


def wkv7(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, remove: Tensor, add: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """arXiv 2503.14456, eq. 17. state (batch, heads, value, key)."""
    r, k, v, w, remove, add, state = (t.double() for t in (r, k, v, log_w.double().exp(), remove, add, state))
    outputs = []
    for t in range(r.shape[1]):
        transition = torch.diag_embed(w[:, t]) + torch.einsum("bhk,bhl->bhkl", remove[:, t], add[:, t])
        state = state @ transition + torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, r[:, t]))
    return torch.stack(outputs, 1), state

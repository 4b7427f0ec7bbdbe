"""Models of the mamba_ssm package, read off its own config.json and tensor names: one token after another, in float64,
with no cache.

Mamba-1: arXiv 2312.00752, algorithm 2 and section 3.4. Mamba-2: arXiv 2405.21060, section 2 (the recurrence) and
section 7 (the block).
"""

import math
from collections.abc import Mapping
from typing import Any

from tests.reference.recurrences import selective_scan

import torch
import torch.nn.functional as F
from torch import Tensor


def logits(config: Mapping[str, Any], weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """(batch, seq, padded vocabulary) for ids (batch, seq)."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    eps = config.get("norm_epsilon", 1e-5)
    mixer = mamba2 if config["ssm_cfg"].get("layer") == "Mamba2" else mamba1
    h = w["backbone.embedding.weight"][ids]  # (batch, seq, d_model)
    for i in range(config["n_layer"]):
        block = f"backbone.layers.{i}."
        own = {name.removeprefix(block + "mixer."): t for name, t in w.items() if name.startswith(block + "mixer.")}
        h = h + mixer(rms_norm(h, eps) * w[block + "norm.weight"], own, config["ssm_cfg"])
    head = "backbone.embedding.weight" if config.get("tie_embeddings", True) else "lm_head.weight"
    return rms_norm(h, eps) * w["backbone.norm_f.weight"] @ w[head].T


def rms_norm(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def linear(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def convolve(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """SiLU of each channel's sum over its last values: x (batch, seq, channels), the kernel's last weight for the
    current token."""
    kernel = w["conv1d.weight"][:, 0]  # (channels, width)
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for back in range(min(t + 1, kernel.shape[1])):
            y[:, t] += x[:, t - back] * kernel[:, -1 - back]
    return F.silu(y + w.get("conv1d.bias", 0))


def mamba1(u: Tensor, w: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> Tensor:
    rank, n = cfg.get("dt_rank", "auto"), cfg.get("d_state", 16)
    rank = math.ceil(u.shape[-1] / 16) if rank == "auto" else rank
    x, z = linear(u, w, "in_proj").chunk(2, -1)  # (batch, seq, channels) each
    x = convolve(x, w)
    dt, B, C = linear(x, w, "x_proj").split([rank, n, n], -1)
    dt = F.softplus(linear(dt, w, "dt_proj"))  # (batch, seq, channels)
    y, _ = selective_scan(x.transpose(1, 2), dt.transpose(1, 2), -torch.exp(w["A_log"]), B, C)
    return linear((y.transpose(1, 2) + w["D"] * x) * F.silu(z), w, "out_proj")


def mamba2(u: Tensor, w: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> Tensor:
    n, groups, size = cfg.get("d_state", 128), cfg.get("ngroups", 1), cfg.get("headdim", 64)
    inner = cfg.get("expand", 2) * u.shape[-1]
    heads = inner // size
    z, xBC, dt = linear(u, w, "in_proj").split([inner, inner + 2 * groups * n, heads], -1)
    x, B, C = convolve(xBC, w).split([inner, groups * n, groups * n], -1)
    dt = F.softplus(dt + w["dt_bias"])  # (batch, seq, heads)
    decay = torch.exp(-torch.exp(w["A_log"]) * dt)
    y = torch.zeros_like(x)
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        g = h * groups // heads
        state = torch.zeros(len(u), size, n, dtype=u.dtype)
        for t in range(u.shape[1]):
            b, c = (m[:, t, g * n : (g + 1) * n] for m in (B, C))  # (batch, n) each
            state = decay[:, t, h, None, None] * state + torch.einsum("b,bp,bn->bpn", dt[:, t, h], x[:, t, own], b)
            y[:, t, own] = torch.einsum("bpn,bn->bp", state, c) + w["D"][h] * x[:, t, own]
    gated = (y * F.silu(z)).unflatten(-1, (groups, -1))  # each group has a norm of its own
    return linear(rms_norm(gated, 1e-5).flatten(-2) * w["norm.weight"], w, "out_proj")

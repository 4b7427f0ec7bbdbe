"""Naive twins of lens_rnn.views, in float64: weights as the papers' formulas write them, mixers from transformers'
parts, and relevance handed backwards through each block by hand, without autograd."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mamba_weights(C: Tensor, B: Tensor, dt: Tensor, A: Tensor) -> Tensor:
    """α[i, j] of every channel (channels, tokens, tokens). C, B: (tokens, n); dt: (tokens, channels); A: (channels,
    n)."""
    C, B, dt, A = (t.double() for t in (C, B, dt, A))
    tokens, channels = dt.shape
    out = torch.zeros(channels, tokens, tokens, dtype=torch.float64)
    for i in range(tokens):
        for j in range(i + 1):
            decay = torch.exp(A * dt[j + 1 : i + 1].sum(0)[:, None])  # (channels, n)
            out[:, i, j] = (C[i] * decay * B[j]).sum(-1) * dt[j]
    return out


def mamba_parts(mixer: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Of a transformers Mamba-1 or Falcon-Mamba mixer and its input (tokens, d_model), in the model's dtype."""
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    kernel = mixer.conv1d.weight[:, 0]  # (channels, width)
    padded = F.pad(x, (0, 0, kernel.shape[1] - 1, 0))
    conv = sum(padded[w : w + len(x)] * kernel[:, w] for w in range(kernel.shape[1])) + mixer.conv1d.bias
    u = conv * torch.sigmoid(conv)
    dt, B, C = mixer.x_proj(u).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        dt, B, C = (t / (t.pow(2).mean(-1, keepdim=True) + mixer.rms_eps).sqrt() for t in (dt, B, C))
    dt = torch.log1p(torch.exp(mixer.dt_proj(dt)))
    return {"x": x, "z": z, "conv": conv, "u": u, "dt": dt, "B": B, "C": C, "A": -torch.exp(mixer.A_log)}


def apply(weights: Tensor, inputs: Tensor) -> Tensor:
    """Σ_j weights[c, i, j] inputs[j, c, …]: (tokens, units, …)."""
    return torch.einsum("cij,jc...->ic...", weights, inputs)


def mamba_output(mixer: Any, hidden: Tensor, weights: Tensor) -> Tensor:
    """What the mixer must return for hidden (tokens, d_model), from the weights (channels, tokens, tokens) of its
    scan."""
    parts = mamba_parts(mixer, hidden)
    y = apply(weights, parts["u"]) + mixer.D * parts["u"]
    return mixer.out_proj(y * F.silu(parts["z"]))


def mamba2_output(mixer: Any, hidden: Tensor, weights: Tensor) -> Tensor:
    """As mamba_output, for Mamba-2 and its heads."""
    z, x, _ = mixer.in_proj(hidden).split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
    x = F.silu(mixer.conv1d(x.T[None])[0, :, : len(x)].T)[:, : mixer.intermediate_size].unflatten(
        -1, (mixer.num_heads, -1)
    )
    y = apply(weights, x) + mixer.D[:, None] * x
    return mixer.out_proj(mixer.norm(y.flatten(1)[None], z[None])[0])


def rwkv4_weights(attention: Any, keys: Tensor) -> Tensor:
    """(channels, tokens, tokens) of the weighted average over keys (tokens, channels)."""
    keys, w, u = keys.double(), -torch.exp(attention.time_decay.double()), attention.time_first.double()
    tokens, channels = keys.shape
    out = torch.zeros(channels, tokens, tokens, dtype=torch.float64)
    for i in range(tokens):
        for j in range(i):
            out[:, i, j] = torch.exp(w * (i - 1 - j) + keys[j])
        out[:, i, i] = torch.exp(u + keys[i])
    return out / out.sum(-1, keepdim=True)


def rwkv4_output(attention: Any, hidden: Tensor, weights: Tensor) -> Tensor:
    """What RWKV-4's attention must return for its normed input (tokens, d_model)."""
    shifted = F.pad(hidden, (0, 0, 1, 0))[:-1]
    mixed = {name: hidden * share[0, 0] + shifted * (1 - share[0, 0]) for name, share in _mixes(attention).items()}
    y = apply(weights, attention.value(mixed["value"]))
    return attention.output(torch.sigmoid(attention.receptance(mixed["receptance"])) * y)


def _mixes(attention: Any) -> dict[str, Tensor]:
    return {"value": attention.time_mix_value, "receptance": attention.time_mix_receptance}


def rwkv_output(att: Any, values: Tensor, weights: Tensor, gate: Tensor, bonus: Tensor | float) -> Tensor:
    """What the time mixing of an RWKV-5 to 7 returns: values (tokens, heads, n), gate (tokens, inner), bonus (tokens,
    inner)."""
    y = apply(weights, values)  # (tokens, heads, n)
    centred = y - y.mean(-1, keepdim=True)
    headwise = centred / (centred.pow(2).mean(-1, keepdim=True) + att.eps).sqrt()
    return att.output((headwise.flatten(1) * att.ln_x.weight + att.ln_x.bias + bonus) * gate)


def relevance(model: Any, ids: list[int], token: int, position: int) -> tuple[float, np.ndarray]:
    """Of a Mamba-1 or Falcon-Mamba in float64, MambaLRP: the logit, and (1 + layers, tokens), embeddings first.

    Forward with all that is held fixed kept; then the gradient is handed back part by part, as the rules say.
    """
    h = model.get_input_embeddings()(torch.tensor(ids))
    states, kept = [h], []
    for block in model.backbone.layers:
        scale = block.norm.weight / (h.pow(2).mean(-1, keepdim=True) + block.norm.variance_epsilon).sqrt()
        parts = mamba_parts(block.mixer, h * scale)
        alpha = mamba_weights(parts["C"], parts["B"], parts["dt"], parts["A"])
        y = apply(alpha, parts["u"]) + block.mixer.D * parts["u"]
        h = h + block.mixer.out_proj(y * F.silu(parts["z"]))
        states.append(h)
        kept.append((block.mixer, scale, parts, alpha, y))
    norm = model.backbone.norm_f
    scale = norm.weight / (h.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    gradient = torch.zeros_like(h)
    gradient[position] = model.lm_head.weight[token] * scale[position]
    logit = float(gradient[position] @ h[position])
    rows = [(gradient * h).sum(-1)]
    for (mixer, scale, parts, alpha, y), before in zip(reversed(kept), reversed(states[:-1]), strict=True):
        gated = gradient @ mixer.out_proj.weight  # at y silu(z)
        at_y, at_z = gated * F.silu(parts["z"]) / 2, gated * y / 2 * torch.sigmoid(parts["z"])
        at_u = torch.einsum("cij,ic->jc", alpha, at_y) + mixer.D * at_y
        at_conv = at_u * torch.sigmoid(parts["conv"])
        kernel = mixer.conv1d.weight[:, 0]
        late = F.pad(at_conv, (0, 0, 0, kernel.shape[1] - 1))
        at_x = sum(late[kernel.shape[1] - 1 - w :][: len(ids)] * kernel[:, w] for w in range(kernel.shape[1]))
        gradient = gradient + (torch.cat([at_x, at_z], -1) @ mixer.in_proj.weight) * scale
        rows.append((gradient * before).sum(-1))
    return logit, torch.stack(rows[::-1]).detach().numpy()

"""Gated delta nets (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464) inside hybrids, and Kimi's, whose decay is one a
channel.

    q, k     query and key, normed to length 1, q divided by √n           (heads, tokens, n)
    v        value                                                        (heads, tokens, width)
    g        log of the decay α                                           (heads, tokens, n or 1)
    β        how much of a key's old value is taken out                   (heads, tokens)
    S        state, S_t = Diag(α_t) S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ Diag(α_t) k_t)ᵀ         eq. 10; output S_tᵀ q_t

The model runs in transformers' own code. Here is what it makes of one text as a causal matrix, for each family that has
such blocks.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lens_rnn.models.matrices import decayed_products
from lens_rnn.models.scans import causal_conv

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Delta(NamedTuple):
    """What the recurrence of one block works on, for one text."""

    q: Float[Tensor, "heads tokens n"]
    k: Float[Tensor, "heads tokens n"]
    v: Float[Tensor, "heads tokens width"]
    g: Float[Tensor, "heads tokens n_or_1"]
    beta: Float[Tensor, "heads tokens"]

    def weights(self, units: Int[Tensor, " units"]) -> Float[Tensor, "units tokens tokens"]:
        """The matrices of some heads: tril(q kᵀ ⊙ D) (1 + β tril(k kᵀ ⊙ D, −1))⁻¹ β, D the
        decay between tokens.

        What token j puts in is β_j (v_j − what the state returned for k_j), so what all tokens put in solves a
        triangular system.
        """
        q, k, g, beta = (t[units] for t in (self.q, self.k, self.g, self.beta))
        eye = torch.eye(k.shape[1], device=k.device).expand(len(units), -1, -1)
        met = beta[..., None] * decayed_products(k, k, g).tril(-1)
        put_in = torch.linalg.solve_triangular(eye + met, torch.diag_embed(beta), upper=False, unitriangular=True)
        return decayed_products(q, k, g) @ put_in


def is_gated_delta(module: Any) -> bool:
    """Whether a module is the token mixing of such a block, by the names of its weights."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return "D" not in own and hasattr(module, "conv1d") and ("A_log" in own or hasattr(module, "forget_gate"))


def read(mixer: Any, outputs: Mapping[str, Tensor]) -> Delta:
    """From what the maps of a mixer returned in a pass over one text, by name, (tokens, …) each."""
    heads = {name: _READERS[name] for name in _READERS if name in outputs}
    if len(heads) != 1:
        raise NotImplementedError(f"gated delta net with the maps {', '.join(sorted(outputs))}")
    mixed, a, b, sizes = next(iter(heads.values()))(mixer, outputs)
    key_heads, n = sizes
    convolved = F.silu(causal_conv(mixer.conv1d, mixed.T[None], None))[0].T.float()  # (tokens, channels)
    q, k, v = convolved.split([key_heads * n, key_heads * n, convolved.shape[1] - 2 * key_heads * n], dim=-1)
    value_heads = b.shape[-1]
    q, k = (_unit(t.unflatten(-1, (key_heads, n))).repeat_interleave(value_heads // key_heads, 1) for t in (q, k))
    beta = torch.sigmoid(b.float()) * (2 if getattr(mixer, "allow_neg_eigval", False) else 1)
    g = (
        a.float()
        if a.ndim == 3
        else (-mixer.A_log.float().exp() * F.softplus(a.float() + mixer.dt_bias.float()))[..., None]
    )
    q, k, v, g = (t.transpose(0, 1) for t in (q / n**0.5, k, v.unflatten(-1, (value_heads, -1)), g))
    return Delta(q, k, v, g, beta.T)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


_Read = tuple[Tensor, Tensor, Tensor, tuple[int, int]]


def _qwen3_next(mixer: Any, outputs: Mapping[str, Tensor]) -> _Read:
    """Each key head's query, key, values and gates lie together."""
    key_heads, n = mixer.num_k_heads, mixer.head_k_dim
    per_key = mixer.num_v_heads // key_heads
    width = mixer.head_v_dim * per_key
    q, k, v, _ = outputs["in_proj_qkvz"].unflatten(-1, (key_heads, -1)).split([n, n, width, width], dim=-1)
    b, a = outputs["in_proj_ba"].unflatten(-1, (key_heads, -1)).split([per_key, per_key], dim=-1)
    return torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], -1), a.flatten(1), b.flatten(1), (key_heads, n)


def _qwen3_5(mixer: Any, outputs: Mapping[str, Tensor]) -> _Read:
    return outputs["in_proj_qkv"], outputs["in_proj_a"], outputs["in_proj_b"], (mixer.num_k_heads, mixer.head_k_dim)


def _separate(mixer: Any, outputs: Mapping[str, Tensor]) -> _Read:
    """OLMo-Hybrid, and Kimi-Linear, whose decay comes from a module of its own."""
    mixed = torch.cat([outputs["q_proj"], outputs["k_proj"], outputs["v_proj"]], -1)
    if "forget_gate" in outputs:
        n = mixer.head_dim
        return mixed, outputs["forget_gate"], outputs["b_proj"], (outputs["q_proj"].shape[-1] // n, n)
    n = mixer.head_k_dim
    return mixed, outputs["a_proj"], outputs["b_proj"], (outputs["q_proj"].shape[-1] // n, n)


_READERS: dict[str, Callable[[Any, Mapping[str, Tensor]], _Read]] = {
    "in_proj_qkvz": _qwen3_next,
    "in_proj_qkv": _qwen3_5,
    "q_proj": _separate,
}

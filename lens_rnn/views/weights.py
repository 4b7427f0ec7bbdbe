"""The weights of each family's recurrence: how its output at token i is a sum over the inputs at tokens j ≤ i.

Inputs are what enters the recurrence, u or v; what is done to its output afterwards (gate, norm, D u) is not in the weights.

    Mamba      y_i = Σ_j α_ij u_j + D u_i    α_ij = Σ_n C_i[n] exp(Σ_{k=j+1..i} Δ_k A[n]) Δ_j B_j[n]      a channel; of Mamba-2 a head
    RWKV-4     y_i = Σ_j α_ij v_j            α_ij ∝ exp(w (i − 1 − j) + k_j), α_ii ∝ exp(u + k_i)           a channel; rows sum to 1
    RWKV-5, 6  y_i = Σ_j α_ij v_j            α_ij = Σ_n r_i[n] exp(Σ_{k=j+1..i−1} log w_k[n]) k_j[n]; α_ii with the bonus u       a head
    RWKV-7     y_i = Σ_j α_ij v_j            α_ij = k_jᵀ G_{j+1} … G_i r_i, with G = diag(w) − κ (κ ⊙ a)ᵀ; without the bonus ρ    a head

i is the token that reads, j ≤ i the one that is read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from lens_rnn.models.wkv import plain_wkv6, plain_wkv7

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 64  # tokens, a power of two


class Seen(NamedTuple):
    """What one module was given and what it returned, in one pass."""

    inputs: tuple[Any, ...]
    output: Any


Weights = Callable[[Tensor], Tensor]
"""From indices of channels or heads (chosen) to their matrices (chosen, tokens, tokens), float32."""


class View(NamedTuple):
    """How a family shows its weights."""

    unit: Literal["channel", "head"]
    watched: Callable[[Any], dict[str, nn.Module]]
    """Of a block: the modules that pass what the weights are made of."""
    count: Callable[[Any], int]
    """Of a block: its channels or heads."""
    weights: Callable[[Any, dict[str, Seen]], Weights]


@contextmanager
def watching(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, Seen]]:
    """Inside it, what each module was last given and returned, by its name in `modules`. The hooks go, also after an error."""
    seen: dict[Any, Seen] = {}

    def keep(name: Any) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, inputs, output: seen.update({name: Seen(inputs, output)})

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def decayed_products(q: Tensor, k: Tensor, log_decay: Tensor) -> Tensor:
    """Σ_n q_i[n] exp(Σ_{t=j+1..i} log_decay_t[n]) k_j[n] for j ≤ i, else 0: (units, tokens, tokens).

    q, k: (units, tokens, n); log_decay, not positive: (units, tokens, n) or (units, tokens, 1).

    No exponent is ever above 0: where queries of some tokens meet keys of earlier ones, those decay since the boundary between them, these
    until it. Within a chunk the boundaries are the middles of its halves, quarters and so on; earlier chunks' keys are carried along.
    """
    units, tokens = k.shape[:2]
    q, k, log_decay = (F.pad(t.expand(units, -1, -1), (0, 0, 0, -tokens % _CHUNK)) for t in (q, k, log_decay))
    out = k.new_zeros(units, k.shape[1], k.shape[1])
    out.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    for half in (2**level for level in range(_CHUNK.bit_length() - 1)):
        reads, keys, steps = (t.unflatten(1, (-1, 2, half)) for t in (q, k, log_decay))  # (units, pairs, 2, half, n)
        read = reads[:, :, 1] * _since(steps[:, :, 1]).exp()
        met = read @ (keys[:, :, 0] * _until(steps[:, :, 0]).exp()).mT  # (units, pairs, i, j)
        squares = out.unflatten(1, (-1, 2 * half)).unflatten(3, (-1, 2 * half)).diagonal(dim1=1, dim2=3)  # (units, i, j, pairs)
        squares[:, half:, :half] = met.permute(0, 2, 3, 1)
    steps = log_decay.unflatten(1, (-1, _CHUNK))  # (units, chunks, tokens of a chunk, n)
    reads, keys = q.unflatten(1, (-1, _CHUNK)) * _since(steps).exp(), k.unflatten(1, (-1, _CHUNK)) * _until(steps).exp()
    total = steps.sum(2, keepdim=True).exp()
    carried = keys.flatten(1, 2)  # decayed until the chunk that reads
    for chunk in range(1, keys.shape[1]):
        start = chunk * _CHUNK
        out[:, start : start + _CHUNK, :start] = reads[:, chunk] @ carried[:, :start].mT
        carried[:, :start] *= total[:, chunk]
    return out[:, :tokens, :tokens]


def _since(steps: Tensor) -> Tensor:
    """Of steps (…, tokens, n): the sum up to and with each token."""
    return steps.cumsum(-2)


def _until(steps: Tensor) -> Tensor:
    """Of steps (…, tokens, n): the sum after each token."""
    return F.pad(steps[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _mamba(block: Any, seen: dict[str, Seen]) -> Weights:
    mixer = block.mixer
    dt, B, C = seen["x_proj"].output[0].split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        dt, B, C = mixer.dt_layernorm(dt), mixer.b_layernorm(B), mixer.c_layernorm(C)
    steps = F.softplus(mixer.dt_proj(dt).float()).T[..., None]  # (channels, tokens, 1)
    A = -torch.exp(mixer.A_log.float())[:, None]  # (channels, 1, n)
    return lambda units: decayed_products(C.float()[None], steps[units] * B.float(), steps[units] * A[units])


def _mamba2(block: Any, seen: dict[str, Seen]) -> Weights:
    mixer = block.mixer
    _, x, dt = seen["in_proj"].output[0].split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)
    x = mixer.act(mixer.conv1d(x.T[None])[0, :, : len(x)]).T.float()  # (tokens, channels)
    groups = (mixer.n_groups, mixer.ssm_state_size)
    B, C = (t.unflatten(-1, groups).transpose(0, 1) for t in x[:, mixer.intermediate_size :].chunk(2, dim=-1))  # (groups, tokens, n)
    steps = F.softplus(dt.float() + mixer.dt_bias).clamp(*mixer.time_step_limit).T[..., None]  # (heads, tokens, 1)
    A = -torch.exp(mixer.A_log.float())[:, None, None]
    group = torch.arange(mixer.num_heads, device=x.device) // (mixer.num_heads // mixer.n_groups)
    return lambda units: decayed_products(C[group[units]], steps[units] * B[group[units]], steps[units] * A[units])


def _rwkv4(block: Any, seen: dict[str, Seen]) -> Weights:
    keys = seen["key"].output[0].float().T[:, None]  # (channels, 1, tokens)
    decay = -torch.exp(block.attention.time_decay.float())[:, None, None]
    bonus = block.attention.time_first.float()[:, None, None]
    i = torch.arange(keys.shape[-1], device=keys.device)
    age = (i[:, None] - i - 1).float()  # (tokens, tokens); −1 for the token itself, below that for what is to come
    past, now = age >= 0, age == -1

    def weights(units: Tensor) -> Tensor:
        exponents = keys[units] + torch.where(past, decay[units] * age, bonus[units])
        return exponents.masked_fill(~(past | now), -torch.inf).softmax(-1)

    return weights


def _rwkv(block: Any, seen: dict[str, Seen]) -> Weights:
    """RWKV-5 to 7: a head that is given the value "1 at token j" answers with column j, so the recurrence itself says its matrix."""
    att = block.att
    x, previous = seen["att"].inputs[:2]
    r, k = seen["receptance"].output, seen["key"].output  # (1, tokens, inner)
    if hasattr(att, "time_maa_w2"):  # 6
        log_w = _decay6(att, x, previous - x)
    elif hasattr(att, "k_a"):  # 7
        return _rwkv7(att, r, k, x, previous - x)
    else:
        log_w = -torch.exp(att.time_decay.float()).expand(-1, att.head_size).expand(*x.shape[:2], -1, -1)
    bonus = att.time_faaaa.expand(-1, att.head_size)
    r, k = att.split(r), att.split(k)

    def weights(units: Tensor) -> Tensor:
        ones, state = _ones(x.shape[1], units, k)
        y, _ = plain_wkv6(r[:, :, units], k[:, :, units], ones, log_w[:, :, units], bonus[units], state)
        return y[0].transpose(0, 1)

    return weights


def _decay6(att: Any, x: Tensor, delta: Tensor) -> Tensor:
    """log w (1, tokens, heads, n) of RWKV-6 (models/rwkv_blocks.py has the equations)."""
    mixed = torch.tanh((x + delta * att.time_maa_x) @ att.time_maa_w1).unflatten(-1, (5, -1))[:, :, 0]
    xw = x + delta * (att.time_maa_w + mixed @ att.time_maa_w2[0])
    return -torch.exp(att.split(att.time_decay.float() + (torch.tanh(xw @ att.time_decay_w1) @ att.time_decay_w2).float()))


def _rwkv7(att: Any, r: Tensor, k: Tensor, x: Tensor, delta: Tensor) -> Weights:
    xw, xa = x + delta * att.x_w, x + delta * att.x_a
    log_w = -0.606531 * torch.sigmoid((att.w0 + torch.tanh(xw @ att.w1) @ att.w2).float())
    rate = torch.sigmoid(att.a0 + (xa @ att.a1) @ att.a2)
    removal = F.normalize(att.split(k * att.k_k), dim=-1)
    inputs = [att.split(r), att.split(k * (1 + (rate - 1) * att.k_a)), att.split(log_w), -removal, removal * att.split(rate)]

    def weights(units: Tensor) -> Tensor:
        r, k, log_w, remove, add = (t[:, :, units] for t in inputs)
        ones, state = _ones(x.shape[1], units, k)
        y, _ = plain_wkv7(r, k, ones, log_w, remove, add, state.transpose(2, 3))
        return y[0].transpose(0, 1)

    return weights


def _ones(tokens: int, units: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Values (1, tokens, units, tokens), 1 at their own token, and an empty state (1, units, n, tokens) that has room for them."""
    ones = torch.eye(tokens, device=like.device)[None, :, None].expand(-1, -1, len(units), -1)
    return ones, torch.zeros(1, len(units), like.shape[-1], tokens, device=like.device)


_MAMBA = View("channel", lambda block: {"x_proj": block.mixer.x_proj}, lambda block: block.mixer.intermediate_size, _mamba)
VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "mamba": _MAMBA,
        "falcon_mamba": _MAMBA,
        "mamba2": View("head", lambda block: {"in_proj": block.mixer.in_proj}, lambda block: block.mixer.num_heads, _mamba2),
        "rwkv": View("channel", lambda block: {"key": block.attention.key}, lambda block: len(block.attention.time_decay), _rwkv4),
        "rwkv_official": View(
            "head",
            lambda block: {"att": block.att, "receptance": block.att.receptance, "key": block.att.key},
            lambda block: block.att.heads,
            _rwkv,
        ),
    }
)

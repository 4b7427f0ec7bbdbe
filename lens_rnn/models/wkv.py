"""The recurrences of RWKV-5, 6 and 7 over whole sequences: parallel inside chunks of tokens, one after another between
them.

    r, k, v   receptance, key, value                          (batch, seq, heads, n)       n = head size
    w         decay of the state, 0 < w < 1; here log w       (batch, seq, heads, n)
    u         bonus of the current token (RWKV-5 and 6)       (heads, n)
    κ, a      removal key and in-context learning rate        (batch, seq, heads, n)       (RWKV-7)
    S         state, float32: key × value in RWKV-5 and 6 (arXiv 2404.05892, eqs. 9 and 22), value × key in RWKV-7
               (arXiv 2503.14456, eq. 17)                     (batch, heads, n, n)

The naive twins, one token at a time, stand in tests/reference/wkv.py. On a GPU the kernels of flash-linear-attention
take over where that package is installed and agrees with the code here.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Tokens a chunk. RWKV-6 forgets as fast as its weights say, so every pair of tokens has a decay of its own and costs n
# products; RWKV-7 forgets at most exp(−0.61) a token, so the decay from the chunk's start can be split off without
# overflow.
_CHUNK_6 = 16
_CHUNK_7 = 32

Keys = Float[Tensor, "batch seq heads n"]
Values = Float[Tensor, "batch seq heads width"]
Bonus = Float[Tensor, "heads n"]
KeyValue = Float[Tensor, "batch heads n width"]
ValueKey = Float[Tensor, "batch heads width n"]
Result = tuple[Tensor, Tensor]


def wkv6(r: Keys, k: Keys, v: Values, log_w: Keys, u: Bonus, state: KeyValue) -> tuple[Values, KeyValue]:
    """y_t = r_tᵀ (S + diag(u) k_t v_tᵀ), then S ← diag(w_t) S + k_t v_tᵀ. Returns y and the last S, float32.

    RWKV-5 is the case of a constant w.
    """
    if kernel := _fused("rwkv6", r):
        return kernel(r, k, v, log_w, u, state)
    return plain_wkv6(r, k, v, log_w, u, state)


def wkv7(r: Keys, k: Keys, v: Values, log_w: Keys, remove: Keys, add: Keys, state: ValueKey) -> tuple[Values, ValueKey]:
    """S ← S diag(w_t) + (S remove_t) add_tᵀ + v_t k_tᵀ, then y_t = S r_t. Returns y and the last S, float32.

    remove = −κ and add = κ ⊙ a.
    """
    if kernel := _fused("rwkv7", r):
        return kernel(r, k, v, log_w, remove, add, state)
    return plain_wkv7(r, k, v, log_w, remove, add, state)


def plain_wkv6(r: Keys, k: Keys, v: Values, log_w: Keys, u: Bonus, state: KeyValue) -> tuple[Values, KeyValue]:
    """`wkv6` in torch, on any device, differentiable."""
    r, k, v, log_w, u, state = (t.float() for t in (r, k, v, log_w, u, state))
    outputs = []
    for start in range(0, r.shape[1], _CHUNK_6):
        part = slice(start, start + _CHUNK_6)
        rc, kc, vc, step = (t[:, part].transpose(1, 2) for t in (r, k, v, log_w))  # (batch, heads, tokens, n)
        # log of the decay from after token s to after token t, 0 where t ≤ s. Summed over just those steps: the
        # difference of two long sums would lose its digits to cancellation.
        later = torch.ones(rc.shape[2], rc.shape[2], dtype=torch.bool, device=r.device).tril(-1)[..., None]
        between = step[:, :, :, None].where(later, 0.0).cumsum(2)  # (batch, heads, t, s, n)
        # Token t reads what token s wrote before it decays itself.
        until = torch.nn.functional.pad(between[:, :, :-1], (0, 0, 0, 0, 1, 0)).masked_fill(~later, -torch.inf).exp()
        scores = torch.einsum("bhtn,bhsn,bhtsn->bhts", rc, kc, until)
        scores = scores + torch.diag_embed((rc * u[:, None] * kc).sum(-1))
        since = step.cumsum(2)
        before = torch.nn.functional.pad(since[:, :, :-1], (0, 0, 1, 0))
        outputs.append(scores @ vc + (rc * before.exp()) @ state)
        state = since[:, :, -1:].exp().transpose(2, 3) * state + (kc * between[:, :, -1].exp()).transpose(2, 3) @ vc
    return torch.cat(outputs, 2).transpose(1, 2), state


def plain_wkv7(
    r: Keys, k: Keys, v: Values, log_w: Keys, remove: Keys, add: Keys, state: ValueKey
) -> tuple[Values, ValueKey]:
    """`wkv7` in torch, on any device, differentiable.

    With p_t = S_{t−1} remove_t, what the token takes out, S_t = S₀ diag(W_t) + Σ_{s≤t} (p_s add_sᵀ + v_s k_sᵀ) diag(W_t
    / W_s), where W_t is the product of the decays; so the p of a chunk solve a triangular system.
    """
    r, k, v, log_w, remove, add, state = (t.float() for t in (r, k, v, log_w, remove, add, state))
    outputs = []
    for start in range(0, r.shape[1], _CHUNK_7):
        part = slice(start, start + _CHUNK_7)
        rc, kc, vc, out, into, step = (
            t[:, part].transpose(1, 2) for t in (r, k, v, remove, add, log_w)
        )  # (batch, heads, tokens, n)
        total = step.cumsum(2)  # log W
        reads, takes = rc * total.exp(), out * (total - step).exp()
        keys, puts = kc * (-total).exp(), into * (-total).exp()
        state_kv = state.transpose(2, 3)  # S at the start of the chunk (batch, heads, key, value)
        known = takes @ state_kv + (takes @ keys.transpose(2, 3)).tril(-1) @ vc
        among = (takes @ puts.transpose(2, 3)).tril(-1)
        eye = torch.eye(among.shape[-1], device=r.device)
        taken = torch.linalg.solve_triangular(
            eye - among, known, upper=False, unitriangular=True
        )  # p (batch, heads, tokens, value)
        scores_v, scores_p = ((reads @ t.transpose(2, 3)).tril() for t in (keys, puts))
        outputs.append(reads @ state_kv + scores_v @ vc + scores_p @ taken)
        state = (state + taken.transpose(2, 3) @ puts + vc.transpose(2, 3) @ keys) * total[:, :, -1:].exp()
    return torch.cat(outputs, 2).transpose(1, 2), state


def _fused(name: str, r: Tensor) -> Callable[..., Result] | None:
    """The kernel of flash-linear-attention for these inputs, if there is one that can be trusted."""
    return _checked_kernel(name, r.shape[-1], r.dtype, r.device) if r.device.type == "cuda" else None


@cache
def _checked_kernel(name: str, n: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Result] | None:
    """Compared once with the plain path, on random input of this head size and dtype; a kernel that disagrees is not
    used."""
    log = logging.getLogger(__name__)
    try:
        kernel, plain = (_fla_wkv6(), plain_wkv6) if name == "rwkv6" else (_fla_wkv7(), plain_wkv7)
    except ImportError:
        log.info("flash-linear-attention is not installed; RWKV runs in plain torch")
        return None
    generator = torch.Generator(device).manual_seed(0)
    r, k, v, w, x, a = (torch.randn(2, 70, 2, n, generator=generator, device=device, dtype=dtype) for _ in range(6))
    state = torch.randn(2, 2, n, n, generator=generator, device=device)
    log_w = (
        -torch.exp(2 * w.float()) if name == "rwkv6" else -torch.sigmoid(w.float()) * 0.6
    )  # RWKV-6 may forget everything at once
    x = torch.nn.functional.normalize(x, dim=-1)
    inputs = (r, k, v, log_w, w[0, 0], state) if name == "rwkv6" else (r, k, v, log_w, -x, x * a.sigmoid(), state)
    try:
        pairs = [*zip(plain(*inputs), kernel(*inputs), strict=True)]
        difference = max(float((ours.float() - theirs.float()).norm() / ours.norm()) for ours, theirs in pairs)
    except Exception as error:  # a kernel that cannot be compiled for this GPU or head size fails in Triton's many ways
        reason = " ".join(str(error).split())[:200]
        log.warning("flash-linear-attention's %s kernel does not run here (%s); plain torch is used", name, reason)
        return None
    if not difference <= (1e-3 if dtype == torch.float32 else 3e-2):
        log.warning(
            "flash-linear-attention's %s kernel differs from plain torch by %.1e of its norm and is not used",
            name,
            difference,
        )
        return None
    return kernel


def _fla_wkv6() -> Callable[..., Result]:
    from fla.ops.rwkv6 import chunk_rwkv6

    def kernel(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor) -> Result:
        return chunk_rwkv6(r, k, v, w=log_w, u=u.to(r.dtype), scale=1.0, initial_state=state, output_final_state=True)

    return kernel


def _fla_wkv7() -> Callable[..., Result]:
    from fla.ops.rwkv7 import chunk_rwkv7

    def kernel(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, remove: Tensor, add: Tensor, state: Tensor) -> Result:
        inputs: dict[str, Any] = {name: t.to(r.dtype) for name, t in {"k": k, "v": v, "a": remove, "b": add}.items()}
        # its state is key × value
        start = state.transpose(2, 3).contiguous()
        y, last = chunk_rwkv7(r, w=log_w, **inputs, scale=1.0, initial_state=start, output_final_state=True)
        return y, last.transpose(2, 3)

    return kernel

"""Relevance: how much of a logit of Mamba-1 or Falcon-Mamba comes from each input token, at the embeddings and after each block.

Gradient × input, Σ_d h_d ∂f/∂h_d at each token, either as it is or by the rules of MambaLRP (Jafari et al. 2024, arXiv 2406.07592). These
leave every value as it is and change its gradient, so that each part of the model hands on all the relevance that it receives:

    RMSNorm    w x / root(x)                the root is held fixed
    SiLU       x σ(x)                       σ(x) is held fixed
    SSM        C_i Σ_j A_{j+1..i} B_j u_j   discretised A and B, and C, are held fixed, so that it is linear in u
    gate       y silu(z)                    half of the relevance to y, half to silu(z)

The sum over tokens is then the explained quantity, less what the biases (of convolution, projections, lens) have put into it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.recurrences import selective_scan
from lens_rnn.views.inputs import one_text, refuse_what_does_not_fit

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tuned_lens.nn.lenses import Lens

Method = Literal["lrp", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
_MODELS = ("falcon_mamba", "mamba")
_KEPT = 12  # tensors (tokens, channels) that a block keeps for its gradient, about


@dataclass(frozen=True, kw_only=True)
class Explained:
    """The quantity whose origin is asked for: a logit, or the difference of two."""

    token: int | None = None
    """Id of the token whose logit it is; None for the likeliest at that place."""
    against: int | None = None
    """Id of the token whose logit is subtracted; None for none."""
    position: int = -1
    """Which token it is read at, from 0, or from the end if negative."""
    layer: int | None = None
    """Hidden state from which a lens reads it; None for the model's own logits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relevance:
    """Where a logit comes from."""

    explained: Explained
    """With its token and position, from 0, as they were found."""
    method: Method
    value: float
    """The logit, or the difference."""
    tokens: Tensor
    """(tokens), float32, on the CPU: relevance of each input token; 0 after the position."""
    layers: tuple[int, ...]
    """The layer of each row of by_layer: those that the quantity is computed from."""
    by_layer: Tensor
    """(layers, tokens): relevance of the hidden state at each layer and token."""

    @property
    def missing(self) -> float:
        """The part of the value that is no token's. By the rules of MambaLRP: the biases'."""
        return self.value - float(self.tokens.sum())


def relevance_models() -> list[str]:
    """Model types that have this view."""
    return list(_MODELS)


def relevance(
    adapter: ModelAdapter,
    input_ids: Tensor | Sequence[int],
    explained: Explained | None = None,
    *,
    lens: Lens | None = None,
    method: Method = "lrp",
) -> Relevance:
    """The relevance of each token of one text, input_ids (tokens), for a logit: by default that of the likeliest token after the last.

    lens: what reads explained.layer.

    Raises ModelError for a model without this view; ConfigError for a token, position, layer or method that is not there, or a layer
    without a lens; DataError for a text that cannot be read or does not fit into memory, with the estimate.
    """
    if adapter.model_type not in _MODELS:
        raise ModelError(f"model type {adapter.model_type!r} has no relevance; these have: {', '.join(_MODELS)}")
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    ids = one_text(adapter, input_ids)
    explained = _resolved(adapter, explained or Explained(), ids.shape[1], lens)
    mixer: Any = adapter.blocks[0].mixer
    per_block = _KEPT * mixer.intermediate_size * (1 if _is_fused(mixer) else mixer.ssm_state_size)
    refuse_what_does_not_fit(adapter, 4.0 * ids.shape[1] * adapter.n_layers * per_block, ids.shape[1], "shorten the text")

    last = adapter.n_layers - 1 if explained.layer is None else explained.layer
    with torch.enable_grad(), relevance_rules(adapter, lens) if method == "lrp" else nullcontext():
        x = adapter.model.get_input_embeddings()(ids).detach().requires_grad_()
        states = [x]  # (1, tokens, d_model) each
        for block in adapter.blocks[: last + 1]:
            states.append(block(states[-1]))
        logits = read_logits(adapter, lens, explained, states[-1][0, explained.position])
        token = int(logits.argmax()) if explained.token is None else explained.token
        value = logits[token] if explained.against is None else logits[token] - logits[explained.against]
        gradients = torch.autograd.grad(value, states)
    shares = torch.stack([(h.detach() * g).sum(-1)[0] for h, g in zip(states, gradients, strict=True)]).float().cpu()
    return Relevance(
        explained=replace(explained, token=token),
        method=method,
        value=float(value.detach()),
        tokens=shares[0],
        layers=tuple(range(last + 1)),
        by_layer=shares[1:],
    )


def read_logits(adapter: ModelAdapter, lens: Lens | None, explained: Explained, hidden: Tensor) -> Tensor:
    """Logits (…, vocab_size) that the model, or a lens at explained.layer, reads from hidden (…, d_model)."""
    if explained.layer is None or lens is None:
        return adapter.unembed(hidden)
    return lens.unembed(lens.transform_hidden(hidden, explained.layer))


def _resolved(adapter: ModelAdapter, explained: Explained, tokens: int, lens: Lens | None) -> Explained:
    """With a position from 0, after a check of all that it names."""
    if not -tokens <= explained.position < tokens:
        raise ConfigError(f"position {explained.position} is not in a text of {tokens} tokens; choose from {-tokens} to {tokens - 1}")
    for token in (explained.token, explained.against):
        if token is not None and not 0 <= token < adapter.vocab_size:
            raise ConfigError(f"token {token} is not in the vocabulary of {adapter.name}, 0 to {adapter.vocab_size - 1}")
    if explained.layer is not None and not 0 <= explained.layer < adapter.n_layers:
        raise ConfigError(f"layer {explained.layer} of {adapter.name}: choose from 0 to {adapter.n_layers - 1}")
    if explained.layer is not None and lens is None:
        raise ConfigError(f"a logit at layer {explained.layer} needs a lens that reads it; give one, or leave the layer out")
    return replace(explained, position=explained.position % tokens)


# --- the rules -------------------------------------------------------------------------------------------------------------------


@contextmanager
def relevance_rules(adapter: ModelAdapter, lens: Lens | None = None) -> Iterator[None]:
    """Inside it, gradients of the model, and of a lens, are MambaLRP's; values are what they were. Ends also after an error."""
    norms: list[Any] = [*(block.norm for block in adapter.blocks), adapter.final_norm, *([] if lens is None else [lens.unembed.final_norm])]
    rules: list[tuple[nn.Module, Callable[..., Tensor]]] = [(norm, partial(_norm, norm)) for norm in norms]
    mixers: list[Any] = [block.mixer for block in adapter.blocks]
    rules += [(mixer, partial(_mixer, mixer)) for mixer in mixers]
    before = [(module, module.__dict__.get("forward")) for module, _ in rules]
    try:
        for module, rule in rules:
            module.forward = rule
        yield
    finally:
        for module, forward in before:
            if forward is not None:
                module.forward = forward
            elif "forward" in module.__dict__:
                del module.forward


def _norm(norm: Any, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).detach()
    return norm.weight * (wide * root).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).detach()


def _mixer(mixer: Any, hidden: Tensor, **_: Any) -> Tensor:
    """The mixer's forward over a whole text, hidden (batch, seq, d_model)."""
    x, gate = mixer.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)  # (batch, channels, seq) each
    x = _silu(mixer.conv1d(x)[..., : hidden.shape[1]])
    with torch.no_grad():
        sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        dt, B, C = mixer.x_proj(x.transpose(1, 2)).split(sizes, dim=-1)  # (batch, seq, rank), (batch, seq, n) twice
        if hasattr(mixer, "dt_layernorm"):
            dt, B, C = mixer.dt_layernorm(dt), mixer.b_layernorm(B), mixer.c_layernorm(C)
        dt = F.softplus(mixer.dt_proj(dt)).transpose(1, 2)  # (batch, channels, seq)
    scan = _fused_scan if _is_fused(mixer) else _plain_scan
    half = (scan(x, dt, -torch.exp(mixer.A_log), B, C) + x * mixer.D[:, None]) * _silu(gate) / 2
    return mixer.out_proj((half + half.detach()).transpose(1, 2).to(hidden.dtype))


def _is_fused(mixer: Any) -> bool:
    return mixer.A_log.device.type == "cpu" and mixer.A_log.dtype == torch.float32


def _fused_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(u, dt, A, B, C)[0]


def _plain_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same in any dtype and on any device: y (batch, channels, seq)."""
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(u.unbind(2), dt.unbind(2), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(dt_t[..., None] * A) * state + (dt_t * u_t)[..., None] * B_t[:, None]
        outputs.append((state * C_t[:, None]).sum(-1))
    return torch.stack(outputs, dim=-1)

"""Relevance: how much of a logit of Mamba-1 or Falcon-Mamba comes from each input token, at the embeddings and after
each block.

Gradient × input, Σ_d h_d ∂f/∂h_d at each token, either as it is or by the rules of MambaLRP (Jafari et al. 2024, arXiv
2406.07592). These leave every value as it is and change its gradient, so that each part of the model hands on all the
relevance that it receives:

    RMSNorm    w x / root(x)                the root is held fixed
    SiLU       x σ(x)                       σ(x) is held fixed
    SSM        C_i Σ_j A_{j+1..i} B_j u_j   discretised A and B, and C, are held fixed, so that it is linear in u
    gate       y silu(z)                    half of the relevance to y, half to silu(z)

The sum over tokens is then the explained quantity, less what the biases (of convolution, projections, lens) have put
into it.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.models import ModelAdapter, RecurrentAdapter, known_architectures
from lens_rnn.models.adapter import FUSED
from lens_rnn.models.families.recurrent import PLAIN, Passage, Rules
from lens_rnn.models.inputs import OneText, checked_layers, one_text
from lens_rnn.models.mixing import RECURRENCE
from lens_rnn.models.registry import adapter_class
from lens_rnn.views.inputs import refuse_what_does_not_fit

import torch
from torch import Tensor
from tuned_lens.nn.lenses import Lens

Method = Literal["lrp", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
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

    def report(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        about = {name: getattr(self, name) for name in ("method", "value", "missing", "layers")}
        return asdict(self.explained) | about | {"tokens": self.tokens.tolist(), "by_layer": self.by_layer.tolist()}


def relevance_models() -> list[str]:
    """Model types that have this view."""
    kinds = {name: adapter_class(name) for name in known_architectures()}
    return [name for name, kind in kinds.items() if kind and issubclass(kind, RecurrentAdapter) and kind.takes_rules]


def relevance(
    adapter: ModelAdapter,
    input_ids: OneText,
    explained: Explained | None = None,
    *,
    lens: Lens | None = None,
    method: Method = "lrp",
) -> Relevance:
    """The relevance of each token of one text, or of its token ids (tokens), for a logit: by default that of the
    likeliest token after the last.

    lens: what reads explained.layer.

    Raises ModelError for a model without this view; ConfigError for a token, position, layer or method that is not
    there, or a layer without a lens; DataError for a text that cannot be read or does not fit into memory, with the
    estimate.
    """
    if not (isinstance(adapter, RecurrentAdapter) and adapter.takes_rules):
        uncovered = dict.fromkeys(kind for kinds in adapter.mixing_kinds for kind in kinds if kind != RECURRENCE)
        blocks = (
            f": its rules cover Mamba-1's blocks, and none of the kind {' or '.join(uncovered)}" if uncovered else ""
        )
        raise ModelError(
            f"model type {adapter.model_type!r} has no relevance{blocks}; these have: {', '.join(relevance_models())}"
        )
    if reason := adapter.off.get(FUSED):
        raise ModelError(f"{adapter.name} goes without its own equations, and so without relevance: {reason}")
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    ids = one_text(adapter, input_ids)
    explained = _resolved(adapter, explained or Explained(), ids.shape[1], lens)
    mixer: Any = adapter.blocks[0].mixer
    channels, n = mixer.A_log.shape
    fused = adapter.device.type == "cpu" and adapter.dtype != torch.float64
    per_block = _KEPT * channels * (1 if fused else n)
    refuse_what_does_not_fit(
        adapter, 4.0 * ids.shape[1] * adapter.n_layers * per_block, ids.shape[1], "shorten the text"
    )

    last = adapter.n_layers - 1 if explained.layer is None else explained.layer
    passage = Passage(keeps=False, rules=mamba_lrp(adapter) if method == "lrp" else PLAIN)
    with torch.enable_grad():
        states = [adapter.embed(ids).detach().requires_grad_()]  # (1, tokens, d_model) each
        for layer in range(last + 1):
            states.append(adapter.run_block(layer, states[-1], None, passage)[0])
        logits = read_logits(adapter, lens, explained, states[-1][0, explained.position], passage.rules)
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


def read_logits(
    adapter: ModelAdapter, lens: Lens | None, explained: Explained, hidden: Tensor, rules: Rules = PLAIN
) -> Tensor:
    """Logits (…, vocab_size) that the model, or a lens at explained.layer, reads from hidden (…, d_model)."""
    if explained.layer is None or lens is None:
        return adapter.logits(rules.norm(adapter.final_norm, hidden))
    z = lens.transform_hidden(hidden, explained.layer)
    return adapter.logit_map(lens.unembed.unembedding(rules.norm(lens.unembed.final_norm, z).to(adapter.dtype)))


def _resolved(adapter: ModelAdapter, explained: Explained, tokens: int, lens: Lens | None) -> Explained:
    """With a position from 0, after a check of all that it names."""
    if not -tokens <= explained.position < tokens:
        raise ConfigError(
            f"position {explained.position} is not in a text of {tokens} tokens; choose from {-tokens} to {tokens - 1}"
        )
    for token in (explained.token, explained.against):
        if token is not None and not 0 <= token < adapter.vocab_size:
            raise ConfigError(
                f"token {token} is not in the vocabulary of {adapter.name}, 0 to {adapter.vocab_size - 1}"
            )
    if explained.layer is not None:
        checked_layers(adapter, explained.layer)
        if lens is None:
            raise ConfigError(
                f"a logit at layer {explained.layer} needs a lens that reads it; give one, or leave the layer out"
            )
    return replace(explained, position=explained.position % tokens)


# --- the rules --------------------------------------------------------------------------------------------------------


def mamba_lrp(adapter: RecurrentAdapter) -> Rules:
    """Gradients by the rules of MambaLRP; values are what they were."""
    return Rules(
        norm=partial(_norm, epsilon=adapter.model.config.layer_norm_epsilon),
        silu=_silu,
        held=Tensor.detach,
        gated=_halves,
    )


def _norm(norm: Any, x: Tensor, epsilon: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon).detach()
    return norm.weight * (wide * root).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).detach()


def _halves(y: Tensor, gate: Tensor) -> Tensor:
    half = y * gate / 2
    return half + half.detach()

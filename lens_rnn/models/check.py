"""What is looked at when a model loads: that its adapter says the truth, without which there is no lens, and what else
it can do.

What a lens needs (hidden states, norm, head) refuses the model when it fails. A capability (fused path, recurrent
state, hidden attention) that fails is switched off for this model, with a warning of one line; the rest goes on.
"""

import logging
from collections.abc import Callable
from typing import Any

from lens_rnn import versions
from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ATTENTION, FUSED, STATE, Forward, ModelAdapter
from lens_rnn.models.families.recurrent import RecurrentAdapter
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.models.head import measure_logit_map
from lens_rnn.models.mixing import SOFTMAX

import torch
from torch import Tensor

_PROBE_SHAPE = (2, 9)  # sequences × tokens

# Nemotron-H's step of a single token, in transformers, leaves out a bound on dt that its pass over several tokens has.
_SINGLE_TOKEN = 2e-2

log = logging.getLogger(__name__)


@torch.no_grad()
def check(adapter: ModelAdapter) -> None:
    """Compare an adapter with what its model does on a probe input, and switch off what the model cannot do.

    Raises ModelError, naming the model type, what disagreed and the versions, where a lens could not be trusted.
    """
    ids = torch.randint(adapter.vocab_size, _PROBE_SHAPE, generator=torch.Generator().manual_seed(0)).to(adapter.device)
    expected = _whole_pass(adapter, ids)
    try:
        adapter.logit_map = measure_logit_map(adapter.model, adapter.final_norm, adapter.head, adapter.dtype)
    except ModelError as error:
        raise _refusal(adapter, str(error)) from None
    if isinstance(adapter, RecurrentAdapter) and adapter.fused and not adapter.is_ours:
        _try(adapter, FUSED, lambda: _first_difference(adapter, adapter.run(ids), expected))
    got = adapter.run(ids)
    if trouble := _first_difference(adapter, got, expected) or _lens_trouble(adapter, got, expected):
        raise _refusal(adapter, trouble)
    if isinstance(adapter, GenericAdapter) and (trouble := _causal_trouble(adapter, ids, got)):
        raise _refusal(adapter, trouble)
    if adapter.has_state:
        _try(adapter, STATE, lambda: _state_trouble(adapter, ids, got))
    if any(adapter.mixing_kinds):
        _try(adapter, ATTENTION, lambda: _attention_trouble(adapter, ids[:1]))


def _refusal(adapter: ModelAdapter, trouble: str) -> ModelError:
    return ModelError(
        f"model type {adapter.model_type!r} ({adapter.name}): {trouble}; its adapter does not fit this model or this "
        "version: "
        f"{versions.describe('transformers')}"
    )


def _whole_pass(adapter: ModelAdapter, ids: Tensor) -> Any:
    """The model's own output for the probe, of the shapes that are declared."""
    try:
        expected = adapter.model(ids, output_hidden_states=True, use_cache=False)
    except Exception as error:  # as where a quantised weight is used in a way that its library does not know
        raise _refusal(
            adapter, f"its own code does not run here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    states = expected.hidden_states
    if len(states) != adapter.n_layers + 1:
        raise _refusal(adapter, f"{len(states)} hidden states where {adapter.n_layers + 1} are declared")
    shape = (*_PROBE_SHAPE, adapter.d_model)
    for i, state in enumerate(states):
        if state.shape != shape:
            raise _refusal(adapter, f"hidden state {i} has shape {tuple(state.shape)} where {shape} is declared")
    if not bool(expected.logits.isfinite().all()):
        dtype = str(adapter.dtype).removeprefix("torch.")
        raise _refusal(adapter, f"its logits are not finite in {dtype}, so it is damaged or needs another dtype")
    return expected


def _first_difference(adapter: ModelAdapter, got: Forward, expected: Any) -> str | None:
    """Where a pass of the adapter is not the model's, in words."""
    for i, (ours, theirs) in enumerate(zip(got.hidden_states, expected.hidden_states[:-1], strict=True)):
        if ours.shape != theirs.shape or not agree(ours, theirs, least=_least(adapter)):
            return f"hidden state {i} differs from the one transformers returns"
    if not agree(adapter.logits(got.final), expected.logits, least=_least(adapter)):
        return "head(normed final hidden state) does not reproduce the logits"
    return None


def _lens_trouble(adapter: ModelAdapter, got: Forward, expected: Any) -> str | None:
    if not agree(adapter.unembed(got.norm_input), expected.logits, least=_least(adapter)):
        return "unembedding(final hidden state) does not reproduce the logits"
    if adapter.trivial_layers and not torch.equal(got.hidden_states[-1], got.norm_input):
        return "the last hidden state is not the final norm's input"
    return None


def _state_trouble(adapter: ModelAdapter, ids: Tensor, whole: Forward) -> str | None:
    """Reading in parts, from state to state, has to give what reading at once gives."""

    def differs(parts: Tensor, expected: Tensor) -> bool:
        # some keep a float32 stream in a bfloat16 model
        return not agree(parts.to(adapter.dtype), expected, adapter.n_layers, _least(adapter))

    for one_by_one in (False, True) if isinstance(adapter, GenericAdapter) else (False,):
        if isinstance(adapter, GenericAdapter):
            adapter.one_by_one = one_by_one  # some of transformers' models read on exactly by a single token only
        _, state = adapter.advance(ids[:, :4])
        middle, state = adapter.advance(ids[:, 4:-1], state)
        last, _ = adapter.advance(ids[:, -1:], state)
        if differs(middle.norm_input, whole.norm_input[:, 4:-1]):
            continue
        if not differs(last.norm_input, whole.norm_input[:, -1:]):
            return None
        error = _relative(last.norm_input, whole.norm_input[:, -1:])
        if isinstance(adapter, GenericAdapter) and error < _SINGLE_TOKEN:
            log.info(
                "%s: transformers reads a single token from a state with a difference of %.0e", adapter.name, error
            )
            return None
    return "continuing from a recurrent state does not give what the whole input gives"


def _causal_trouble(adapter: ModelAdapter, ids: Tensor, got: Forward) -> str | None:
    """A model that looks ahead, as an encoder does, predicts no next token."""
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % adapter.vocab_size
    if agree(adapter.run(other).final[:, :-1], got.final[:, :-1], least=_least(adapter)):
        return None
    return "what it says after a token depends on later tokens, as in an encoder"


def _attention_trouble(adapter: ModelAdapter, ids: Tensor) -> str | None:
    """The matrices of the first block of each kind, applied to what it reads, have to give what its recurrence
    gives."""
    first = {
        kind: layer
        for layer, kinds in reversed([*enumerate(adapter.mixing_kinds)])
        for kind in kinds
        if kind != SOFTMAX
    }
    for mixing in adapter.mixings(ids, sorted(set(first.values()))) if first else ():
        if mixing.values is None or mixing.outputs is None:
            continue
        weights = mixing.weights(torch.arange(mixing.units, device=ids.device))
        made = torch.einsum("uij,juw->iuw", weights, mixing.values.float()) + mixing.beside
        if not agree(made, mixing.outputs.to(adapter.dtype), 4, _least(adapter)):
            return f"the weights of a {mixing.kind} do not give what it gives"
    return None


def _try(adapter: ModelAdapter, capability: str, trouble: Callable[[], str | None]) -> None:
    """Switch a capability off, and say so, if looking at it finds trouble or fails."""
    try:
        reason = trouble()
    except Exception as error:  # whatever a release of transformers, numba or a kernel has changed
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason is not None:
        adapter.switch_off(capability, f"{reason} ({versions.describe('torch', 'transformers', 'numba')})")
        instead = "; transformers' own code takes its place" if capability == FUSED else ""
        log.warning(
            "%s (model type %r) goes without its %s: %s%s",
            adapter.name,
            adapter.model_type,
            capability,
            adapter.off[capability],
            instead,
        )


def _least(adapter: ModelAdapter) -> float:
    """The least relative difference that is allowed. What quantises the states that it multiplies does so by the batch
    that it sees."""
    return 0.1 if adapter.is_quantised else 1e-4


def agree(a: Tensor, b: Tensor, blocks: int = 1, least: float = 1e-4) -> bool:
    """Whether two tensors are the same up to rounding: `least` of their norm in float32, 3 % in bfloat16. NaN never
    agrees.

    blocks: through how many blocks roundings that differ have grown; where the order of the sums differs, each adds
    some. Never beyond 30 %, where what is wrong is wrong by about 1.
    """
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    return _relative(a, b) <= max(min(4 * eps * blocks, 0.3), least)


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float()
    return float((a - b).norm() / b.norm()) if bool(b.any()) else float(not torch.equal(a, b))

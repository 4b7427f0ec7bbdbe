"""What is looked at when a model loads: that its adapter says the truth, without which there is no lens, and what else it can do.

What a lens needs (hidden states, norm, head) refuses the model when it fails. A capability (fused path, recurrent state, hidden attention)
that fails is switched off for this model, with a warning of one line; the rest goes on.
"""

import logging
from collections.abc import Callable
from typing import Any

from lens_rnn import versions
from lens_rnn.errors import ModelError
from lens_rnn.models.adapter import ATTENTION, FUSED, STATE, Forward, ModelAdapter
from lens_rnn.models.families.recurrent import RecurrentAdapter

import torch
from torch import Tensor

_PROBE_SHAPE = (2, 9)  # sequences × tokens

log = logging.getLogger(__name__)


@torch.no_grad()
def check(adapter: ModelAdapter) -> None:
    """Compare an adapter with what its model does on a probe input, and switch off what the model cannot do.

    Raises ModelError, naming the model type, what disagreed and the versions, where a lens could not be trusted.
    """
    ids = torch.randint(adapter.vocab_size, _PROBE_SHAPE, generator=torch.Generator().manual_seed(0)).to(adapter.device)
    expected = _whole_pass(adapter, ids)
    if isinstance(adapter, RecurrentAdapter) and adapter.fused:
        _try(adapter, FUSED, lambda: _first_difference(adapter, adapter.run(ids), expected))
    got = adapter.run(ids)
    if trouble := _first_difference(adapter, got, expected) or _lens_trouble(adapter, got, expected):
        raise _refusal(adapter, trouble)
    if adapter.has_state:
        _try(adapter, STATE, lambda: _state_trouble(adapter, ids, got))
    if isinstance(adapter, RecurrentAdapter) and adapter.attention_unit:
        _try(adapter, ATTENTION, lambda: _attention_trouble(adapter, ids[:1]))


def _refusal(adapter: ModelAdapter, trouble: str) -> ModelError:
    return ModelError(
        f"model type {adapter.model_type!r} ({adapter.name}): {trouble}; its adapter does not fit this model or this version: "
        f"{versions.describe('transformers')}"
    )


def _whole_pass(adapter: ModelAdapter, ids: Tensor) -> Any:
    """The model's own output for the probe, of the shapes that are declared."""
    expected = adapter.model(ids, output_hidden_states=True, use_cache=False)
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
        if ours.shape != theirs.shape or not agree(ours, theirs):
            return f"hidden state {i} differs from the one transformers returns"
    if not agree(adapter.logits(got.final), expected.logits):
        return "head(normed final hidden state) does not reproduce the logits"
    return None


def _lens_trouble(adapter: ModelAdapter, got: Forward, expected: Any) -> str | None:
    if not agree(adapter.unembed(got.norm_input), expected.logits):
        return "unembedding(final hidden state) does not reproduce the logits"
    if adapter.trivial_layers and not torch.equal(got.hidden_states[-1], got.norm_input):
        return "the last hidden state is not the final norm's input"
    return None


def _state_trouble(adapter: ModelAdapter, ids: Tensor, whole: Forward) -> str | None:
    """Reading in parts, from state to state, has to give what reading at once gives."""
    _, state = adapter.advance(ids[:, :4])
    middle, state = adapter.advance(ids[:, 4:-1], state)
    last, _ = adapter.advance(ids[:, -1:], state)
    parts = torch.cat([middle.norm_input, last.norm_input], 1).to(adapter.dtype)  # some keep a float32 stream in a bfloat16 model
    if agree(parts, whole.norm_input[:, 4:], adapter.n_layers):
        return None
    return "continuing from a recurrent state does not give what the whole input gives"


def _attention_trouble(adapter: RecurrentAdapter, ids: Tensor) -> str | None:
    """The matrices of the first block, applied to what it reads, have to give what its recurrence gives."""
    recurrence = adapter.recurrence(0, adapter.block_inputs(ids)[0])
    units = torch.arange(adapter.attention_units(0), device=ids.device)
    made = torch.einsum("uij,juw->iuw", recurrence.weights(units), recurrence.values.float())
    return None if agree(made, recurrence.outputs, 4) else "its weights do not give what the recurrence gives"


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
            "%s (model type %r) goes without its %s: %s%s", adapter.name, adapter.model_type, capability, adapter.off[capability], instead
        )


def agree(a: Tensor, b: Tensor, blocks: int = 1) -> bool:
    """Whether two tensors are the same up to rounding: 1e-4 of their norm in float32, 3 % in bfloat16. NaN never agrees.

    blocks: through how many blocks roundings that differ have grown; where the order of the sums differs, each adds some. Never beyond
    30 %, where what is wrong is wrong by about 1.
    """
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    a, b = a.float(), b.float()
    return bool((a - b).norm() <= max(min(4 * eps * blocks, 0.3), 1e-4) * b.norm())

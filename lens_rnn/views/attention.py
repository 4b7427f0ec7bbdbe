"""Hidden attention: how much of each earlier token's input a recurrent block has in its output at each token.

A recurrence that is linear in its inputs is a causal matrix in disguise, one for each channel or head (Ali, Zimerman &
Wolf 2024, arXiv 2403.01590). Each family's `recurrence` has its matrix; here are the pass over a text, means over
channels, and rollout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.models import ModelAdapter, RecurrentAdapter, known_architectures
from lens_rnn.models.adapter import ATTENTION
from lens_rnn.models.inputs import OneText, checked_layers, one_text
from lens_rnn.models.mixing import SOFTMAX, Mixing
from lens_rnn.models.registry import adapter_class
from lens_rnn.views.inputs import refuse_what_does_not_fit

import torch
from torch import Tensor

_BLOCK_BYTES = 2**23  # of the matrices of the channels or heads that are computed at a time
_COPIES = 3  # of those matrices that exist at once


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenAttention:
    """One matrix for each way in which a layer mixes tokens, most often one a layer: the mean over its channels or
    heads."""

    layers: tuple[int, ...]
    """The layer of each matrix."""
    kinds: tuple[str, ...]
    """What each matrix is of: "recurrence", of hybrids "mamba-2", "gated delta net" or "attention"."""
    n_layers: int
    """How many layers the model has."""
    matrices: Tensor
    """(matrices, tokens, tokens), float32, on the CPU: row i is the token that reads. Nothing above the diagonal."""
    unit: Literal["channel", "head"]
    """What was averaged over."""
    units: tuple[int, ...] | None
    """Which of them; None for all."""
    signed: bool
    """Whether it is the mean of the weights, or of their absolute values."""

    @property
    def is_whole(self) -> bool:
        """Whether there is one matrix for every layer of the model, in order."""
        return self.layers == tuple(range(self.n_layers))

    @property
    def titles(self) -> list[str]:
        """What to call each matrix: of a hybrid with its kind."""
        several = len(set(self.kinds)) > 1
        return [
            f"layer {i}, {kind}" if several else f"layer {i}" for i, kind in zip(self.layers, self.kinds, strict=True)
        ]

    def report(self) -> dict[str, Any]:
        """All of it as JSON-ready values, shares to six decimals."""
        matrices = [[[round(x, 6) for x in row] for row in matrix] for matrix in self.matrices.tolist()]
        about = {name: getattr(self, name) for name in ("unit", "units", "layers", "kinds")}
        return about | {"matrices": matrices}


def attention_models() -> list[str]:
    """Model types with a file of their own that have this view; of the others, hybrids and transformers have it too."""
    kinds = {name: adapter_class(name) for name in known_architectures()}
    return [name for name, kind in kinds.items() if kind and issubclass(kind, RecurrentAdapter) and kind.attention_unit]


def hidden_attention(
    adapter: ModelAdapter,
    input_ids: OneText,
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    *,
    signed: bool = False,
) -> HiddenAttention:
    """The hidden attention of one text or its token ids (tokens), in each layer: the mean over channels or heads, by
    default of absolute values. Of a hybrid also the softmax attention of its attention blocks.

    layers: which, by default all that have it; layer i is block i. units: which channels or heads, by default all.
    Memory: tokens² float32 a layer, and three times as many bytes as the matrices of a block of channels, 8 MiB or
    those of one; of a hybrid, those of all heads of all attention blocks, which transformers returns at once.

    Raises ModelError for a model without such a view, ConfigError for a layer, channel or head that is not there,
    DataError for a text that cannot be read or whose matrices do not fit into memory, with the estimate.
    """
    there, ids = _layers_with_attention(adapter), one_text(adapter, input_ids)
    chosen = there if layers is None else _mixing_layers(adapter, layers)
    kinds, matrices = [], []
    with_block = _block(ids.shape[1]) * _COPIES + len(chosen) + _returned_at_once(adapter, chosen)
    refuse_what_does_not_fit(
        adapter, 4.0 * ids.shape[1] ** 2 * with_block, ids.shape[1], "shorten the text or ask for fewer layers"
    )
    for mixing, wanted in _each_mixing(adapter, ids, chosen, units):
        total = torch.zeros(ids.shape[1], ids.shape[1], device=ids.device)  # (tokens, tokens)
        for part in wanted.split(_block(ids.shape[1])):
            block = mixing.weights(part)
            total += (block if signed else block.abs()).sum(0)
        matrices.append((total / len(wanted)).cpu())
        kinds.append(mixing)
    return HiddenAttention(
        layers=tuple(mixing.layer for mixing in kinds),
        kinds=tuple(mixing.kind for mixing in kinds),
        n_layers=adapter.n_layers,
        matrices=torch.stack(matrices),
        unit=kinds[0].unit,
        units=None if units is None else tuple(units),
        signed=signed,
    )


def unit_attention(adapter: ModelAdapter, input_ids: OneText, layer: int, units: Sequence[int] | None = None) -> Tensor:
    """The hidden attention of each chosen channel or head of a layer, by default of all: (units, tokens, tokens),
    float32, signed.

    Applied to the inputs of the recurrence it gives its output. Of a block that mixes in two ways, the recurrence.
    Errors as for `hidden_attention`.
    """
    _layers_with_attention(adapter)
    ids = one_text(adapter, input_ids)
    _mixing_layers(adapter, [layer])
    all_units = adapter.attention_units(layer) if isinstance(adapter, RecurrentAdapter) else adapter.attention_heads
    count = (all_units if units is None else len(units)) + _returned_at_once(adapter, [layer])
    needed = 4.0 * ids.shape[1] ** 2 * (_block(ids.shape[1]) * _COPIES + count)
    refuse_what_does_not_fit(adapter, needed, ids.shape[1], "shorten it or choose fewer channels or heads")
    mixing, wanted = next(_each_mixing(adapter, ids, [layer], units))
    out = torch.empty(len(wanted), ids.shape[1], ids.shape[1], device=ids.device)
    for place, part in zip(out.split(_block(ids.shape[1])), wanted.split(_block(ids.shape[1])), strict=True):
        place.copy_(mixing.weights(part))
    return out


def rollout(matrices: Tensor) -> Tensor:
    """How much of each input token reaches each token through all layers (tokens, tokens), rows summing to 1.

    matrices: (layers, tokens, tokens), not negative, the first layer first. Each is made to have rows that sum to 1 and
    mixed half and half with the identity, for the residual stream; then they are multiplied (Abnar & Zuidema 2020,
    arXiv 2005.00928, section 3).
    Raises ConfigError if an entry is negative: signed weights have no rollout.
    """
    if (matrices < 0).any():
        raise ConfigError("a rollout is a product of shares and these weights have signs; leave signed at False")
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    through = eye
    for matrix in matrices:
        mixed = shares(matrix) + eye
        through = (mixed / mixed.sum(-1, keepdim=True)) @ through
    return through


def shares(matrix: Tensor) -> Tensor:
    """matrix (…, tokens, tokens) with rows divided by their sum; a row of zeros stays one."""
    rows = matrix.sum(-1, keepdim=True)
    return matrix / rows.where(rows > 0, 1)


# --- the pass ---------------------------------------------------------------------------------------------------------


def _layers_with_attention(adapter: ModelAdapter) -> list[int]:
    if not any(adapter.mixing_kinds):
        raise ModelError(
            f"model type {adapter.model_type!r} has no hidden attention, as its blocks are no linear recurrence that "
            "is known here; "
            f"these have: {', '.join(attention_models())}, and hybrids of Mamba-2, gated delta nets and attention"
        )
    if reason := adapter.off.get(ATTENTION):
        raise ModelError(f"{adapter.name} goes without its hidden attention: {reason}")
    return [layer for layer, kinds in enumerate(adapter.mixing_kinds) if kinds]


def _mixing_layers(adapter: ModelAdapter, layers: Sequence[int]) -> list[int]:
    """The layers as a list. Raises ConfigError for one that is not there or mixes no tokens."""
    chosen = checked_layers(adapter, layers)
    if without := [layer for layer in chosen if not adapter.mixing_kinds[layer]]:
        raise ConfigError(
            f"layer {without[0]} of {adapter.name} mixes no tokens in a way that has a matrix; choose others"
        )
    return chosen


def _returned_at_once(adapter: ModelAdapter, layers: Sequence[int]) -> int:
    """Matrices that transformers returns, of all heads of all attention blocks, where one of these layers has softmax
    attention."""
    return adapter.attention_matrices if any(SOFTMAX in adapter.mixing_kinds[layer] for layer in layers) else 0


def _block(tokens: int) -> int:
    """Channels or heads whose matrices are computed at a time."""
    return max(1, _BLOCK_BYTES // (4 * tokens**2))


@torch.no_grad()
def _each_mixing(
    adapter: ModelAdapter, ids: Tensor, layers: Sequence[int], units: Sequence[int] | None
) -> Iterator[tuple[Mixing, Tensor]]:
    """How each layer mixes the tokens of ids (1, tokens), and the channels or heads that are wanted."""
    for mixing in adapter.mixings(ids, layers):
        if units is not None and not (units and all(0 <= unit < mixing.units for unit in units)):
            listed = ", ".join(map(str, units)) or "(none)"
            raise ConfigError(f"{mixing.unit}s {listed} of layer {mixing.layer}: choose from 0 to {mixing.units - 1}")
        wanted = torch.arange(mixing.units) if units is None else torch.tensor(units)
        yield mixing, wanted.to(ids.device)

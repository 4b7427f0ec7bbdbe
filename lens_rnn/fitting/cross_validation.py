"""The start alone, for a text of so few blocks that none can be kept apart to judge the steps by: each layer's ridge,
or zero, is chosen by cross-validation on the loss itself, and no step is made."""

from collections.abc import Iterator
from typing import NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.fit_report import LayerChoice, LayerStart
from lens_rnn.fitting.choice import START, ZERO, Translators
from lens_rnn.fitting.closed_form import RIDGES, Moments
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.start import add_to_moments
from lens_rnn.models import Forward, ModelAdapter

import torch
from jaxtyping import Int
from torch import Tensor

_PLACES = (None, *RIDGES)  # None is zero, the logit lens


class _Part(NamedTuple):
    """Some tokens of one block."""

    ids: Int[Tensor, "1 tokens"]
    forward: Forward


@torch.no_grad()
def start_by_cross_validation(
    adapter: ModelAdapter, blocks: TokenBlocks, objective: FusedObjective, translators: Translators
) -> tuple[dict[int, LayerStart], dict[int, LayerChoice]]:
    """Set the translators to the ridge solution on all blocks, or to zero, by layer whichever has the lowest mean loss
    over folds; a block is a fold, or half of the only one.

    Every process does the same: there is little to do.
    """
    losses = torch.zeros(len(adapter.fitted_layers), len(_PLACES), dtype=torch.float64)
    folds = 2 if len(blocks) == 1 else len(blocks)
    for fold in range(folds):
        moments = Moments(adapter.fitted_layers, adapter.d_model, adapter.device)
        for number, part in enumerate(_parts(adapter, blocks)):
            add_to_moments(moments, part.forward, objective, held_out=number == fold)
        for number, part in enumerate(_parts(adapter, blocks)):
            if number == fold:
                losses += _losses(adapter, objective, moments, part)
    starts, choices = {}, {}
    for k, layer in enumerate(adapter.fitted_layers):
        of_layer = losses[k].nan_to_num(float("inf")) / folds
        best = _PLACES[int(of_layer.argmin())]
        both = slice(None)
        if best is not None:
            solution = moments.ridge(k, both, best)  # the last fold's moments are of all blocks
            translators.weights[k], translators.biases[k] = solution[:, :-1], solution[:, -1]
        by_place = {f"ridge {p:g}" if p else ZERO: float(x) for p, x in zip(_PLACES, of_layer, strict=True)}
        starts[layer] = LayerStart(ridge=best)
        choices[layer] = LayerChoice(ZERO if best is None else START, 1.0, by_place)
    return starts, choices


def _losses(adapter: ModelAdapter, objective: FusedObjective, moments: Moments, part: _Part) -> Tensor:
    """Mean loss over a part's tokens of zero and each ridge fitted without it, (layers, places), float64."""
    means = torch.zeros(len(adapter.fitted_layers), len(_PLACES), dtype=torch.float64)
    for chunk in objective.chunks(part.forward, part.ids):
        share = len(chunk.hidden[0]) / objective.targets(part.ids.shape[1])
        for k, layer in enumerate(adapter.fitted_layers):
            hidden = chunk.hidden[layer].float()
            for number, ridge in enumerate(_PLACES):
                z = hidden
                if ridge is not None:
                    solution = moments.ridge(k, slice(0, 1), ridge).to(hidden.device, hidden.dtype)
                    z = hidden + torch.nn.functional.linear(hidden, solution[:, :-1], solution[:, -1])
                means[k, number] += share * objective.losses(z, chunk.target).double().mean().cpu()
    return means


def _parts(adapter: ModelAdapter, blocks: TokenBlocks) -> Iterator[_Part]:
    """Each block, or the two halves of the only one, read as one text."""
    for row in range(len(blocks)):
        ids = blocks.batch(slice(row, row + 1), adapter.device)
        forward = adapter.forward(ids)
        halves = [slice(None)] if len(blocks) > 1 else [slice(0, ids.shape[1] // 2), slice(ids.shape[1] // 2, None)]
        for half in halves:
            hidden = tuple(h[:, half] for h in forward.hidden_states)
            yield _Part(ids[:, half], Forward(hidden, forward.norm_input[:, half], forward.final[:, half]))

"""Where the steps begin: the translators in closed form, and what the optimizer must know of the hidden states."""

import logging
from collections.abc import Iterator, Sequence

from lens_rnn.data import TokenBlocks
from lens_rnn.fit_report import LayerStart
from lens_rnn.fitting.closed_form import HELD_OUT_ONE_IN, Moments, Origins
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.plan import Plan
from lens_rnn.lens import TunedLens
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 0.1  # of the mean weight, that each token has at least: no token is left out
FIRST_BLOCKS = 8  # on which the mean is taken, and the origins

log = logging.getLogger(__name__)


def measure_moments(
    adapter: ModelAdapter, blocks: TokenBlocks, objective: FusedObjective, plan: Plan, processes: Processes
) -> Iterator[tuple[range, Moments]]:
    """The moments of the hidden states on the first blocks of the order, over all processes, each token weighted by how
    open the model's own prediction is.

    As many layers at a time as the plan has, by their numbers among the fitted ones; each time the text is read anew.
    """
    rows = plan.sampling.order(0)[: plan.start_rows]
    if processes.is_main:
        log.info("closed-form start on %s tokens", f"{len(rows) * blocks.seq_len:,}")
    floor, origins = _first_look(adapter, blocks, objective, rows[:FIRST_BLOCKS])
    layers = adapter.fitted_layers
    for first in range(0, len(layers), plan.moment_layers):
        numbers = range(first, min(len(layers), first + plan.moment_layers))
        of_these = Origins(origins.hidden[numbers.start : numbers.stop], origins.f)
        moments = Moments([layers[k] for k in numbers], adapter.d_model, adapter.device, of_these)
        _add_rows(moments, adapter, blocks, objective, rows, floor, plan.micro_batch_size, processes)
        yield numbers, moments
        del moments  # whoever has them may let them go before the next are made


def _add_rows(
    moments: Moments,
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    rows: np.ndarray,
    floor: float,
    micro_batch_size: int,
    processes: Processes,
) -> None:
    """Add this process's share of some blocks, one in HELD_OUT_ONE_IN to the held-out half; then what the others have
    added."""
    chooses = np.arange(len(rows)) % HELD_OUT_ONE_IN == 1
    for held_out in (False, True):
        for part, real in processes.shares(rows[chooses == held_out], micro_batch_size):
            forward = adapter.forward(blocks.batch(part, adapter.device))
            if real:
                add_to_moments(moments, forward, objective, bool(held_out), floor)
    for tensor in moments.tensors():
        tensor.copy_(processes.sum(tensor))


def add_to_moments(
    moments: Moments, forward: Forward, objective: FusedObjective, held_out: bool, floor: float | None = None
) -> None:
    """Add a batch with its weights. floor: the least that a token has; by default a part of this batch's mean."""
    weights = token_weights(forward, objective)
    least = max(FLOOR * float(weights.mean()), 1e-30) if floor is None else floor
    moments.add(forward.hidden_states, forward.norm_input, held_out, weights + least)


@torch.no_grad()
def token_weights(forward: Forward, objective: FusedObjective) -> Float[Tensor, " tokens"]:
    """What an error at z costs, by the trace of the Fisher information at the model's own final state: the openness of
    the prediction, over the mean square of the final norm's input, as the norm divides by its root."""
    final = forward.final.flatten(0, 1)
    openness = torch.cat([objective.openness(part) for part in final.split(objective.chunk_tokens)])
    return openness / forward.norm_input.flatten(0, 1).float().square().mean(-1).clamp(min=1e-30)


def _first_look(
    adapter: ModelAdapter, blocks: TokenBlocks, objective: FusedObjective, rows: np.ndarray
) -> tuple[float, Origins]:
    """A part of the mean weight, and the origins, measured by every process on the same few blocks, one after
    another."""
    weights, origins = [], []
    for row in rows:
        forward = adapter.forward(blocks.batch(row[None], adapter.device))
        weights.append(float(token_weights(forward, objective).mean()))
        hidden = [forward.hidden_states[layer] for layer in adapter.fitted_layers]
        origins.append(Origins.of(hidden, forward.norm_input))
    floor = max(FLOOR * float(np.mean(weights)), 1e-30)
    return floor, Origins(*(torch.stack(parts).mean(0) for parts in zip(*origins, strict=True)))


def closed_form_start(
    lens: TunedLens, moments: Moments, numbers: Sequence[int], processes: Processes
) -> dict[int, LayerStart]:
    """Set the translators of these layers to the ridge solution, each found by its owner."""
    with processes.together():
        solved = {}
        for k, (number, layer) in enumerate(zip(numbers, moments.layers, strict=True)):
            if processes.owner(number) == processes.rank:
                solution = moments.solve(k)
                lens[layer].weight.copy_(solution.weight)
                lens[layer].bias.copy_(solution.bias)
                solved[layer] = LayerStart(ridge=solution.ridge, explained=solution.explained)
    for number, layer in zip(numbers, moments.layers, strict=True):
        for parameter in (lens[layer].weight, lens[layer].bias):
            processes.share(parameter, processes.owner(number))
    starts = {layer: start for of_one in processes.gather(solved) for layer, start in of_one.items()}
    return {layer: starts[layer] for layer in moments.layers}

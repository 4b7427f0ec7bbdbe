"""Where the steps begin: the translators in closed form, and what the optimizer must know of the hidden states."""

import logging

from lens_rnn.data import TokenBlocks
from lens_rnn.fit_report import LayerStart
from lens_rnn.fitting.closed_form import HELD_OUT_ONE_IN, Moments
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
FLOOR_BLOCKS = 8  # on which the mean is taken

log = logging.getLogger(__name__)


def measure_moments(
    adapter: ModelAdapter, blocks: TokenBlocks, objective: FusedObjective, plan: Plan, processes: Processes
) -> Moments:
    """The moments of the hidden states on the first blocks of the order, over all processes, each token weighted by how
    open the model's own prediction is."""
    moments = Moments(adapter.fitted_layers, adapter.d_model, adapter.device)
    rows = plan.sampling.order(0)[: plan.start_rows]
    if processes.is_main:
        log.info("closed-form start on %s tokens", f"{len(rows) * blocks.seq_len:,}")
    floor = _floor(adapter, blocks, objective, rows[:FLOOR_BLOCKS])
    chooses = np.arange(len(rows)) % HELD_OUT_ONE_IN == 1
    for held_out in (False, True):
        for part, real in processes.shares(rows[chooses == held_out], plan.micro_batch_size):
            forward = adapter.forward(blocks.batch(part, adapter.device))
            if real:
                add_to_moments(moments, forward, objective, bool(held_out), floor)
    for tensor in moments.tensors():
        tensor.copy_(processes.sum(tensor))
    return moments


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


def _floor(adapter: ModelAdapter, blocks: TokenBlocks, objective: FusedObjective, rows: np.ndarray) -> float:
    """A part of the mean weight, measured by every process on the same few blocks, one after another."""
    means = [
        float(token_weights(adapter.forward(blocks.batch(row[None], adapter.device)), objective).mean()) for row in rows
    ]
    return max(FLOOR * float(np.mean(means)), 1e-30)


def closed_form_start(lens: TunedLens, moments: Moments) -> dict[int, LayerStart]:
    """Set the translators to the ridge solution."""
    solutions = moments.solve()
    for layer, solution in solutions.items():
        lens[layer].weight.copy_(solution.weight)
        lens[layer].bias.copy_(solution.bias)
    return {layer: LayerStart(ridge=s.ridge, explained=s.explained) for layer, s in solutions.items()}

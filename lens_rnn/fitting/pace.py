"""How long a fit will take here: what one micro-batch takes, measured, times what the plan has of it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.fitting.closed_form import Moments
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.optimizers import OPTIMIZERS
from lens_rnn.fitting.plan import Plan
from lens_rnn.fitting.start import token_weights
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import ModelAdapter

import torch


class Pace(NamedTuple):
    """Seconds of one process."""

    forward: float
    """A token through the model."""
    weight: float
    """A token's weight in the start, and its part in the moments of all layers."""
    position: float
    """A position, at all layers."""

    def seconds(self, plan: Plan) -> float:
        """Of the whole fit: start, steps and choice, without evaluation and what processes wait for one another."""
        rounds = -(-plan.costs.layers // plan.moment_layers)
        start = plan.start_rows * plan.seq_len * (rounds * self.forward + self.weight)
        steps = plan.steps * plan.step_tokens * self.forward + plan.evaluations * self.position
        apart = plan.sampling.apart * (plan.seq_len * self.forward + 3 * plan.choice_positions * self.position)
        return (start + steps + apart) / plan.world


@torch.no_grad()
def measure_pace(adapter: ModelAdapter, blocks: TokenBlocks, plan: Plan, unembedding: Unembedding) -> Pace:
    """On the first blocks, where the model is now. Each part runs twice, and the second time counts."""
    rows = slice(0, plan.micro_batch_size)
    ids = blocks.batch(rows, adapter.device)
    lens = TunedLens.from_adapter(adapter, unembedding).requires_grad_(False)
    objective = FusedObjective(lens.unembed, plan.config.loss, plan.products, plan.chunk_tokens)
    layers = adapter.fitted_layers
    forward = adapter.forward(ids)
    part = torch.arange(ids.shape[0]).numpy()
    positions = plan.sampling.of_step(0, part)
    sums = StepSums(1, adapter.d_model, adapter.device, OPTIMIZERS[plan.config.optimizer].fisher)
    draws = plan.sampling.draws(0, part) if sums.has_fisher else None
    first = Moments(layers[:1], adapter.d_model, adapter.device)

    def weigh() -> None:
        first.add(forward.hidden_states, forward.norm_input, False, token_weights(forward, objective))

    def weigh_alone() -> None:
        token_weights(forward, objective)

    def look(layers: tuple[int, ...]) -> int:
        looked = 0
        for chunk in objective.chunks(forward, ids, draws, positions):
            looked += len(chunk.hidden[0])
            for layer in layers:
                z = lens.transform_hidden(chunk.hidden[layer], layer)
                sums.add(0, chunk.hidden[layer], objective.derivatives(z, chunk.target, chunk.score))
        return looked

    alone = _second(weigh_alone, adapter.device)
    a_layer = max(0.0, _second(weigh, adapter.device) - alone)
    return Pace(
        forward=_second(lambda: adapter.forward(ids), adapter.device) / ids.numel(),
        weight=(alone + len(layers) * a_layer) / ids.numel(),
        position=_second(lambda: look(layers), adapter.device) / look(()),
    )


def _second(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes the second time."""
    work()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

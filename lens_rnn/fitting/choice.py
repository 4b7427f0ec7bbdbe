"""How far each layer's translator goes: from zero, the logit lens, over the start to the end of the steps or the mean
of the late ones, judged on blocks that neither steps nor start have seen. No layer ends worse than it began.

First the four points themselves, then the way that leads to the best of them, at a few fractions. A candidate costs a
forward product with the unembedding, half an evaluation, and few positions are enough: all candidates are judged on the
same ones, and what they share cancels. What is beyond the start must beat it, or zero where that is better, by more
than two standard errors of their difference: where too little text can tell them apart, what was there before is safe.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.fit_report import LayerChoice
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.plan import Plan
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ZERO, START, LATE, END = "zero", "start", "mean of late steps", "end"
_BEFORE = {START: ZERO, LATE: START, END: START}  # where the way to a point begins
STANDARD_ERRORS = 2.0
_FRACTIONS = (0.25, 0.5, 0.75)


class Translators(NamedTuple):
    """Those of all fitted layers."""

    weights: Float[Tensor, "layers d_model d_model"]
    biases: Float[Tensor, "layers d_model"]

    def copy(self) -> "Translators":
        return Translators(self.weights.clone(), self.biases.clone())

    def set_to(self, other: "Translators") -> None:
        self.weights.copy_(other.weights)
        self.biases.copy_(other.biases)


class _Place(NamedTuple):
    """A place on the way to a point: 0 where the way begins, 1 at the point."""

    towards: str
    fraction: float = 1.0

    def __str__(self) -> str:
        return self.towards if self.fraction == 1 else f"{self.fraction:g} of the way to {self.towards}"


@torch.no_grad()
def choose(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    plan: Plan,
    processes: Processes,
    translators: Translators,
    start: Translators,
    late: Translators,
) -> dict[int, LayerChoice]:
    """Set each layer's translator, at the end of the steps, to the best place of its way.

    Returns what was chosen by layer, with the mean losses over the positions that it was chosen on.
    """
    zero = Translators(*(torch.zeros_like(part[0, ..., :1]).expand_as(part) for part in start))  # of one zero each row
    points = {ZERO: zero, START: start, LATE: late, END: translators}
    layers = len(adapter.fitted_layers)

    def judged(candidates: list[list[_Place]]) -> list[dict[_Place, Tensor]]:
        return _judge(adapter, blocks, objective, plan, processes, points, candidates)

    losses = judged([[_Place(name) for name in points]] * layers)
    ways = [[_Place(*way) for way in _ways_at(_best(of_layer))] for of_layer in losses]
    losses = [a | b for a, b in zip(losses, judged(ways), strict=True)]
    chosen: dict[int, LayerChoice] = {}
    for k, (layer, of_layer) in enumerate(zip(adapter.fitted_layers, losses, strict=True)):
        best = _best(of_layer)
        if best.towards in (LATE, END):
            begun = _best({place: of_layer[place] for place in (_Place(ZERO), _Place(START))})
            gain = of_layer[begun] - of_layer[best]
            is_beaten = len(gain) > 1 and float(gain.mean()) > STANDARD_ERRORS * float(gain.std()) / len(gain) ** 0.5
            if not is_beaten and bool(of_layer[begun].isfinite().all()):
                best = begun
        weight, bias = _at(points, best, k)
        translators.weights[k], translators.biases[k] = weight, bias
        means = {str(place): float(values.mean()) for place, values in of_layer.items()}
        chosen[layer] = LayerChoice(best.towards, best.fraction, means)
    return chosen


def _best(losses: Mapping[_Place, Tensor]) -> _Place:
    """Where the mean loss is lowest; what is not finite is the worst."""
    return min(losses, key=lambda place: float(losses[place].mean().nan_to_num(float("inf"))))


def _ways_at(best: _Place) -> list[tuple[str, float]]:
    """The fractions to try: of the way to the best point, and where that is the start or zero, of the way on."""
    ends = {ZERO: (START,), START: (START, END)}.get(best.towards, (best.towards,))
    return [(towards, fraction) for towards in ends for fraction in _FRACTIONS]


def _at(points: Mapping[str, Translators], place: _Place, k: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of layer number k there."""
    point = points[place.towards]
    if place.fraction == 1:
        return point.weights[k], point.biases[k]
    before = points[_BEFORE[place.towards]]
    return (
        before.weights[k].lerp(point.weights[k], place.fraction),
        before.biases[k].lerp(point.biases[k], place.fraction),
    )


def _judge(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    plan: Plan,
    processes: Processes,
    points: Mapping[str, Translators],
    candidates: Sequence[Sequence[_Place]],
) -> list[dict[_Place, Float[Tensor, " positions"]]]:
    """The losses of each layer's candidates at the positions that are kept apart, over all processes."""
    rows, a_block = plan.sampling.kept_apart, plan.choice_positions
    losses = torch.zeros(len(candidates), max(map(len, candidates)), len(rows) * a_block)
    for part, real in processes.shares(np.arange(len(rows)), plan.micro_batch_size):
        ids = blocks.batch(rows[part], adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        at = int(part[0]) * a_block  # a process's part is of consecutive blocks
        for chunk in objective.chunks(forward, ids, positions=plan.sampling.of_choice(part, a_block)):
            here = slice(at, at := at + len(chunk.hidden[0]))
            for k, layer in enumerate(adapter.fitted_layers):
                hidden = chunk.hidden[layer].to(points[ZERO].weights.dtype)
                for number, place in enumerate(candidates[k]):
                    z = hidden + torch.nn.functional.linear(hidden, *_at(points, place, k))
                    losses[k, number, here] = objective.losses(z, chunk.target).cpu()
    total = processes.sum(losses.to(adapter.device)).cpu().double()
    return [dict(zip(places, rows, strict=False)) for places, rows in zip(candidates, total, strict=True)]

"""Optimizers of the translators: which there are, their settings, and their schedules."""

from collections.abc import Callable
from typing import Literal

from lens_rnn.lens import TunedLens

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "adam", "sgd", "muon"]

LEARNING_RATES: dict[str, float] = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.1, "muon": 0.03}
"""Defaults. sgd and adam are tuned-lens 0.2.0's own: 1 × (1 − momentum), and 1e-3."""


def make_optimizer(name: OptimizerName, lens: TunedLens, layers: tuple[int, ...], learning_rate: float, steps: int) -> "LensOptimizer":
    """The optimizer of the given layers' translators, with its schedule over `steps`.

    sgd   tuned-lens 0.2.0's recipe: Nesterov momentum 0.9, weight decay 1e-3, linear decay without warm-up.
    adam  its alternative: amsgrad, weight decay 1e-3 (coupled), with the warm-up that its code intends.
    adamw decoupled weight decay 1e-3, β2 0.99, a short warm-up and linear decay.
    muon  torch's Muon on the weights, AdamW on the biases.
    """
    weights = [lens[i].weight for i in layers]
    biases = [lens[i].bias for i in layers]
    both = [*weights, *biases]
    optimizers: list[Optimizer]
    warmup = 0
    if name == "sgd":
        optimizers = [torch.optim.SGD(both, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-3)]
    elif name == "adam":
        optimizers = [torch.optim.Adam(both, lr=learning_rate, amsgrad=True, weight_decay=1e-3)]
        warmup = min(1000, steps // 5)
    elif name == "adamw":
        optimizers = [torch.optim.AdamW(both, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)]
        warmup = min(1000, steps // 20)
    else:
        optimizers = [
            torch.optim.Muon(weights, lr=learning_rate, weight_decay=1e-3),
            torch.optim.AdamW(biases, lr=learning_rate / 30, betas=(0.9, 0.99), weight_decay=1e-3),
        ]
    return LensOptimizer(optimizers, _linear(warmup, steps))


def _linear(warmup: int, steps: int) -> Callable[[int], float]:
    """Up over `warmup` steps, then down to zero at `steps`."""

    def scale(step: int) -> float:
        up = (step + 1) / (warmup + 1)
        down = (steps - step) / max(1, steps - warmup)
        return max(0.0, min(up, down, 1.0))

    return scale


class LensOptimizer:
    """One or two torch optimizers stepped together, each with the same schedule."""

    def __init__(self, optimizers: list[Optimizer], schedule: Callable[[int], float]):
        self.optimizers = optimizers
        self.schedules = [LambdaLR(optimizer, schedule) for optimizer in optimizers]

    @property
    def learning_rate(self) -> float:
        return float(self.optimizers[0].param_groups[0]["lr"])

    def step(self) -> None:
        """Use the gradients in `.grad`, then advance the schedule."""
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, list[dict]]:
        schedules = [{k: v for k, v in s.state_dict().items() if k != "lr_lambdas"} for s in self.schedules]
        return {"optimizers": [o.state_dict() for o in self.optimizers], "schedules": schedules}

    def load_state_dict(self, state: dict[str, list[dict]]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict({**saved, "lr_lambdas": [None]})

"""Optimizers of the translators: which there are, their settings, and the schedules of those that need one."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.sums import StepSums

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["kfac", "adamw", "adam", "sgd", "muon"]

LEARNING_RATES: dict[str, float] = {"kfac": 1.0, "adamw": 1e-3, "adam": 1e-3, "sgd": 0.1, "muon": 0.03}
"""Defaults. kfac's multiplies the step lengths that it measures. sgd and adam are tuned-lens 0.2.0's own: 1 × (1 −
momentum), and 1e-3."""
STATES: dict[str, int] = {"adamw": 2, "adam": 3, "sgd": 1, "muon": 1}
"""Tensors of the translators' size that torch's optimizers keep."""


class LensOptimizer(Protocol):
    """What changes all fitted translators, once a step."""

    @property
    def learning_rate(self) -> float:
        """Of the last step."""

    def step(self, sums: StepSums) -> None:
        """Change the translators by the means of a step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def make_optimizer(
    name: OptimizerName, weights: Tensor, biases: Tensor, learning_rate: float, steps: int, clip: float
) -> LensOptimizer:
    """The optimizer of the translators' weights (layers, d_model, d_model) and biases (layers, d_model), over `steps`.

    kfac  natural gradient; measures its own step lengths and damping (see kfac.py).
    sgd   tuned-lens 0.2.0's recipe: Nesterov momentum 0.9, weight decay 1e-3, linear decay without warm-up.
    adam  its alternative: amsgrad, weight decay 1e-3 (coupled), with the warm-up that its code intends.
    adamw decoupled weight decay 1e-3, β2 0.99, a short warm-up and linear decay.
    muon  torch's Muon on the weights, AdamW on the biases.

    clip: highest norm of one layer's gradient, for all but kfac.
    """
    if name == "kfac":
        return KFAC(weights, biases, learning_rate)
    return TorchOptimizer(name, weights, biases, learning_rate, steps, clip)


class TorchOptimizer:
    """One or two torch optimizers stepped together, each with the same schedule."""

    def __init__(
        self, name: OptimizerName, weights: Tensor, biases: Tensor, learning_rate: float, steps: int, clip: float
    ):
        self.clip = clip
        self.weights = [Parameter(weight, requires_grad=False) for weight in weights]
        self.biases = [Parameter(bias, requires_grad=False) for bias in biases]
        self.optimizers, warmup = _torch_optimizers(name, self.weights, self.biases, learning_rate, steps)
        self.schedules = [LambdaLR(optimizer, _linear(warmup, steps)) for optimizer in self.optimizers]
        self.learning_rate = 0.0

    def step(self, sums: StepSums) -> None:
        """Clip each layer's gradient by its own norm, step, then advance the schedule."""
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            norm = torch.sqrt(sums.weights[k].square().sum() + sums.biases[k].square().sum())
            scale = (self.clip / norm.clamp(min=1e-30)).clamp(max=1.0)
            weight.grad, bias.grad = sums.weights[k] * scale, sums.biases[k] * scale
        self.learning_rate = float(self.optimizers[0].param_groups[0]["lr"])
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        schedules = [{k: v for k, v in s.state_dict().items() if k != "lr_lambdas"} for s in self.schedules]
        return {"optimizers": [o.state_dict() for o in self.optimizers], "schedules": schedules}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict({**saved, "lr_lambdas": [None]})


def _torch_optimizers(
    name: OptimizerName, weights: list[Parameter], biases: list[Parameter], learning_rate: float, steps: int
) -> tuple[list[Optimizer], int]:
    """The optimizers, and the steps of warm-up."""
    both = [*weights, *biases]
    if name == "sgd":
        return [torch.optim.SGD(both, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-3)], 0
    if name == "adam":
        return [torch.optim.Adam(both, lr=learning_rate, amsgrad=True, weight_decay=1e-3)], min(1000, steps // 5)
    if name == "adamw":
        return [torch.optim.AdamW(both, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)], min(1000, steps // 20)
    return [
        torch.optim.Muon(weights, lr=learning_rate, weight_decay=1e-3),
        torch.optim.AdamW(biases, lr=learning_rate / 30, betas=(0.9, 0.99), weight_decay=1e-3),
    ], 0


def _linear(warmup: int, steps: int) -> Callable[[int], float]:
    """Up over `warmup` steps, then down to zero at `steps`."""

    def scale(step: int) -> float:
        up = (step + 1) / (warmup + 1)
        down = (steps - step) / max(1, steps - warmup)
        return max(0.0, min(up, down, 1.0))

    return scale

"""Optimizers of the translators: what the loop asks of one, torch's with their settings and schedules, and which there
are."""

from typing import Any, ClassVar, Literal, Protocol

from lens_rnn.fitting.closed_form import Inputs
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.sums import StepSums
from lens_rnn.processes import Processes

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["kfac", "adamw", "adam", "sgd", "muon"]


class LensOptimizer(Protocol):
    """What changes all fitted translators, once a step."""

    fisher: ClassVar[bool]
    """Whether it wants the Fisher factor of each step, and the moments of the hidden states before the first."""
    default_rate: ClassVar[float]

    @property
    def learning_rate(self) -> float:
        """Of the last step."""

    def begin(self, k: int, inputs: Inputs) -> None:
        """Learn of the hidden states of layer number k, before the first step."""

    def can_take_back(self, k: int) -> bool:
        """Whether layer number k can undo its last step, if the loss after it is not finite."""

    def step(self, sums: StepSums) -> None:
        """Change the translators by the means of a step."""

    def state_dict(self) -> dict[str, Any]:
        """Complete on the main process. All processes must call it together."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @classmethod
    def bytes_needed(cls, layers: int, d_model: int, world: int) -> int:
        """States that one of `world` processes holds, and the temporaries of a step."""


class TorchOptimizer:
    """One or two torch optimizers stepped together, each with the same schedule."""

    fisher: ClassVar[bool] = False
    default_rate: ClassVar[float]
    state_tensors: ClassVar[int]
    """Tensors of the translators' size that torch keeps."""
    warmup_one_in: ClassVar[int | None] = None
    """Steps of which one is warm-up, up to 1000."""

    def __init__(
        self,
        weights: Float[Tensor, "layers d_model d_model"],
        biases: Float[Tensor, "layers d_model"],
        learning_rate: float,
        steps: int,
        clip: float,
    ):
        """weights (layers, d_model, d_model) and biases (layers, d_model) are changed in place. clip: highest norm of
        one layer's gradient."""
        self.clip = clip
        self.weights = [Parameter(weight, requires_grad=False) for weight in weights]
        self.biases = [Parameter(bias, requires_grad=False) for bias in biases]
        self.optimizers = self._make(learning_rate)
        warmup = min(1000, steps // self.warmup_one_in) if self.warmup_one_in else 0

        def scale(step: int) -> float:
            """Up over the warm-up, down to zero at `steps`. That of transformers begins at zero, a step without a
            move."""
            up = (step + 1) / (warmup + 1)
            down = (steps - step) / max(1, steps - warmup)
            return max(0.0, min(up, down, 1.0))

        self.schedules = [LambdaLR(optimizer, scale) for optimizer in self.optimizers]
        self.learning_rate = 0.0

    def _make(self, learning_rate: float) -> list[Optimizer]:
        """torch's optimizers of the weights and biases: each subclass has its own."""
        raise NotImplementedError

    @classmethod
    def bytes_needed(cls, layers: int, d_model: int, world: int) -> int:  # noqa: ARG003 - every process has all
        return 4 * layers * d_model * (d_model + 1) * (cls.state_tensors + 1)  # 1: clipped gradients

    def begin(self, k: int, inputs: Inputs) -> None:
        """Nothing: it needs no moments."""

    def can_take_back(self, k: int) -> bool:  # noqa: ARG002 - a layer is as good as another
        return False

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


class SGD(TorchOptimizer):
    """tuned-lens 0.2.0's recipe: Nesterov momentum 0.9, weight decay 1e-3, linear decay without warm-up."""

    default_rate, state_tensors = 0.1, 1  # its rate is 1 × (1 − momentum)

    def _make(self, learning_rate: float) -> list[Optimizer]:
        both = [*self.weights, *self.biases]
        return [torch.optim.SGD(both, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-3)]


class Adam(TorchOptimizer):
    """tuned-lens 0.2.0's alternative: amsgrad, weight decay 1e-3 (coupled), with the warm-up that its code intends."""

    default_rate, state_tensors, warmup_one_in = 1e-3, 3, 5

    def _make(self, learning_rate: float) -> list[Optimizer]:
        both = [*self.weights, *self.biases]
        return [torch.optim.Adam(both, lr=learning_rate, amsgrad=True, weight_decay=1e-3)]


class AdamW(TorchOptimizer):
    """Decoupled weight decay 1e-3, β2 0.99, a short warm-up and linear decay."""

    default_rate, state_tensors, warmup_one_in = 1e-3, 2, 20

    def _make(self, learning_rate: float) -> list[Optimizer]:
        both = [*self.weights, *self.biases]
        return [torch.optim.AdamW(both, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)]


class Muon(TorchOptimizer):
    """torch's Muon on the weights, AdamW on the biases."""

    default_rate, state_tensors = 0.03, 1

    def _make(self, learning_rate: float) -> list[Optimizer]:
        return [
            torch.optim.Muon(self.weights, lr=learning_rate, weight_decay=1e-3),
            torch.optim.AdamW(self.biases, lr=learning_rate / 30, betas=(0.9, 0.99), weight_decay=1e-3),
        ]


OPTIMIZERS: dict[OptimizerName, type[LensOptimizer]] = {
    "kfac": KFAC,
    "adamw": AdamW,
    "adam": Adam,
    "sgd": SGD,
    "muon": Muon,
}


def make_optimizer(
    name: OptimizerName,
    weights: Float[Tensor, "layers d_model d_model"],
    biases: Float[Tensor, "layers d_model"],
    learning_rate: float,
    steps: int,
    clip: float,
    processes: Processes | None = None,
) -> LensOptimizer:
    """The optimizer of the translators' weights (layers, d_model, d_model) and biases (layers, d_model), over `steps`.

    clip: highest norm of one layer's gradient, for all but kfac, which has neither that nor a schedule. processes:
    among whom kfac shares the layers.
    """
    kind = OPTIMIZERS[name]
    if issubclass(kind, TorchOptimizer):
        return kind(weights, biases, learning_rate, steps, clip)
    return KFAC(weights, biases, learning_rate, processes)

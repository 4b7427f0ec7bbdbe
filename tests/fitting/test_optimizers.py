"""The optimizers of torch: their schedules, and the memory that they need."""

from lens_rnn.fitting.optimizers import OPTIMIZERS, TorchOptimizer, make_optimizer
from lens_rnn.fitting.sums import StepSums

import pytest
import torch

TORCH = [name for name, kind in OPTIMIZERS.items() if issubclass(kind, TorchOptimizer)]
LAYERS, D = 2, 16


def stepped(name: str, steps: int) -> tuple[TorchOptimizer, list[float]]:
    """An optimizer after so many steps on random gradients, and the learning rate of each."""
    sums, rates = StepSums(LAYERS, D, torch.device("cpu"), fisher=False), []
    sums.flat.normal_(generator=torch.Generator().manual_seed(0))
    weights, biases = torch.zeros(LAYERS, D, D), torch.zeros(LAYERS, D)
    optimizer = make_optimizer(name, weights, biases, 1.0, steps, clip=1.0)
    for _ in range(steps):
        optimizer.step(sums)
        rates.append(optimizer.learning_rate)
    assert isinstance(optimizer, TorchOptimizer)
    return optimizer, rates


@pytest.mark.parametrize(("name", "warmup"), [("sgd", 0), ("muon", 0), ("adamw", 2), ("adam", 8)])
def test_the_rate_rises_over_the_warm_up_and_falls_to_zero(name: str, warmup: int) -> None:
    _, rates = stepped(name, 40)
    assert rates[:warmup] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup)])
    assert rates[warmup:] == pytest.approx([(40 - step) / (40 - warmup) for step in range(warmup, 40)])


@pytest.mark.parametrize("name", TORCH)
def test_states_and_gradients_take_what_is_said(name: str) -> None:
    optimizer, _ = stepped(name, 1)
    states = [value for one_of in optimizer.optimizers for state in one_of.state.values() for value in state.values()]
    held = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    held += sum(p.grad.nbytes for p in (*optimizer.weights, *optimizer.biases))
    assert optimizer.bytes_needed(LAYERS, D, world=1) == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("name", TORCH)
def test_no_step_can_be_taken_back(name: str) -> None:
    optimizer, _ = stepped(name, 1)
    assert not optimizer.can_take_back(0)

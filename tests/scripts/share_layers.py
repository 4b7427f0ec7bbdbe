"""Run under torchrun by test_fit_lens.py: two processes that own every other layer fit what one does that has all."""

import os
import sys
from pathlib import Path

from lens_rnn.errors import LensRNNError
from lens_rnn.fitting import Checkpoints, FitConfig, fit
from lens_rnn.fitting.closed_form import Inputs
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.sums import StepSums
from lens_rnn.models import load_model
from lens_rnn.processes import Processes
from tests.data.blocks import make_blocks

import torch
from accelerate import Accelerator

LAYERS, D = 5, 8
accelerator = Accelerator(cpu=True)
processes = Processes(accelerator)


def made() -> tuple[KFAC, KFAC]:
    """One that shares its layers and one that has them all, after the same beginning."""
    generator = torch.Generator().manual_seed(0)
    ours, whole = (KFAC(torch.zeros(LAYERS, D, D), torch.zeros(LAYERS, D), 1.0, by) for by in (processes, Processes()))
    for k in range(LAYERS):
        rows = torch.randn(40, D, generator=generator, dtype=torch.float64)
        for kfac in (ours, whole):
            kfac.begin(k, Inputs(rows.mean(0), torch.cov(rows.T), 10.0))
    return ours, whole


def sums(seed: int) -> StepSums:
    generator = torch.Generator().manual_seed(seed)
    of_step = StepSums(LAYERS, D, torch.device("cpu"), fisher=True)
    of_step.flat.normal_(generator=generator)
    rows = torch.randn(LAYERS, 40, D, generator=generator)
    of_step.fisher.copy_(rows.mT @ rows / 40)
    of_step.losses.fill_(1.0)
    if seed == 4:
        of_step.losses[3] = 9.0  # this layer takes its step back
    return of_step


# Its steps, its state, and what becomes of an error, to the bit.
ours, whole = made()
assert sorted(ours.owned) == [*range(processes.rank, LAYERS, 2)]
for step in range(6):
    ours.step(sums(step))
    whole.step(sums(step))
    assert torch.equal(ours.weights, whole.weights)
    assert torch.equal(ours.biases, whole.biases)
    assert ours.lengths == whole.lengths
    assert [ours.can_take_back(k) for k in range(LAYERS)] == [step != 4 or k != 3 for k in range(LAYERS)]
state = ours.state_dict()
assert len(state["layers"]) == (LAYERS if processes.is_main else 0)
for saved, expected in zip(state["layers"], whole.state_dict()["layers"], strict=False):
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(saved[name], value) if isinstance(value, torch.Tensor) else saved[name] == value, name
again, _ = made()
again.weights.copy_(ours.weights)
again.biases.copy_(ours.biases)
again.load_state_dict(whole.state_dict())
again.step(sums(6))
whole.step(sums(6))
assert torch.equal(again.weights, whole.weights)
if 1 in ours.owned:
    ours.owned[1].step = lambda *_: 1 / 0  # type: ignore[method-assign]
try:
    ours.step(sums(7))
except (LensRNNError, ZeroDivisionError) as error:
    print(f"ended: {type(error).__name__}", flush=True)

# A whole fit, and one that is continued.
adapter = load_model(sys.argv[1], device="cpu")
checkpoints = Checkpoints(Path(sys.argv[2]), {})
settings = FitConfig(batch_size=4, micro_batch_size=2, passes=3, checkpoint_every=5, products="float32")
shared = fit(adapter, make_blocks(40), settings, processes=processes, checkpoints=checkpoints).lens
processes.wait()
resumed = fit(adapter, make_blocks(40), settings, processes=processes, resume_from=checkpoints.at(10)).lens
alone = fit(adapter, make_blocks(40), settings).lens
for layer in adapter.fitted_layers:
    assert torch.equal(shared[layer].weight, resumed[layer].weight)
    expected = alone[layer].weight
    assert (shared[layer].weight - expected).norm() <= 1e-4 * expected.norm(), layer
print("equal", flush=True)
accelerator.wait_for_everyone()
accelerator.state.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # as lens_rnn.cli does, and for its reason

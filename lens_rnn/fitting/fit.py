"""The fit: closed-form start, then steps of an optimizer on the fused objective, over all processes of the run.

    plan → batch of this step → this process's share → forward pass → chunks → per-layer gradient → one sum over
    processes → step

Which blocks a step sees is a function of the seed and the step alone, so that one and two processes, and a run that was
killed and resumed, do the same.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lens_rnn.activity import doing
from lens_rnn.checkpoints import Checkpoints
from lens_rnn.data import TokenBlocks
from lens_rnn.errors import FitError
from lens_rnn.fit_report import LayerChoice, LayerStart
from lens_rnn.fitting.choice import Translators, choose
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.cross_validation import start_by_cross_validation
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.optimizers import LensOptimizer, make_optimizer
from lens_rnn.fitting.plan import Plan, make_plan
from lens_rnn.fitting.start import closed_form_start, measure_moments
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch

LATENESS = 3  # the power of its number that a step has as weight in the mean (Shamir & Zhang 2013, arXiv 1212.1824)
OLDEST_CHECKPOINT = 600.0  # seconds

log = logging.getLogger(__name__)


class StepReport(NamedTuple):
    """What a step found, before it changed the translators."""

    step: int
    """Steps done, this one included."""
    steps: int
    tokens: int
    """Tokens that the steps so far have seen, over all processes and passes."""
    losses: dict[int, float]
    """Mean loss of each fitted layer over the step's tokens, in nats."""
    learning_rate: float
    """Of this step; for kfac its mean length over layers."""


@dataclass
class FitResult:
    """A fitted lens and the course of the fit."""

    lens: TunedLens
    start_lens: TunedLens
    """What the steps began with."""
    start: dict[int, LayerStart] = field(default_factory=dict)
    """By layer: its closed-form start, if there was one."""
    choices: dict[int, LayerChoice] = field(default_factory=dict)
    """By layer: how far its translator was let go, if that was chosen."""
    history: list[list[float]] = field(default_factory=list)
    """Mean loss of each fitted layer at each step, in nats: (steps, layers)."""


def fit(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    config: FitConfig | Plan,
    *,
    unembedding: Unembedding | None = None,
    init_lens: TunedLens | None = None,
    processes: Processes | None = None,
    checkpoints: Checkpoints | None = None,
    resume_from: dict[str, Any] | None = None,
    on_start: Callable[[TunedLens], Any] | None = None,
    on_step: Callable[[StepReport], Any] | None = None,
) -> FitResult:
    """Fit a translator for every layer that is not trivial.

    config: the settings, or the plan that was made of them. init_lens: start from its translators instead of
    `config.start`; it is copied. checkpoints: where to save them. resume_from: what `Checkpoints.last` gave, to
    continue from. on_start is given the lens before the first step, on_step is called after every step; both on every
    process.

    Raises what `make_plan` raises, and FitError if the processes do not see the same data or checkpoint, or if a loss
    or a translator is not finite (the last checkpoint stays, and is finite).
    """
    processes = processes or Processes()
    plan = config if isinstance(config, Plan) else make_plan(adapter, blocks, config, processes)
    config, layers = plan.config, adapter.fitted_layers
    lens = TunedLens.from_adapter(adapter, init_lens.unembed if init_lens else unembedding).requires_grad_(False)
    translators = _stack(lens, layers)
    optimizer = make_optimizer(config.optimizer, *translators, plan.learning_rate, plan.steps, config.clip, processes)
    objective = FusedObjective(lens.unembed, config.loss, plan.products, plan.chunk_tokens)
    result, done = FitResult(lens, TunedLens.from_adapter(adapter, lens.unembed).requires_grad_(False)), 0
    start = _stack(result.start_lens, layers)
    late = LateMean(translators)

    if plan.start_alone:
        resume_from = None  # there is nothing to continue, and the start is soon made again
    resumed_step = resume_from["step"] if resume_from else None
    processes.refuse_differences({"data sha256": blocks.sha256, "checkpoint": resumed_step})
    if resume_from:
        lens.layer_translators.load_state_dict(resume_from["translators"])
        result.start_lens.layer_translators.load_state_dict(resume_from["start translators"])
        late.load_state_dict(resume_from["late mean"])
        optimizer.load_state_dict(resume_from["optimizer"])
        done, result.history = resume_from["step"], resume_from["history"]
        result.start = {int(layer): LayerStart(**start) for layer, start in resume_from["start"].items()}
        if processes.is_main:
            log.info("resumed after step %d of %d", done, plan.steps)
    else:
        if init_lens is not None:
            for layer in layers:
                lens[layer].load_state_dict(init_lens[layer].state_dict())
        ridge = config.start == "ridge" and init_lens is None
        if plan.start_alone and ridge:
            result.start, result.choices = start_by_cross_validation(adapter, blocks, objective, translators)
        elif plan.start_rows and (ridge or optimizer.fisher):
            result.start = _start(lens, optimizer, adapter, blocks, objective, plan, processes, ridge)
    for parameter in lens.layer_translators.parameters():
        processes.share(parameter)
    if not resume_from:
        start.set_to(translators)

    saved_at = time.monotonic()

    def save(step: int) -> None:
        nonlocal saved_at
        _refuse_non_finite_translators(lens, step)
        state_of_optimizer = optimizer.state_dict() if checkpoints else {}
        if checkpoints and processes.is_main:
            state = {"translators": lens.layer_translators.state_dict(), "optimizer": state_of_optimizer}
            begun = {
                "start translators": result.start_lens.layer_translators.state_dict(),
                "late mean": late.state_dict(),
                "start": {layer: asdict(layer_start) for layer, layer_start in result.start.items()},
            }
            checkpoints.save(step, {**state, **begun, "history": result.history})
        saved_at = time.monotonic()

    if not resume_from:
        if on_start:
            on_start(lens)
        save(0)
    sums = StepSums(len(layers), adapter.d_model, adapter.device, optimizer.fisher)
    for step in range(done, plan.steps):
        doing(f"fitting, step {step + 1} of {plan.steps}")
        _accumulate(sums, lens, adapter, blocks, objective, plan, step, processes)
        losses = sums.losses.tolist()
        by_layer = dict(zip(layers, losses, strict=True))
        final = {layer: by_layer[layer] for k, layer in enumerate(layers) if not optimizer.can_take_back(k)}
        _refuse_non_finite(final, step)
        optimizer.step(sums)
        late.add(translators)
        result.history.append(losses)
        if on_step:
            tokens = (step + 1) * plan.step_tokens
            on_step(StepReport(step + 1, plan.steps, tokens, by_layer, optimizer.learning_rate))
        is_old = checkpoints is not None and processes.any(time.monotonic() - saved_at > OLDEST_CHECKPOINT)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == plan.steps or is_old:
            save(step + 1)
    if plan.choice_positions:
        doing("choosing how far each layer goes")
        result.choices = choose(adapter, blocks, objective, plan, processes, translators, start, late.translators)
        _refuse_non_finite_translators(lens, plan.steps)
    return result


def _start(
    lens: TunedLens,
    optimizer: LensOptimizer,
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    plan: Plan,
    processes: Processes,
    ridge: bool,
) -> dict[int, LayerStart]:
    """Tell the optimizer of the hidden states and, with `ridge`, set the translators in closed form. The moments, which
    are large, are gone afterwards."""
    starts: dict[int, LayerStart] = {}
    for numbers, moments in measure_moments(adapter, blocks, objective, plan, processes):
        if ridge:
            starts |= closed_form_start(lens, moments, numbers, processes)
        with processes.together():
            for at, k in enumerate(numbers):
                optimizer.begin(k, moments.inputs(at))
        del moments  # before those of the next layers are made
    return starts


def _stack(lens: TunedLens, layers: tuple[int, ...]) -> Translators:
    """One tensor for all fitted weights and one for all biases, of which the lens's parameters are views."""
    stacked = Translators(torch.stack([lens[i].weight for i in layers]), torch.stack([lens[i].bias for i in layers]))
    for k, layer in enumerate(layers):
        lens[layer].weight.data, lens[layer].bias.data = stacked.weights[k], stacked.biases[k]
    return stacked


class LateMean:
    """The mean of the translators after each step, the later the more: step t weighs about t ** LATENESS."""

    def __init__(self, like: Translators):
        self.count, self.translators = 0, like.copy()

    def add(self, translators: Translators) -> None:
        """Take what a step led to."""
        self.count += 1
        for mean, now in zip(self.translators, translators, strict=True):
            mean.lerp_(now, (LATENESS + 1) / (LATENESS + self.count))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, **self.translators._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for mean, saved in zip(self.translators, (state["weights"], state["biases"]), strict=True):
            mean.copy_(saved)


def _accumulate(
    sums: StepSums,
    lens: TunedLens,
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    plan: Plan,
    step: int,
    processes: Processes,
) -> None:
    """Fill `sums` with the means over the positions that the step looks at."""
    sums.flat.zero_()
    rows = plan.sampling.rows(step)
    for part, real in processes.shares(np.arange(len(rows)), plan.micro_batch_size):
        ids = blocks.batch(rows[part], adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        draws = plan.sampling.draws(step, part) if sums.has_fisher else None
        positions = plan.sampling.of_step(step, part)
        with _tensor_cores(objective.products):
            for chunk in objective.chunks(forward, ids, draws, positions):
                for k, layer in enumerate(adapter.fitted_layers):
                    hidden = chunk.hidden[layer]
                    z = lens.transform_hidden(hidden, layer)
                    sums.add(k, hidden, objective.derivatives(z, chunk.target, chunk.score))
                sums.tokens += len(chunk.hidden[0])
    sums.average(processes)


@contextmanager
def _tensor_cores(products: torch.dtype) -> Iterator[None]:
    """On CUDA, let the float32 products (translators, gradients, factors) use TF32, where those with the unembedding
    are coarser still."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, matmul.allow_tf32 or products == torch.bfloat16
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _refuse_non_finite(losses: dict[int, float], step: int) -> None:
    for layer, loss in losses.items():
        if not np.isfinite(loss):
            raise FitError(
                f"the loss of layer {layer} is {loss} at step {step + 1}; stopped, and the last good checkpoint is "
                "kept; try a lower --learning-rate, or --dtype float32 if the model overflows"
            )


def _refuse_non_finite_translators(lens: TunedLens, step: int) -> None:
    for layer, translator in enumerate(lens):
        if not all(bool(p.isfinite().all()) for p in translator.parameters()):
            raise FitError(
                f"the translator of layer {layer} is not finite after step {step}; stopped, and the last good "
                "checkpoint is kept; try a lower --learning-rate"
            )

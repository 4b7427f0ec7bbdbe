"""The fit: closed-form start, then steps of an optimizer on the fused objective, over all processes of the run.

    plan → batch of this step → this process's share → forward pass → chunks → per-layer gradient → one sum over
    processes → step

Which blocks a step sees is a function of the seed and the step alone, so that one and two processes, and a run that was
killed and resumed, do the same.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from lens_rnn.activity import doing
from lens_rnn.checkpoints import Checkpoints
from lens_rnn.data import TokenBlocks
from lens_rnn.errors import FitError
from lens_rnn.fit_report import LayerStart
from lens_rnn.fitting.closed_form import HELD_OUT_ONE_IN, Moments
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.optimizers import make_optimizer
from lens_rnn.fitting.plan import Plan, make_plan
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
    start: dict[int, LayerStart] = field(default_factory=dict)
    """By layer: its closed-form start, if there was one, and the KL that `at_start` measured."""
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
    at_start: Callable[[TunedLens], Mapping[int, float]] | None = None,
    on_step: Callable[[StepReport], Any] | None = None,
) -> FitResult:
    """Fit a translator for every layer that is not trivial.

    config: the settings, or the plan that was made of them. init_lens: start from its translators instead of
    `config.start`; it is copied. checkpoints: where to save them. resume_from: what `Checkpoints.last` gave, to
    continue from. at_start is given the lens before the first step, and the KL that it returns by layer is kept in the
    result. on_step is called after every step. Both are called on every process.

    Raises what `make_plan` raises, and FitError if the processes do not see the same data or checkpoint, or if a loss
    or a translator is not finite (the last checkpoint stays, and is finite).
    """
    processes = processes or Processes()
    plan = config if isinstance(config, Plan) else make_plan(adapter, blocks, config, processes)
    config, layers = plan.config, adapter.fitted_layers
    lens = TunedLens.from_adapter(adapter, init_lens.unembed if init_lens else unembedding).requires_grad_(False)
    weights, biases = _stack(lens, layers)
    optimizer = make_optimizer(config.optimizer, weights, biases, plan.learning_rate, plan.steps, config.clip)
    objective = FusedObjective(lens.unembed, config.loss, plan.products, plan.chunk_tokens)
    result, done = FitResult(lens), 0

    resumed_step = resume_from["step"] if resume_from else None
    processes.refuse_differences({"data sha256": blocks.sha256, "checkpoint": resumed_step})
    if resume_from:
        lens.layer_translators.load_state_dict(resume_from["translators"])
        optimizer.load_state_dict(resume_from["optimizer"])
        done, result.history = resume_from["step"], resume_from["history"]
        result.start = {int(layer): LayerStart(**start) for layer, start in resume_from["start"].items()}
        if processes.is_main:
            log.info("resumed after step %d of %d", done, plan.steps)
    else:
        ridge = config.start == "ridge" and init_lens is None
        moments = _moments(adapter, blocks, plan, processes) if ridge or optimizer.fisher else None
        if init_lens is not None:
            for layer in layers:
                lens[layer].load_state_dict(init_lens[layer].state_dict())
        if moments is not None:
            if ridge:
                result.start = _closed_form_start(lens, moments)
            optimizer.begin(moments)
        del moments
    for parameter in lens.layer_translators.parameters():
        processes.share(parameter)

    def save(step: int) -> None:
        _refuse_non_finite_translators(lens, step)
        if checkpoints and processes.is_main:
            state = {"translators": lens.layer_translators.state_dict(), "optimizer": optimizer.state_dict()}
            start = {layer: asdict(layer_start) for layer, layer_start in result.start.items()}
            checkpoints.save(step, {**state, "history": result.history, "start": start})

    if not resume_from:
        for layer, kl in (at_start(lens) if at_start else {}).items():
            result.start[layer] = replace(result.start.get(layer, LayerStart()), kl=kl)
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
        result.history.append(losses)
        if on_step:
            tokens = (step + 1) * plan.step_tokens
            on_step(StepReport(step + 1, plan.steps, tokens, by_layer, optimizer.learning_rate))
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == plan.steps:
            save(step + 1)
    return result


def _stack(lens: TunedLens, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """One tensor for all fitted weights (layers, d_model, d_model) and one for all biases, of which the lens's
    parameters are views."""
    weights = torch.stack([lens[i].weight for i in layers])
    biases = torch.stack([lens[i].bias for i in layers])
    for k, layer in enumerate(layers):
        lens[layer].weight.data, lens[layer].bias.data = weights[k], biases[k]
    return weights, biases


def _moments(adapter: ModelAdapter, blocks: TokenBlocks, plan: Plan, processes: Processes) -> Moments:
    """The moments of the hidden states on the first blocks of the order, over all processes."""
    moments = Moments(adapter.fitted_layers, adapter.d_model, adapter.device)
    rows = plan.order(0)[: plan.start_rows]
    if processes.is_main:
        log.info("closed-form start on %s tokens", f"{len(rows) * blocks.seq_len:,}")
    chooses = np.arange(len(rows)) % HELD_OUT_ONE_IN == 1
    for held_out in (False, True):
        for part, real in processes.shares(rows[chooses == held_out], plan.config.micro_batch_size):
            forward = adapter.forward(blocks.batch(part, adapter.device))
            if real:
                moments.add(forward.hidden_states, forward.norm_input, held_out)
    for tensor in moments.tensors():
        tensor.copy_(processes.sum(tensor))
    return moments


def _closed_form_start(lens: TunedLens, moments: Moments) -> dict[int, LayerStart]:
    """Set the translators to the ridge solution."""
    solutions = moments.solve()
    for layer, solution in solutions.items():
        lens[layer].weight.copy_(solution.weight)
        lens[layer].bias.copy_(solution.bias)
    return {layer: LayerStart(ridge=s.ridge, explained=s.explained) for layer, s in solutions.items()}


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
    """Fill `sums` with the means over the step's tokens."""
    sums.flat.zero_()
    rows = plan.rows(step)
    for part, real in processes.shares(np.arange(len(rows)), plan.config.micro_batch_size):
        ids = blocks.batch(rows[part], adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        shape = (len(rows), objective.targets(ids.shape[1]))
        draws = _draws(plan.config.seed, step, shape, part) if sums.has_fisher else None
        with _tensor_cores(objective.products):
            for chunk in objective.chunks(forward, ids, draws):
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


def _draws(seed: int, step: int, shape: tuple[int, int], part: np.ndarray) -> Float[Tensor, " targets"]:
    """Uniform draws in [0, 1) for the labels of some sequences of a step: (sequences × targets).

    shape: all sequences of the step, targets in each. A function of seed, step and place in the batch, so that it does
    not matter which process draws.
    """
    draws = np.random.default_rng((seed, step)).random(shape, dtype=np.float32)
    return torch.from_numpy(draws[part].flatten())


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

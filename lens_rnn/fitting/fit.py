"""The fit: closed-form start, then steps of an optimizer on the fused objective, over all processes of the run.

    blocks → batch of this step → this process's share → forward pass → chunks → per-layer gradient → one sum over
    processes → step

Which blocks a step sees is a function of the seed and the step alone, so that one and two processes, and a run that was
killed and resumed, do the same.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lens_rnn.activity import doing
from lens_rnn.checkpoints import Checkpoints
from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.fitting.closed_form import HELD_OUT_ONE_IN, Moments
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.optimizers import make_optimizer
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
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
    start: dict[str, Any] = field(default_factory=dict)
    """By layer: ridge and explained variance of its closed-form start, if there was one, and what `at_start` said of
    it."""
    history: list[list[float]] = field(default_factory=list)
    """Mean loss of each fitted layer at each step, in nats: (steps, layers)."""


def fit(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    config: FitConfig,
    *,
    unembedding: Unembedding | None = None,
    init_lens: TunedLens | None = None,
    processes: Processes | None = None,
    checkpoints: Checkpoints | None = None,
    resume_from: dict[str, Any] | None = None,
    at_start: Callable[[TunedLens], Mapping[str, Mapping[str, Any]]] | None = None,
    on_step: Callable[[StepReport], Any] | None = None,
) -> FitResult:
    """Fit a translator for every layer that is not trivial.

    init_lens: start from its translators instead of `config.start`; it is copied. checkpoints: where to save them.
    resume_from: what `Checkpoints.last` gave, to continue from. at_start is given the lens before the first step, and
    what it says of each layer is kept in the result. on_step is called after every step. Both are called on every
    process.

    Raises ConfigError if batch and processes do not fit together, FitError if there are too few tokens for one step, if
    the processes do not see the same data or checkpoint, or if a loss or a translator is not finite (the last
    checkpoint stays, and is finite).
    """
    processes = processes or Processes()
    steps = check_batches(config, blocks, processes)
    if not adapter.fitted_layers:
        raise FitError(
            f"{adapter.name} has one layer, whose hidden state is the model's own prediction: there is nothing to fit"
        )
    lens = TunedLens.from_adapter(adapter, init_lens.unembed if init_lens else unembedding).requires_grad_(False)
    weights, biases = _stack(lens, adapter.fitted_layers)
    optimizer = make_optimizer(config.optimizer, weights, biases, config.peak_learning_rate, steps, config.clip)
    fisher = isinstance(optimizer, KFAC)
    products = config.product_dtype(adapter.dtype, adapter.device)
    objective = FusedObjective(lens.unembed, config.loss, products, config.chunk_tokens, fisher)
    result = FitResult(lens)
    done = 0

    resumed_step = resume_from["step"] if resume_from else None
    processes.refuse_differences({"data sha256": blocks.sha256, "checkpoint": resumed_step})
    if resume_from:
        lens.layer_translators.load_state_dict(resume_from["translators"])
        optimizer.load_state_dict(resume_from["optimizer"])
        done, result.history, result.start = resume_from["step"], resume_from["history"], resume_from["start"]
        if processes.is_main:
            log.info("resumed after step %d of %d", done, steps)
    else:
        wanted = fisher or (config.start == "ridge" and init_lens is None)
        moments = _moments(adapter, blocks, config, processes) if wanted else None
        if init_lens is not None:
            for layer in adapter.fitted_layers:
                lens[layer].load_state_dict(init_lens[layer].state_dict())
        elif config.start == "ridge" and moments is not None:
            result.start = _closed_form_start(lens, moments)
        if isinstance(optimizer, KFAC) and moments is not None:
            optimizer.begin(moments)
        del moments
    for parameter in lens.layer_translators.parameters():
        processes.share(parameter)

    def save(step: int) -> None:
        _refuse_non_finite_translators(lens, step)
        if checkpoints and processes.is_main:
            state = {"translators": lens.layer_translators.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.save(step, {**state, "history": result.history, "start": result.start})

    if not resume_from:
        if at_start:
            said = at_start(lens)
            result.start = {i: {**result.start.get(i, {}), **said.get(i, {})} for i in {**result.start, **said}}
        save(0)
    sums = StepSums(len(adapter.fitted_layers), adapter.d_model, adapter.device, fisher)
    for step in range(done, steps):
        doing(f"fitting, step {step + 1} of {steps}")
        _accumulate(sums, lens, adapter, blocks, objective, config, step, processes)
        losses = sums.losses.tolist()
        blameless = [k for k in range(len(losses)) if not (isinstance(optimizer, KFAC) and optimizer.can_take_back(k))]
        _refuse_non_finite({adapter.fitted_layers[k]: losses[k] for k in blameless}, step)
        optimizer.step(sums)
        result.history.append(losses)
        if on_step:
            tokens = (step + 1) * config.batch_size * blocks.seq_len
            by_layer = dict(zip(adapter.fitted_layers, losses, strict=True))
            on_step(StepReport(step + 1, steps, tokens, by_layer, optimizer.learning_rate))
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
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


def check_batches(config: FitConfig, blocks: TokenBlocks, processes: Processes) -> int:
    """Number of steps. Raises ConfigError or FitError where batch, data and processes do not fit together."""
    if config.batch_size % processes.world:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared evenly by {processes.world} processes; make it a multiple"
        )
    steps = config.steps(blocks)
    if not steps:
        raise FitError(
            f"{len(blocks)} blocks of {blocks.seq_len} tokens are less than one batch of {config.batch_size}; lower "
            "--batch-size"
        )
    return steps


def _moments(adapter: ModelAdapter, blocks: TokenBlocks, config: FitConfig, processes: Processes) -> Moments:
    """The moments of the hidden states on the first blocks of the order, over all processes."""
    moments = Moments(adapter.fitted_layers, adapter.d_model, adapter.device)
    rows = config.order(0, blocks)[: config.start_rows(blocks, adapter.d_model)]
    if processes.is_main:
        log.info("closed-form start on %s tokens", f"{len(rows) * blocks.seq_len:,}")
    chooses = np.arange(len(rows)) % HELD_OUT_ONE_IN == 1
    for held_out in (False, True):
        for part, real in processes.shares(rows[chooses == held_out], config.micro_batch_size):
            forward = adapter.forward(blocks.batch(part, adapter.device))
            if real:
                moments.add(forward.hidden_states, forward.norm_input, held_out)
    for tensor in moments.tensors():
        tensor.copy_(processes.sum(tensor))
    return moments


def _closed_form_start(lens: TunedLens, moments: Moments) -> dict[str, Any]:
    """Set the translators to the ridge solution."""
    solutions = moments.solve()
    for layer, solution in solutions.items():
        lens[layer].weight.copy_(solution.weight)
        lens[layer].bias.copy_(solution.bias)
    return {str(i): {"ridge": s.ridge, "explained": s.explained} for i, s in solutions.items()}


def _accumulate(
    sums: StepSums,
    lens: TunedLens,
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    config: FitConfig,
    step: int,
    processes: Processes,
) -> None:
    """Fill `sums` with the means over the step's tokens."""
    sums.flat.zero_()
    rows = config.rows(step, blocks)
    for part, real in processes.shares(np.arange(len(rows)), config.micro_batch_size):
        ids = blocks.batch(rows[part], adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        shape = (len(adapter.fitted_layers), len(rows), objective.targets(ids.shape[1]))
        draws = _draws(config.seed, step, shape, part) if objective.fisher else None
        with _tensor_cores(objective.products):
            for chunk in objective.chunks(forward, ids):
                for k, layer in enumerate(adapter.fitted_layers):
                    hidden = chunk.hidden[layer]
                    drawn = None if draws is None else draws[k, chunk.tokens].to(hidden.device)
                    z = lens.transform_hidden(hidden, layer)
                    sums.add(k, hidden, objective.derivatives(z, chunk.target, chunk.expected, drawn))
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


def _draws(seed: int, step: int, shape: tuple[int, int, int], part: np.ndarray) -> Tensor:
    """Uniform draws in [0, 1) for the labels of some sequences of a step: (layers, sequences × targets).

    shape: layers, all sequences of the step, targets in each. A function of seed, step, layer and place in the batch,
    so that it does not matter which process draws.
    """
    draws = np.random.default_rng((seed, step)).random(shape, dtype=np.float32)
    return torch.from_numpy(draws[:, part].reshape(shape[0], -1))


def _refuse_non_finite(losses: dict[int, float], step: int) -> None:
    for layer, loss in losses.items():
        if not np.isfinite(loss):
            raise FitError(
                f"the loss of layer {layer} is {loss} at step {step + 1}; stopped, and the last good checkpoint is "
                "kept; "
                "try a lower --learning-rate, or --dtype float32 if the model overflows"
            )


def _refuse_non_finite_translators(lens: TunedLens, step: int) -> None:
    for layer, translator in enumerate(lens):
        if not all(bool(p.isfinite().all()) for p in translator.parameters()):
            raise FitError(
                f"the translator of layer {layer} is not finite after step {step}; stopped, and the last good "
                "checkpoint is kept; "
                "try a lower --learning-rate"
            )

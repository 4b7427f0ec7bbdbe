"""The fit: closed-form start, then steps of an optimizer on the fused objective, over all processes of the run.

    blocks → batch of this step → this process's share → forward pass → chunks → per-layer gradient → one sum over processes → step

Which blocks a step sees is a function of the seed and the step alone, so that one and two processes, and a run that was killed and
resumed, do the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.fitting.checkpoints import Checkpoints
from lens_rnn.fitting.closed_form import HELD_OUT_ONE_IN, Moments
from lens_rnn.fitting.objective import LOSSES, FusedObjective, Loss, default_chunk_tokens
from lens_rnn.fitting.optimizers import LEARNING_RATES, OptimizerName, make_optimizer
from lens_rnn.lens import TunedLens, Unembedding
from lens_rnn.models import DTYPES, ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

START_TOKENS = 131_072
Start = Literal["ridge", "zero"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a lens is fitted."""

    batch_size: int = 16
    """Sequences in a step, over all processes together."""
    micro_batch_size: int = 8
    """Sequences in one forward pass of one process: lower it if memory runs out; the result stays the same."""
    optimizer: OptimizerName = "adamw"
    """adamw, adam, sgd (with tuned-lens's settings) or muon."""
    learning_rate: float | None = None
    """Highest learning rate. Default: the optimizer's own, 1e-3 for adamw."""
    loss: Loss = "kl"
    """kl: match the model's own distribution; ce: predict the next token."""
    start: Start = "ridge"
    """ridge: closed-form regression onto the final state before the first step; zero: the logit lens, as tuned-lens does."""
    start_tokens: int | None = None
    """Tokens that the closed-form start looks at. Default: 131,072 or 32 × d_model, whichever is more, or all there are."""
    clip: float = 1.0
    """Highest norm of one layer's gradient; a layer's large gradient does not slow the others."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the two matrix products with the unembedding. auto: bfloat16 for a model in it, else float32. Softmax and losses
    are float32."""
    chunk_tokens: int | None = None
    """Tokens whose logits are held at a time. Default: what suits the device."""
    seed: int = 0
    """Decides the order of the blocks."""
    checkpoint_every: int = 50
    """Steps between checkpoints, of which the last two are kept."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "checkpoint_every", "chunk_tokens", "start_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0")
        for name, allowed in (
            ("products", ("auto", "float32", "bfloat16")),
            ("optimizer", LEARNING_RATES),
            ("loss", LOSSES),
            ("start", ("ridge", "zero")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; choose from {', '.join(allowed)}")

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or LEARNING_RATES[self.optimizer]

    def steps(self, blocks: TokenBlocks) -> int:
        """Optimizer steps: each block is used at most once, and a last part of a batch is left out."""
        return len(blocks) // self.batch_size

    def start_rows(self, blocks: TokenBlocks, d_model: int) -> int:
        """Blocks that the closed-form start looks at."""
        wanted = self.start_tokens or max(START_TOKENS, 32 * d_model)
        return min(len(blocks), max(1, wanted // blocks.seq_len))

    def resolved(self, blocks: TokenBlocks, adapter: ModelAdapter) -> dict[str, Any]:
        """What was left to its default, as it is for this data and model."""
        return {
            "learning_rate": self.peak_learning_rate,
            "start_tokens": self.start_rows(blocks, adapter.d_model) * blocks.seq_len if self.start == "ridge" else 0,
            "products": str(self.product_dtype(adapter.dtype)).removeprefix("torch."),
            "chunk_tokens": self.chunk_tokens or default_chunk_tokens(adapter.vocab_size, adapter.device.type),
            "dtype": str(adapter.dtype).removeprefix("torch."),
            "tokens": self.steps(blocks) * self.batch_size * blocks.seq_len,
            "checkpoint_every": self.checkpoint_every,
        }

    def product_dtype(self, head: torch.dtype) -> torch.dtype:
        """What `products` means for a model whose head has this dtype: float16 would lose the small entries of q − p."""
        if self.products == "auto":
            return torch.float32 if head == torch.float16 else head
        return DTYPES[self.products]


class StepReport(NamedTuple):
    """What a step found, before it changed the translators."""

    step: int
    """Steps done, this one included."""
    steps: int
    tokens: int
    """Tokens that the steps so far have seen, over all processes."""
    losses: dict[int, float]
    """Mean loss of each fitted layer over the step's tokens, in nats."""
    learning_rate: float


@dataclass
class FitResult:
    """A fitted lens and the course of the fit."""

    lens: TunedLens
    start: dict[str, Any] = field(default_factory=dict)
    """Ridge and explained variance of each layer's closed-form start, by layer; {} without one."""
    history: list[list[float]] = field(default_factory=list)
    """Mean loss of each fitted layer at each step, in nats: (steps, layers)."""


class _Gradients:
    """Gradients, losses and token count of one step, as views of one flat tensor, so that a step needs one reduction."""

    def __init__(self, layers: int, d_model: int, device: torch.device):
        size = d_model * d_model
        self.flat = torch.zeros(layers * (size + d_model + 1) + 1, device=device)
        weights, biases, self.losses, self.tokens = self.flat.split([layers * size, layers * d_model, layers, 1])
        self.weights = weights.view(layers, d_model, d_model)
        self.biases = biases.view(layers, d_model)

    def add(self, k: int, hidden: Tensor, gradient: Tensor, losses: Tensor) -> None:
        """Add a chunk of layer number k: z = h + W h + b, so dL/dW = Σ g hᵀ and dL/db = Σ g."""
        self.weights[k].addmm_(gradient.T, hidden.to(gradient.dtype))
        self.biases[k] += gradient.sum(0)
        self.losses[k] += losses.sum()


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
    on_step: Callable[[StepReport], Any] | None = None,
) -> FitResult:
    """Fit a translator for every layer that is not trivial.

    init_lens: start from its translators instead of `config.start`; it is copied. checkpoints: where to save them. resume_from: what
    `Checkpoints.last` gave, to continue from. on_step is called after every step, on every process.

    Raises ConfigError if batch and processes do not fit together, FitError if there are too few tokens for one step, if the processes do
    not see the same data or checkpoint, or if a loss or a translator is not finite (the last checkpoint stays, and is finite).
    """
    processes = processes or Processes()
    steps = check_batches(config, blocks, processes)
    lens = TunedLens.from_adapter(adapter, init_lens.unembed if init_lens else unembedding).requires_grad_(False)
    objective = FusedObjective(lens.unembed, config.loss, config.product_dtype(adapter.dtype), config.chunk_tokens)
    optimizer = make_optimizer(config.optimizer, lens, adapter.fitted_layers, config.peak_learning_rate, steps)
    result = FitResult(lens)
    order = np.random.default_rng(config.seed).permutation(len(blocks))
    done = 0

    if not processes.agree(f"{resume_from['step'] if resume_from else None} {blocks.sha256}"):
        raise FitError("the processes see different data or checkpoints; give all machines the same Python, data and --output")
    if resume_from:
        lens.layer_translators.load_state_dict(resume_from["translators"])
        optimizer.load_state_dict(resume_from["optimizer"])
        done, result.history, result.start = resume_from["step"], resume_from["history"], resume_from["start"]
        if processes.is_main:
            log.info("resumed after step %d of %d", done, steps)
    elif init_lens is not None:
        for layer in adapter.fitted_layers:
            lens[layer].load_state_dict(init_lens[layer].state_dict())
    elif config.start == "ridge":
        result.start = _closed_form_start(lens, adapter, blocks, config, order, processes)
    for parameter in lens.layer_translators.parameters():
        processes.share(parameter)

    def save(step: int) -> None:
        _refuse_non_finite_translators(lens, step)
        if checkpoints and processes.is_main:
            state = {"translators": lens.layer_translators.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.save(step, {**state, "history": result.history, "start": result.start})

    if not resume_from:
        save(0)
    gradients = _Gradients(len(adapter.fitted_layers), adapter.d_model, adapter.device)
    for step in range(done, steps):
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        losses = _accumulate(gradients, lens, adapter, blocks, objective, rows, config.micro_batch_size, processes)
        _refuse_non_finite(losses, adapter.fitted_layers, step)
        _apply(gradients, lens, adapter.fitted_layers, config.clip)
        rate = optimizer.learning_rate
        optimizer.step()
        result.history.append(losses)
        if on_step:
            tokens = (step + 1) * config.batch_size * blocks.seq_len
            on_step(StepReport(step + 1, steps, tokens, dict(zip(adapter.fitted_layers, losses, strict=True)), rate))
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps:
            save(step + 1)
    return result


def check_batches(config: FitConfig, blocks: TokenBlocks, processes: Processes) -> int:
    """Number of steps. Raises ConfigError or FitError where batch, data and processes do not fit together."""
    if config.batch_size % processes.world:
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared evenly by {processes.world} processes; make it a multiple")
    steps = config.steps(blocks)
    if not steps:
        raise FitError(
            f"{len(blocks)} blocks of {blocks.seq_len} tokens are less than one batch of {config.batch_size}; lower --batch-size"
        )
    return steps


def _closed_form_start(
    lens: TunedLens, adapter: ModelAdapter, blocks: TokenBlocks, config: FitConfig, order: np.ndarray, processes: Processes
) -> dict[str, Any]:
    """Set the translators to the ridge solution on the first blocks of the order."""
    moments = Moments(adapter.fitted_layers, adapter.d_model, adapter.device)
    rows = order[: config.start_rows(blocks, adapter.d_model)]
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
    solutions = moments.solve()
    for layer, solution in solutions.items():
        lens[layer].weight.copy_(solution.weight)
        lens[layer].bias.copy_(solution.bias)
    return {str(i): {"ridge": s.ridge, "explained": s.explained} for i, s in solutions.items()}


def _accumulate(
    gradients: _Gradients,
    lens: TunedLens,
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    objective: FusedObjective,
    rows: np.ndarray,
    micro_batch_size: int,
    processes: Processes,
) -> list[float]:
    """Fill `gradients` with the means over the step's tokens. Returns the mean loss of each fitted layer."""
    gradients.flat.zero_()
    for part, real in processes.shares(rows, micro_batch_size):
        ids = blocks.batch(part, adapter.device)
        forward = adapter.forward(ids)
        if not real:
            continue
        for chunk in objective.chunks(forward, ids):
            for k, layer in enumerate(adapter.fitted_layers):
                hidden = chunk.hidden[layer]
                losses, gradient = objective.value_and_gradient(lens.transform_hidden(hidden, layer), chunk.target)
                gradients.add(k, hidden, gradient, losses)
            gradients.tokens += len(chunk.hidden[0])
    gradients.flat.copy_(processes.sum(gradients.flat))
    gradients.flat[:-1] /= gradients.tokens
    return gradients.losses.tolist()


def _refuse_non_finite(losses: list[float], layers: tuple[int, ...], step: int) -> None:
    for layer, loss in zip(layers, losses, strict=True):
        if not np.isfinite(loss):
            raise FitError(
                f"the loss of layer {layer} is {loss} at step {step + 1}; stopped, and the last good checkpoint is kept; "
                "try a lower --learning-rate, or --dtype float32 if the model overflows"
            )


def _refuse_non_finite_translators(lens: TunedLens, step: int) -> None:
    for layer, translator in enumerate(lens):
        if not all(bool(p.isfinite().all()) for p in translator.parameters()):
            raise FitError(
                f"the translator of layer {layer} is not finite after step {step}; stopped, and the last good checkpoint is kept; "
                "try a lower --learning-rate"
            )


def _apply(gradients: _Gradients, lens: TunedLens, layers: tuple[int, ...], clip: float) -> None:
    """Hand each layer's gradient, clipped by its own norm, to the optimizer."""
    for k, layer in enumerate(layers):
        weight, bias = gradients.weights[k], gradients.biases[k]
        norm = torch.sqrt(weight.square().sum() + bias.square().sum())
        scale = (clip / norm.clamp(min=1e-30)).clamp(max=1.0)
        lens[layer].weight.grad, lens[layer].bias.grad = weight * scale, bias * scale

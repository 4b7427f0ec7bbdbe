"""Fine-tuning a model into a quirky one: cross-entropy on the answer token, as many true answers as false ones in a
batch."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from lens_rnn.checkpoints import Checkpoints
from lens_rnn.elk.answers import answer_logits, evaluating
from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.templates import Encoded
from lens_rnn.errors import ConfigError, DataError, FitError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.lora import lora_maps
from lens_rnn.processes import Processes
from lens_rnn.ranges import SEED, check_ranges, number, whole

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a model is made quirky. The defaults are the paper's; a tiny model needs a higher rate and rank."""

    method: Literal["lora", "full"] = "lora"
    """lora: low-rank adapters (peft), which are all that is written. full: every weight."""
    rank: Annotated[int, whole(1)] = 8
    """Rank of the adapters; their scale is 2, alpha twice the rank."""
    target_modules: tuple[str, ...] = ()
    """Linear maps that get an adapter. Default: in_proj for Mamba (its other maps have no gradient on some path), key,
    value, receptance and output for RWKV; else every linear map of the blocks, but in a Mamba mixer its in_proj alone,
    and none that shares its weight."""
    learning_rate: Annotated[float, number(above=0)] = 2e-5
    """Highest rate of AdamW, after the warm-up and before a linear decay to zero."""
    weight_decay: Annotated[float, number(0)] = 0.1
    beta2: Annotated[float, number(0, below=1)] = 0.95
    warmup: Annotated[float, number(0, below=1)] = 0.15
    """Share of the steps in which the rate rises."""
    steps: Annotated[int, whole(1)] = 1000
    """Optimizer steps."""
    batch_size: Annotated[int, whole(2)] = 32
    """Rows of a step over all processes, half of them true."""
    validation_rows: Annotated[int, whole(1)] = 512
    """Rows of the validation split that choose the best checkpoint."""
    seed: Annotated[int, SEED] = 0
    """Of the adapters' start and of the order of the rows."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.batch_size % 2:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be even, half the rows are true")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …. (transformers' schedules begin at 0: their first step would do nothing.)"""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (self.steps - step) / (self.steps - rising)

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which weights are kept: 1, 2, 4, 8, … and the last."""
        return sorted({2**k for k in range(self.steps.bit_length()) if 2**k < self.steps} | {self.steps})


class Examples(NamedTuple):
    """Rows of one split, and their tokens."""

    rows: Sequence[QuirkyRow]
    encoded: Sequence[Encoded]


class StepReport(NamedTuple):
    """What a step was like."""

    step: int
    loss: float
    """Mean cross-entropy of the answer token, in nats."""
    validation_loss: float | None
    """The same on validation rows, where the step ended in a checkpoint."""


class Finetuned(NamedTuple):
    """The outcome: the model's weights are the best checkpoint's."""

    best_step: int
    validation_losses: dict[int, float]
    """By step of a checkpoint, nats."""


def add_adapters(adapter: ModelAdapter, config: FinetuneConfig) -> Any:
    """Put fresh low-rank adapters into the model and return peft's model around it. Raises FitError if peft is absent
    or refuses."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise FitError("LoRA needs peft; install it with pip install 'lens-rnn[elk]', or use --method full") from None
    targets = [*config.target_modules] or lora_maps(adapter)
    task = "CAUSAL_LM" if adapter.model.can_generate() else None  # peft asks of such a task that the model can generate
    settings = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=targets, task_type=task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return get_peft_model(adapter.model, settings)
        except ValueError as error:
            raise FitError(f"peft cannot put adapters on {targets}: {' '.join(str(error).split())[:300]}") from None


def dead_modules(model: nn.Module) -> list[str]:
    """Names of the adapters, or weights, that take part in training and got no gradient in the last backward pass."""
    alive: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.partition(".lora_")[0].removeprefix("base_model.model.")
            moved = parameter.grad is not None and bool(parameter.grad.any())
            alive[module] = alive.get(module, False) or moved
    return [module for module, moved in alive.items() if not moved]


def batch_of(train: Examples, config: FinetuneConfig, step: int) -> list[int]:
    """The rows of a step: a function of seed and step, so that a resumed run goes on with the same."""
    random = np.random.default_rng((config.seed, step))
    rows: list[int] = []
    for label in (False, True):
        of_class = [i for i, row in enumerate(train.rows) if row.label == label]
        rows += random.choice(of_class, config.batch_size // 2, replace=len(of_class) < config.batch_size // 2).tolist()
    return rows


def finetune(
    adapter: ModelAdapter,
    train: Examples,
    validation: Examples,
    config: FinetuneConfig,
    folder: Path,
    *,
    processes: Processes | None = None,
    resume: bool = False,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> Any:
    """Train the model in place and return peft's model around it, or the model itself, with its `Finetuned`.

    Checkpoints go to `folder`; with `resume` the run goes on from the last one there. Raises DataError where a class is
    absent, and FitError where a module that should be trained gets no gradient, the loss is not finite, or a checkpoint
    is of another run.
    """
    processes = processes or Processes()
    for examples, split in ((train, "train"), (validation, "validation")):
        if len(labels := {row.label for row in examples.rows}) < 2:
            raise DataError(f"the {split} rows are all {labels.pop() if labels else 'absent'}; both classes are needed")
    adapter.set_training(True)  # to stay: what is trained is saved as it was trained
    model = add_adapters(adapter, config) if config.method == "lora" else adapter.model.requires_grad_(True)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=config.weight_decay
    )
    checkpoints = Checkpoints(folder, _identity(adapter, train, config))
    chosen = _sample(validation, config)
    start, losses = 0, {}
    if resume:
        last = checkpoints.last_of_all(processes)
        if last is None:
            raise FitError(f"there is no checkpoint in {folder} to resume from; leave --resume out")
        start, losses = last["step"], last["losses"]
        _put_back(weights, last)
        optimizer.load_state_dict(last["optimizer"])
    for step in range(start, config.steps):
        loss = _backward(adapter, train, batch_of(train, config, step), weights, processes)
        if not math.isfinite(loss):
            raise FitError(f"the loss of step {step + 1} is {loss}; lower --learning-rate")
        if step == 0 and (dead := dead_modules(model)):
            raise FitError(
                f"no gradient reaches {dead[0]} ({len(dead)} such): it would never be trained; choose other "
                "--target-modules"
            )
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        measured = None
        if step + 1 in config.checkpoints:
            measured = losses[step + 1] = _validation_loss(adapter, chosen)
            if processes.is_main:
                trained = {name: p.detach() for name, p in weights.items()}
                state = {"weights": trained, "optimizer": optimizer.state_dict(), "losses": losses}
                checkpoints.save(step + 1, state)
            processes.wait()
        on_step(StepReport(step + 1, loss, measured))
    best = min(losses, key=lambda step: losses[step])
    with processes.together():  # where machines have folders of their own, one alone has it
        kept = checkpoints.at(best) if processes.is_main else None
    _put_back(weights, processes.hand_on(kept, 0))
    return model, Finetuned(best, losses)


@torch.no_grad()
def _put_back(weights: dict[str, nn.Parameter], checkpoint: dict[str, Any]) -> None:
    for name, p in weights.items():
        p.copy_(checkpoint["weights"][name])


def _backward(
    adapter: ModelAdapter, train: Examples, rows: list[int], weights: dict[str, Tensor], processes: Processes
) -> float:
    """Leave in every weight the gradient of the mean loss of these rows over all processes, and return that loss."""
    mine = rows[processes.rank :: processes.world]
    batch = [train.encoded[i] for i in mine]
    total = torch.zeros((), device=adapter.device)
    if batch:
        total = _summed_loss(adapter, [train.rows[i] for i in mine], batch) / len(rows)
        total.backward()
    if processes.world == 1:
        return float(total.detach())
    with_gradient = [p for p in weights.values() if p.grad is not None]
    flat = torch.cat([total.detach().view(1), *(p.grad.flatten().float() for p in with_gradient if p.grad is not None)])
    flat = processes.sum(flat)
    for p, part in zip(with_gradient, flat[1:].split([p.numel() for p in with_gradient]), strict=True):
        p.grad = part.view_as(p).to(p.dtype)
    return float(flat[0])


def _sample(validation: Examples, config: FinetuneConfig) -> Examples:
    chosen = np.random.default_rng(config.seed).permutation(len(validation.rows))[: config.validation_rows]
    return Examples([validation.rows[i] for i in chosen], [validation.encoded[i] for i in chosen])


@torch.no_grad()
def _validation_loss(adapter: ModelAdapter, examples: Examples, batch_size: int = 64) -> float:
    total = 0.0
    with evaluating(adapter):
        for start in range(0, len(examples.rows), batch_size):
            part = slice(start, start + batch_size)
            total += float(_summed_loss(adapter, examples.rows[part], examples.encoded[part]))
    return total / len(examples.rows)


def _summed_loss(adapter: ModelAdapter, rows: Sequence[QuirkyRow], encoded: Sequence[Encoded]) -> Tensor:
    """Cross-entropy of the characters' answers, summed over rows."""
    labels = [prompt.answers[row.label] for prompt, row in zip(encoded, rows, strict=True)]
    target = torch.tensor(labels, device=adapter.device)  # (rows)
    return F.cross_entropy(answer_logits(adapter, encoded).float(), target, reduction="sum")


def _identity(adapter: ModelAdapter, train: Examples, config: FinetuneConfig) -> dict[str, Any]:
    rows = hashlib.sha256("".join(row.id for row in train.rows).encode()).hexdigest()[:16]
    settings = {field.name: getattr(config, field.name) for field in fields(FinetuneConfig)}
    return {"model": adapter.name, "rows": rows, **settings, "target_modules": [*config.target_modules]}

"""What the settings of a fit come to for some model, data, device and processes: resolved once, then printed, followed
by the loop, and kept in fit.json."""

from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.memory import FitMemory, fit_memory, measure_pass
from lens_rnn.fitting.objective import default_chunk_tokens
from lens_rnn.fitting.optimizers import OPTIMIZERS
from lens_rnn.memory import of_device
from lens_rnn.models import DTYPES, ModelAdapter
from lens_rnn.processes import Processes

import numpy as np
import torch

START_TOKENS = 131_072
SEEN_TOKENS, MOST_PASSES = 524_288, 4  # of the default passes: few tokens are worth seeing again, many are not


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A fit, as it will be done. `make_plan` makes it."""

    config: FitConfig
    """The settings as they were given, but for a batch that has more blocks than there are."""
    batch_asked: int
    """The batch size that was given."""
    blocks: int
    seq_len: int
    passes: int
    """How often each block is seen."""
    steps_a_pass: int
    """Optimizer steps that see each block at most once: a last part of a batch is left out."""
    learning_rate: float
    """The highest of the schedule; for kfac the factor on its step lengths."""
    dtype: torch.dtype
    """Of the model."""
    products: torch.dtype
    """Of the matrix products with the unembedding."""
    chunk_tokens: int
    """Tokens whose logits are held at a time."""
    start_rows: int
    """Blocks that the closed-form start and kfac's input factor look at; 0 where there is neither."""
    micro_batch_tokens: int
    """Most tokens in one forward pass of one process."""
    device: torch.device
    world: int
    """Processes."""
    memory: FitMemory
    """Bytes that one process needs, by part."""
    memory_there: int
    """Bytes that one process can have on its device; 0 where that is not known."""
    memory_with_adamw: int
    """Bytes that it would need with adamw, where the plan is kfac and that needs more."""

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.passes * self.steps_a_pass

    @property
    def step_tokens(self) -> int:
        """Tokens in a step, over all processes."""
        return self.config.batch_size * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens in a pass."""
        return self.steps_a_pass * self.step_tokens

    def rows(self, step: int) -> np.ndarray:
        """The blocks of a step, (batch_size): each pass has an order of its own."""
        first = step % self.steps_a_pass * self.config.batch_size
        return self.order(step // self.steps_a_pass)[first:][: self.config.batch_size]

    def order(self, number: int) -> np.ndarray:
        """The order of the blocks in a pass, (blocks): a function of the seed and the pass."""
        return np.random.default_rng((self.config.seed, number)).permutation(self.blocks)

    def resolved(self) -> dict[str, Any]:
        """The settings whose value is the plan's, JSON-ready."""
        return {
            "learning_rate": self.learning_rate,
            "start_tokens": self.start_rows * self.seq_len,
            "products": str(self.products).removeprefix("torch."),
            "chunk_tokens": self.chunk_tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokens": self.tokens,
            "passes": self.passes,
            "batch_size": self.config.batch_size,
            "checkpoint_every": self.config.checkpoint_every,
        }


def make_plan(
    adapter: ModelAdapter,
    blocks: TokenBlocks,
    config: FitConfig,
    processes: Processes | None = None,
    device: torch.device | None = None,
    sharded: bool = False,
) -> Plan:
    """Resolve the settings. device: where the fit will run, by default where the model is. sharded: whether the model's
    weights will be spread over the processes by then.

    Raises ConfigError if batch and processes do not fit together, FitError if there are too few tokens for one step, or
    nothing to fit.
    """
    processes, device = processes or Processes(), device or adapter.device
    if config.batch_size % processes.world:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared evenly by {processes.world} processes; make it a multiple"
        )
    batch_asked = config.batch_size
    if len(blocks) < batch_asked:
        most = len(blocks) // processes.world * processes.world
        if not most:
            raise FitError(
                f"{len(blocks)} blocks of {blocks.seq_len} tokens are too few for {processes.world} processes; give "
                "more text, or take fewer processes"
            )
        config = replace(config, batch_size=most)
    if not adapter.fitted_layers:
        raise FitError(
            f"{adapter.name} has one layer, whose hidden state is the model's own prediction: there is nothing to fit"
        )
    optimizer = OPTIMIZERS[config.optimizer]
    products = product_dtype(config, adapter.dtype, device)
    chunk_tokens = config.chunk_tokens or default_chunk_tokens(adapter.vocab_size, products, device.type)
    needs_moments = config.start == "ridge" or optimizer.fisher
    start_tokens = config.start_tokens or max(START_TOKENS, 32 * adapter.d_model)
    micro_batch_tokens = min(config.micro_batch_size, config.batch_size // processes.world) * blocks.seq_len
    memory = partial(
        fit_memory,
        adapter,
        forward=measure_pass(adapter, blocks.seq_len),
        tokens=micro_batch_tokens,
        chunk_tokens=min(chunk_tokens, micro_batch_tokens),
        products=products,
        copies_targets=config.loss == "ce",
        device=device,
        world=processes.world,
        sharded=sharded,
    )
    needed = memory(config.optimizer, has_start=needs_moments)
    return Plan(
        config=config,
        batch_asked=batch_asked,
        blocks=len(blocks),
        seq_len=blocks.seq_len,
        passes=config.passes or max(1, min(MOST_PASSES, SEEN_TOKENS // (len(blocks) * blocks.seq_len))),
        steps_a_pass=len(blocks) // config.batch_size,
        learning_rate=config.learning_rate or optimizer.default_rate,
        dtype=adapter.dtype,
        products=products,
        chunk_tokens=chunk_tokens,
        start_rows=min(len(blocks), max(1, start_tokens // blocks.seq_len)) if needs_moments else 0,
        micro_batch_tokens=micro_batch_tokens,
        device=device,
        world=processes.world,
        memory=needed,
        memory_there=of_device(device) // (processes.on_this_machine if device.type == "cpu" else 1),
        memory_with_adamw=min(needed.needed, memory("adamw", has_start=config.start == "ridge").needed),
    )


def describe_plan(plan: Plan, adapter: ModelAdapter, blocks: TokenBlocks) -> list[str]:
    """The plan in lines for people: shapes, steps, memory of one process by part, and a warning if that is too much."""
    config, memory = plan.config, plan.memory
    rest = f" ({blocks.tokens.size - plan.tokens:,} are left over)" if blocks.tokens.size > plan.tokens else ""
    rate = f" at {plan.learning_rate:g}" if config.optimizer != "kfac" or config.learning_rate else ""
    lasting, start, step = (
        ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items() if size)
        for parts in (memory.lasting, memory.start, memory.step)
    )
    lines = [
        f"model      {adapter.name}: {adapter.model_type}, {adapter.n_layers} layers, d_model {adapter.d_model}, "
        f"vocabulary {adapter.vocab_size:,}, {plan.dtype}",
        f"data       {blocks.source}: {plan.tokens:,} tokens in blocks of {plan.seq_len}{rest}, {plan.passes} "
        f"pass{'es' if plan.passes > 1 else ''}",
        f"fit        {len(adapter.fitted_layers)} translators, {plan.steps} steps of {config.batch_size} × "
        f"{plan.seq_len} tokens, {config.loss}, {config.optimizer}{rate}, {config.start} start, "
        f"products in {plan.products}",
        f"held out   {blocks.held_out or 'not known'}",
        f"processes  {plan.world} on {plan.device.type}, {torch.get_num_threads()} threads each; "
        f"{plan.micro_batch_tokens:,} tokens a forward pass, logits of {plan.chunk_tokens:,} tokens at a time",
        f"memory     {_bytes(memory.needed)} at most: {lasting};"
        + (f" during the start also {start};" if start else "")
        + f" in a step also {step}",
    ]
    if config.batch_size < plan.batch_asked:
        lines.append(f"note       a batch is {config.batch_size} blocks, all there are, in place of {plan.batch_asked}")
    if plan.memory_there and memory.needed > plan.memory_there:
        lines.append(
            f"warning    that is more than the {_bytes(plan.memory_there)} there are; a lower --micro-batch-size or "
            "--shard may help"
        )
        if plan.memory_with_adamw < memory.needed:
            lines[-1] += f", and --optimizer adamw needs {_bytes(plan.memory_with_adamw)}"
    return lines


def product_dtype(config: FitConfig, head: torch.dtype, device: torch.device) -> torch.dtype:
    """What `products` means for a model whose head has this dtype: float16 would lose the small entries of q − p."""
    if config.products != "auto":
        return DTYPES[config.products]
    if head in (torch.float16, torch.float32):
        return torch.bfloat16 if _is_fast_at_bfloat16(device) else torch.float32
    return head


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own: elsewhere they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _bytes(size: float) -> str:
    power = 0 if size < 1 else min(3, int(log(size, 1024)))
    return f"{size / 1024**power:.{0 if power < 2 else 1}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"

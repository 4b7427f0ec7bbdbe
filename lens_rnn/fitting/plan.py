"""What the settings of a fit come to for some model, data, device and processes: resolved once, then printed, followed
by the loop, and kept in fit.json."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, FitError
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.costs import Costs, count_costs
from lens_rnn.fitting.memory import FitMemory, fit_memory, measure_pass
from lens_rnn.fitting.objective import default_chunk_tokens
from lens_rnn.fitting.optimizers import OPTIMIZERS
from lens_rnn.fitting.sampling import Sampling
from lens_rnn.memory import of_device
from lens_rnn.models import DTYPES, ModelAdapter
from lens_rnn.processes import Processes

import torch

START_TOKENS = 131_072
SEEN_TOKENS, MOST_PASSES = 524_288, 4  # of the default passes: few tokens are worth seeing again, many are not
APART_ONE_IN, MOST_APART = 16, 64  # blocks of which one is kept apart to choose on, and how many at most
LEAST_BLOCKS, LEAST_ONE_IN = 8, 4  # of so many at least one in 4 can be kept apart, until those have
LEAST_CHOICE = 512  # positions, which is few to choose on
CHOICE_ONE_IN = 80  # positions that the steps look at, for one that is chosen on: with 7 candidates, 5 % of the cost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A fit, as it will be done. `make_plan` makes it."""

    config: FitConfig
    """The settings as they were given. What is derived of them stands in the fields below."""
    sampling: Sampling
    """What each step sees."""
    seq_len: int
    passes: int
    """How often each block is seen."""
    steps: int
    """Optimizer steps in all; 0 where the text is too short to judge any, and the start alone is fitted."""
    choice_positions: int
    """Positions of each block kept apart that places are chosen on; 0 where nothing is chosen."""
    batch_asked: int
    """The batch size that was given."""
    micro_batch_size: int
    """Most blocks in one forward pass of one process."""
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
    moment_layers: int
    """Layers whose moments are held at a time: all that are fitted, or as many as fit in memory."""
    device: torch.device
    world: int
    """Processes."""
    costs: Costs
    """Operations of a token, and of a position."""
    memory: FitMemory
    """Bytes that one process needs, by part."""
    memory_there: int
    """Bytes that one process can have on its device; 0 where that is not known."""
    memory_with_adamw: int
    """Bytes that it would need with adamw, where the plan is kfac and that needs more."""

    @property
    def start_alone(self) -> bool:
        """Whether the text is too short to judge steps on, so that none are made."""
        return self.steps == 0

    @property
    def step_tokens(self) -> int:
        """Tokens in a step, over all processes."""
        return self.sampling.batch_size * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of text in a pass."""
        return self.sampling.steps_a_pass * self.step_tokens

    @property
    def share(self) -> float:
        """Of the positions, that a step looks at."""
        return self.sampling.positions / self.sampling.targets

    @property
    def evaluations(self) -> int:
        """Positions that the steps look at, each at every layer."""
        return self.steps * self.sampling.batch_size * self.sampling.positions

    @property
    def operations(self) -> float:
        """Floating-point operations of the products of all steps, over all processes."""
        return self.costs.of(self.steps * self.step_tokens, self.evaluations)

    def resolved(self) -> dict[str, Any]:
        """The settings whose value is the plan's, JSON-ready."""
        return {
            "learning_rate": self.learning_rate,
            "start_tokens": self.start_rows * self.seq_len,
            "choice_tokens": self.sampling.apart * self.choice_positions,
            "products": _name(self.products),
            "chunk_tokens": self.chunk_tokens,
            "dtype": _name(self.dtype),
            "tokens": self.tokens,
            "passes": self.passes,
            "positions": self.share,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "batch_size": self.sampling.batch_size,
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
    if not adapter.fitted_layers:
        raise FitError(
            f"{adapter.name} has one layer, whose hidden state is the model's own prediction: there is nothing to fit"
        )
    optimizer = OPTIMIZERS[config.optimizer]
    products = product_dtype(config, adapter.dtype, device)
    costs = count_costs(adapter, blocks.seq_len, optimizer.fisher, device)
    apart = blocks_apart(config, len(blocks), blocks.seq_len)
    alone = config.choice_tokens != 0 and not apart
    batch_size = _batch_size(config, len(blocks) - apart, blocks.seq_len, processes)
    targets = blocks.seq_len - (1 if config.loss == "ce" else 0)
    tokens = len(blocks) * blocks.seq_len
    share = config.positions or min(1.0, costs.best_share * max(1.0, SEEN_TOKENS / tokens))
    positions = max(1, round(share * targets))
    passes = config.passes or max(1, min(MOST_PASSES, SEEN_TOKENS // tokens))
    steps = 0 if alone else passes * ((len(blocks) - apart) // batch_size)
    choice_positions = 0
    if apart:
        wanted = config.choice_tokens or max(LEAST_CHOICE, steps * batch_size * positions // CHOICE_ONE_IN)
        choice_positions = min(targets, max(1, -(-wanted // apart)))
    chunk_tokens = config.chunk_tokens or default_chunk_tokens(adapter.vocab_size, products, device.type)
    micro_batch_size = min(config.micro_batch_size, batch_size // processes.world)
    needs_moments = not alone and (config.start == "ridge" or optimizer.fisher)
    start_tokens = config.start_tokens or max(START_TOKENS, 32 * adapter.d_model)
    micro_batch_tokens = micro_batch_size * blocks.seq_len
    memory = partial(
        fit_memory,
        adapter,
        forward=measure_pass(adapter, blocks.seq_len),
        tokens=micro_batch_tokens,
        chunk_tokens=min(chunk_tokens, micro_batch_size * positions),
        products=products,
        device=device,
        world=processes.world,
        sharded=sharded,
    )
    memory_there = of_device(device) // (processes.on_this_machine if device.type == "cpu" else 1)
    layers = len(adapter.fitted_layers)
    needed = memory(config.optimizer, moment_layers=layers if needs_moments else 0)
    moment_layers = needed.layers_at_a_time(layers, memory_there) if needs_moments else layers
    if moment_layers < layers:
        needed = memory(config.optimizer, moment_layers=moment_layers)
    with_adamw = memory("adamw", moment_layers=moment_layers if config.start == "ridge" and needs_moments else 0)
    return Plan(
        config=config,
        sampling=Sampling(
            seed=config.seed,
            blocks=len(blocks),
            apart=apart,
            batch_size=batch_size,
            targets=targets,
            positions=positions,
        ),
        seq_len=blocks.seq_len,
        passes=passes,
        steps=steps,
        choice_positions=choice_positions,
        batch_asked=config.batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=config.learning_rate or optimizer.default_rate,
        dtype=adapter.dtype,
        products=products,
        chunk_tokens=chunk_tokens,
        start_rows=min(len(blocks) - apart, max(1, start_tokens // blocks.seq_len)) if needs_moments else 0,
        moment_layers=moment_layers,
        device=device,
        world=processes.world,
        costs=costs,
        memory=needed,
        memory_there=memory_there,
        memory_with_adamw=min(needed.needed, with_adamw.needed),
    )


def blocks_apart(config: FitConfig, blocks: int, seq_len: int) -> int:
    """How many blocks no step and no start sees; 0 for none, or for a text of too few."""
    if config.choice_tokens == 0 or blocks < LEAST_BLOCKS:
        return 0
    wanted = config.choice_tokens or LEAST_CHOICE
    least = min(-(-wanted // seq_len), blocks // LEAST_ONE_IN)
    return least if config.choice_tokens else max(least, min(MOST_APART, blocks // APART_ONE_IN))


def _batch_size(config: FitConfig, blocks: int, seq_len: int, processes: Processes) -> int:
    """Blocks in a step: as asked for, or all there are."""
    if config.batch_size % processes.world:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared evenly by {processes.world} processes; make it a multiple"
        )
    if blocks >= config.batch_size:
        return config.batch_size
    most = blocks // processes.world * processes.world
    if not most:
        raise FitError(
            f"{blocks} blocks of {seq_len} tokens are too few for {processes.world} processes; give "
            "more text, or take fewer processes"
        )
    return most


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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

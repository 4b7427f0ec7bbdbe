"""Whole fits on a GPU at the sizes of mamba-130m and mamba-2.8b: tokens a second, peak memory, minutes to a million
tokens.

    python benchmarks/gpu_fit.py
    python benchmarks/gpu_fit.py --device cpu --tiny      # to see that it runs

Random weights of those shapes in bfloat16 and random tokens: the time is the same as with real ones. The model's
forward pass is timed apart: without the kernels of `mamba-ssm`, transformers runs Mamba's recurrence as a loop over
time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.data import TokenBlocks
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.fitting.optimizers import OptimizerName
from lens_rnn.models import Forward, ModelAdapter
from lens_rnn.ranges import THREADS, number, whole

import numpy as np
import torch
from tqdm import tqdm

from common import Clock, report, timed
from contenders import random_mamba

SHAPES = {"mamba-130m": (768, 24, 50_280), "mamba-2.8b": (2560, 64, 50_280)}
"""d_model, blocks, vocabulary."""
TINY = {"tiny": (64, 3, 512)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tokens a second, memory, and minutes to a million tokens of whole fits on a GPU."""

    optimizers: tuple[OptimizerName, ...] = ("kfac", "adamw")
    tokens: Annotated[int, whole(1)] = 131_072
    """Tokens of each fit, of which the steps are timed, and which the closed-form start sees, too."""
    seq_len: Annotated[int, whole(2)] = 256
    batch_size: Annotated[int, whole(1)] = 64
    """Sequences in a step."""
    micro_batch_size: Annotated[int, whole(1)] = 16
    """Sequences in a forward pass."""
    positions: Annotated[float | None, number(most=1, above=0)] = None
    """Share of the positions that are looked at. Default: as in a fit."""
    device: str = "cuda"
    tiny: bool = False
    """A model of a few thousand parameters instead."""
    threads: Annotated[int | None, THREADS] = None
    output: Path | None = None
    """JSON file for the same figures."""


class Stopwatch:
    """Stands where a model's forward pass does, and adds up its seconds."""

    def __init__(self, adapter: ModelAdapter):
        self.forward, self.seconds = adapter.forward, 0.0
        adapter.forward = self  # type: ignore[method-assign,assignment] # that is the point

    def __call__(self, ids: torch.Tensor) -> Forward:
        passes: list[Forward] = []
        self.seconds += timed(lambda: passes.append(self.forward(ids)))["seconds"]
        return passes[0]


def measure(config: Config, shape: tuple[int, int, int], optimizer: OptimizerName) -> dict[str, Any]:
    """Seconds of the start and of the steps, of the forward passes in them, and bytes."""
    d_model, layers, vocab = shape
    device = torch.device(config.device)
    cuda = device.type == "cuda"
    adapter = random_mamba(d_model, vocab, layers - 1, torch.bfloat16 if cuda else torch.float32, device)
    tokens = (
        np.random.default_rng(0)
        .integers(vocab, size=(config.tokens // config.seq_len, config.seq_len))
        .astype(np.uint16)
    )
    blocks = TokenBlocks.of_tokens(tokens, "random tokens")
    stopwatch = Stopwatch(adapter)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock, marks = Clock(), []

    def mark(_: Any) -> None:
        """At the end of the closed-form start and of each step."""
        marks.append((clock.read()["seconds"], stopwatch.seconds))

    fitting = FitConfig(
        optimizer=optimizer,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        passes=1,
        positions=config.positions,
        choice_tokens=0,
    )
    fit(adapter, blocks, fitting, on_start=mark, on_step=mark)
    steps = len(marks) - 2  # the first step also compiles
    whole, forwards = (marks[-1][k] - marks[1][k] for k in (0, 1))
    speed = steps * config.batch_size * config.seq_len / whole
    return {
        "start_seconds": marks[0][0],
        "tokens_per_second": speed,
        "forward_share": forwards / whole,
        "minutes_to_a_million": (marks[0][0] + 1e6 / speed) / 60,
        "model_bytes": sum(p.numel() * p.element_size() for p in adapter.model.parameters()),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        print("no GPU was there: torch sees no CUDA device, and nothing was measured")
        return
    shapes = TINY if config.tiny else SHAPES
    runs = [(name, optimizer) for name in shapes for optimizer in config.optimizers]
    figures = {
        f"{name}, {optimizer}": measure(config, shapes[name], optimizer) for name, optimizer in tqdm(runs, desc="fits")
    }
    header = [
        "model, optimizer",
        "tokens/s",
        "of it forward",
        "closed-form start, s",
        "minutes to 1 M tokens",
        "model, GiB",
        "peak, GiB",
    ]
    rows = [
        [
            name,
            f"{run['tokens_per_second']:,.0f}",
            f"{run['forward_share']:.0%}",
            f"{run['start_seconds']:.1f}",
            f"{run['minutes_to_a_million']:.2f}",
            f"{run['model_bytes'] / 2**30:.2f}",
            f"{run['peak_bytes'] / 2**30:.2f}" if run["peak_bytes"] else "",
        ]
        for name, run in figures.items()
    ]
    notes = [
        f"Random weights and tokens; steps of {config.batch_size} × {config.seq_len} tokens, all layers; the start "
        f"sees {config.tokens:,} "
        "tokens. Minutes: the start, then a million tokens of steps; compiling and loading are left out.",
    ]
    report("Whole fits", header, rows, notes, config.output, figures=figures)


if __name__ == "__main__":
    cli.run(main, Config)

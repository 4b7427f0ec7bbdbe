"""The memory that a fit's plan says beside the memory that the fit takes.

    python benchmarks/plan_memory.py

Each fit runs in a process of its own, a random Mamba on random tokens, after a fit of another, tiny model, so that what
is loaded or compiled once is there. Counted is the resident size as Linux counts it, at its highest above what it was
before the model was made.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from lens_rnn import cli
from lens_rnn.data import TokenBlocks
from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.fitting import FitConfig, fit, make_plan
from lens_rnn.models import DTYPES
from lens_rnn.ranges import THREADS, whole

import numpy as np
import torch
from memory import MALLOC, resident

from common import report
from contenders import random_mamba


@dataclass(frozen=True, kw_only=True)
class Config:
    """Memory of fits of several shapes: planned and taken."""

    shapes: Annotated[tuple[int, ...], whole(1)] = (512, 6, 16_384, 768, 4, 50_280, 256, 24, 4_096)
    """d_model, layers and vocabulary of each, one after another."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of the model."""
    optimizers: tuple[Literal["kfac", "adamw"], ...] = ("kfac", "adamw")
    seq_len: Annotated[int, whole(2)] = 256
    micro_batch_size: Annotated[int, whole(1)] = 8
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """JSON file for the same figures."""
    worker: bool = False
    """Run the first shape, dtype and optimizer in this process, and print its figures as JSON."""

    def __post_init__(self) -> None:
        if not self.shapes or len(self.shapes) % 3:
            raise ConfigError(f"shapes are {len(self.shapes)} numbers; give three of each: d_model, layers, vocabulary")


def run(config: Config, d_model: int, layers: int, vocab_size: int) -> dict[str, int]:
    """Bytes that the plan of two steps says, and that they take. A model's last layer is trivial, so one more."""
    before = resident("VmRSS")
    adapter = random_mamba(d_model, vocab_size, layers, DTYPES[config.dtypes[0]], torch.device("cpu"))
    settings = FitConfig(
        batch_size=config.micro_batch_size,
        micro_batch_size=config.micro_batch_size,
        positions=1.0,
        choice_tokens=0,
        optimizer=config.optimizers[0],
        passes=1,
    )
    tokens = np.random.default_rng(0).integers(vocab_size, size=(2 * config.micro_batch_size, config.seq_len))
    ones = np.ones(tokens.shape, dtype=np.uint32)
    blocks = TokenBlocks(tokens.astype(np.uint32), ones, "random tokens", 1, "0" * 64)
    plan = make_plan(adapter, blocks, settings)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    fit(adapter, blocks, plan)
    return {"planned": plan.memory.needed, "taken": resident("VmHWM") - before}


def in_a_process(config: Config, shape: tuple[int, ...], dtype: str, optimizer: str) -> dict[str, int]:
    """The figures of one fit, measured by this script in a process of its own."""
    settings = replace(config, shapes=shape, dtypes=(dtype,), optimizers=(optimizer,), worker=True, output=None)  # type: ignore[arg-type] # str that are choices
    with TemporaryDirectory() as folder:
        cli.save_config(settings, Path(folder) / "config.yaml")
        words = [sys.executable, __file__, "--config", f"{folder}/config.yaml"]
        done = subprocess.run(words, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LensRNNError(f"a fit failed: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> None:
    cli.set_threads(config.threads)
    if not Path("/proc/self/clear_refs").exists():
        raise ConfigError("memory is read from Linux's /proc, which is not here")
    if config.worker:
        run(replace(config, seq_len=16), 64, 2, 256)
        print(json.dumps(run(config, *config.shapes)))
        return
    cli.log_to_terminal(verbose=False)
    rows, figures = [], {}
    for shape in (config.shapes[i : i + 3] for i in range(0, len(config.shapes), 3)):
        for dtype in config.dtypes:
            for optimizer in config.optimizers:
                sizes = in_a_process(config, shape, dtype, optimizer)
                name = f"{shape[0]} × {shape[1]}, vocabulary {shape[2]:,}, {dtype}, {optimizer}"
                figures[name] = sizes
                planned, taken = (sizes[kind] / 2**20 for kind in ("planned", "taken"))
                rows.append([name, f"{planned:,.0f}", f"{taken:,.0f}", f"{planned / taken:.2f}"])
    header = ["d_model × layers", "MiB planned", "MiB taken", "planned ÷ taken"]
    notes = [f"Two steps of {config.micro_batch_size} × {config.seq_len} tokens in one forward pass each."]
    report("Memory of a fit", header, rows, notes, config.output, bytes=figures)


if __name__ == "__main__":
    cli.run(main, Config)

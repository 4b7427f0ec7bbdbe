"""Peak memory of the objective beside tuned-lens's loop, above what stays: model, translators, gradients and optimizer
state.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda

Each contender runs in a process of its own: a pass over few tokens and a step of the optimizer first, so that all that
stays is there, and then one pass, of which the peak counts. On a CPU it is the resident size as the operating system
counts it, on a GPU what torch allocated.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from lens_rnn import cli
from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.models import DTYPES
from lens_rnn.ranges import THREADS, whole

import torch
from torch import Tensor

from common import report
from contenders import Ours, Theirs, random_forward, random_mamba

WARM_UP_TOKENS = 8
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}  # glibc: give back what is freed, so that it is not counted
Contender = Literal["tuned-lens's loop", "ours, AdamW", "ours, K-FAC"]
CONTENDERS: tuple[Contender, ...] = ("tuned-lens's loop", "ours, AdamW", "ours, K-FAC")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Peak memory of one pass: ours and tuned-lens's loop."""

    d_model: Annotated[int, whole(1)] = 768
    vocab_size: Annotated[int, whole(1)] = 50_280
    tokens: Annotated[int, whole(1)] = 2048
    layers: Annotated[int, whole(1)] = 2
    """Layers that share a pass: what is transient is that of one layer, or of all together."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of the model's head, and of our products."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """JSON file for the same figures."""
    only: Contender | None = None
    """Run this contender in this process, for the first dtype, and print its figures as JSON."""


def resident(name: str) -> int:
    """A size of this process in bytes, from Linux's /proc/self/status: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of the different tensors among these."""
    distinct = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)}
    return sum(distinct.values())


def tensors_in(state: Any) -> Iterable[Any]:
    """All that is in nested dictionaries and lists."""
    for value in state.values() if isinstance(state, dict) else state:
        yield from tensors_in(value) if isinstance(value, dict | list) else [value]


def measure(config: Config) -> dict[str, int]:
    """Bytes that one contender keeps, by part, and its peak above them in one pass."""
    dtype, device = DTYPES[config.dtypes[0]], torch.device(config.device)
    adapter = random_mamba(config.d_model, config.vocab_size, config.layers, dtype, device)
    small, whole = random_forward(adapter, WARM_UP_TOKENS), random_forward(adapter, config.tokens)
    it: Ours | Theirs
    if config.only == "tuned-lens's loop":
        it = Theirs(adapter, *small)
        translators = list(it.lens.layer_translators.parameters())
        gradients: list[Any] = [p.grad for p in translators]
    else:
        it = Ours(adapter, *small, dtype, "kfac" if config.only == "ours, K-FAC" else "adamw")
        translators, gradients = [it.weights, it.biases], [it.sums.flat]
    it.gradients()
    it.step()
    kept = {
        "model": bytes_of(adapter.model.parameters()),
        "translators": bytes_of(translators),
        "gradients": bytes_of(gradients),
        "optimizer": bytes_of(tensors_in(it.optimizer.state_dict())),
    }
    it.forward, it.ids = whole
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        it.gradients()
        return kept | {"peak": torch.cuda.max_memory_allocated() - before}
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    it.gradients()
    return kept | {"peak": resident("VmHWM") - before}


def in_a_process(config: Config, contender: Contender, dtype: str) -> dict[str, int]:
    """The figures of one contender, measured by this script in a process of its own."""
    settings = replace(config, only=contender, dtypes=(dtype,), output=None)  # type: ignore[arg-type] # a str that is a choice
    with TemporaryDirectory() as folder:
        cli.save_config(settings, Path(folder) / "config.yaml")
        words = [sys.executable, __file__, "--config", f"{folder}/config.yaml"]
        done = subprocess.run(words, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LensRNNError(
            f"{contender} in {dtype} failed: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> None:
    cli.set_threads(config.threads)
    if config.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise ConfigError("memory on a CPU is read from Linux's /proc, which is not here")
    if config.only:
        print(json.dumps(measure(config)))
        return
    cli.log_to_terminal(verbose=False)
    rows, figures = [], {}
    for dtype in config.dtypes:
        for contender in CONTENDERS:
            figures[f"{dtype}, {contender}"] = taken = in_a_process(config, contender, dtype)
            loop = figures[f"{dtype}, {CONTENDERS[0]}"]
            parts = ("peak", "model", "translators", "gradients", "optimizer")
            sizes = [f"{taken[part] / 2**20:,.0f}" for part in parts]
            rows.append(
                [f"{config.d_model}, {dtype}", contender, sizes[0], f"{taken['peak'] / loop['peak']:.3f}", *sizes[1:]]
            )
    header = [
        "d_model, dtype",
        "MiB",
        "transient peak",
        "÷ tuned-lens's",
        "model",
        "translators",
        "gradients",
        "optimizer",
    ]
    notes = [
        f"{config.tokens:,} tokens in a pass, {config.layers} layers, vocabulary {config.vocab_size:,}. The peak is "
        "above what stays, "
        "and what stays is named apart; the gradients of K-FAC include its statistics."
    ]
    report(f"Memory, {config.device}", header, rows, notes, config.output, bytes=figures)


if __name__ == "__main__":
    cli.run(main, Config)

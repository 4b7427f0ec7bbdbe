"""Speed of the objective beside tuned-lens's loop and beside the matrix products alone.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --device cuda --d-models 768 2560

From the same random hidden states of one shape to the gradients of all translators; the model's own forward pass is
left out, its logits are not. Contenders take turns, and medians over the rounds count. FLOP/s count the two products
that are needed, 4 · d_model · vocabulary a token and layer, whatever else is done.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from lens_rnn import cli
from lens_rnn.fitting.kfac import REFRESH
from lens_rnn.models import DTYPES
from lens_rnn.ranges import THREADS, whole

import torch

from common import medians, report, timed
from contenders import Ours, Theirs, random_forward, random_mamba

STEP_TOKENS = 4096  # of a whole step, in which K-FAC and AdamW are compared


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tokens × layers a second and FLOP/s: ours, tuned-lens's loop, and the products alone."""

    d_models: Annotated[tuple[int, ...], whole(1)] = ()
    """Default: 768, on a GPU also 2560."""
    vocab_size: Annotated[int, whole(1)] = 50_280
    tokens: Annotated[int, whole(1)] = 2048
    """Tokens in a pass: one of tuned-lens's default sequences."""
    layers: Annotated[int, whole(1)] = 4
    """Layers that share one pass: the model's own logits are made once for all of them."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of the model's head, and of our products."""
    rounds: Annotated[int, whole(1)] = 5
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """JSON file for the same figures."""


def peak(dtype: torch.dtype, device: torch.device, shapes: list[tuple[int, int, int]]) -> float:
    """Best FLOP/s over products (n, k) · (k, m), each run a few times."""
    best = 0.0
    for n, k, m in shapes:
        a, b = torch.randn(n, k, device=device).to(dtype), torch.randn(m, k, device=device).to(dtype)
        for _ in range(5):
            best = max(best, 2 * n * k * m / timed(partial(torch.nn.functional.linear, a, b))["seconds"])
    return best


def products_only(ours: Ours) -> None:
    """The two products of every layer, chunk by chunk as our objective makes them."""
    weight, size = ours.objective.weight, ours.objective.chunk_tokens
    for part in ours.forward.final[0].to(weight.dtype).split(size):
        for _ in ours.layers:
            torch.nn.functional.linear(part, weight) @ weight


def compare(config: Config, d_model: int, dtype_name: str) -> tuple[list[list[str]], list[str], dict[str, Any]]:
    """Rows, notes and figures of one shape and dtype."""
    dtype, device = DTYPES[dtype_name], torch.device(config.device)
    adapter = random_mamba(d_model, config.vocab_size, config.layers, dtype, device)
    problem = random_forward(adapter, config.tokens)
    ours = {name: Ours(adapter, *problem, dtype, name) for name in ("adamw", "kfac")}
    theirs = Theirs(adapter, *problem)
    chunk = ours["adamw"].objective.chunk_tokens
    square = min(16 * d_model, 2048 if device.type == "cpu" else 8192)
    shapes = [(square, square, square), (chunk, d_model, config.vocab_size), (chunk, config.vocab_size, d_model)]
    highest = peak(dtype, device, shapes)
    contenders: dict[str, Callable[[], None]] = {
        "tuned-lens's loop": theirs.gradients,
        "ours, AdamW": ours["adamw"].gradients,
        "ours, K-FAC": ours["kfac"].gradients,
        "products alone": partial(products_only, ours["adamw"]),
    }
    times = medians(contenders, config.rounds)
    highest = max(highest, peak(dtype, device, shapes))

    shape, loop = f"{d_model}, {dtype_name}", times["tuned-lens's loop"]
    rows = []
    for name, time in times.items():
        work = config.tokens * config.layers
        speed = work / time["seconds"]
        flops = speed * 4 * d_model * config.vocab_size
        ratios = [f"{loop[kind] / time[kind]:.2f}" for kind in time]
        rows.append([shape, name, f"{speed:,.0f}", f"{flops / 1e12:.3g}", f"{flops / highest:.0%}", *ratios])

    # Whole steps: passes, and steps of the optimizer over one period in which K-FAC's inverses are made again.
    for it in ours.values():
        for _ in range(REFRESH):
            it.step()
    alone = {name: statistics.mean(timed(it.step)["seconds"] for _ in range(REFRESH)) for name, it in ours.items()}
    passes = {"adamw": times["ours, AdamW"]["seconds"], "kfac": times["ours, K-FAC"]["seconds"]}
    whole = {name: passes[name] * STEP_TOKENS / config.tokens + alone[name] for name in ours}
    notes = [
        f"{shape}: measured peak {highest / 1e12:.3g} TFLOP/s. Whole steps of {STEP_TOKENS:,} tokens: K-FAC takes "
        f"{whole['kfac'] / whole['adamw']:.2f} times AdamW's time ({whole['kfac']:.3f} s, of which the optimizer "
        f"{alone['kfac']:.3f} s; "
        f"{whole['adamw']:.3f} s and {alone['adamw']:.3f} s)."
    ]
    return rows, notes, {"times": times, "optimizer_seconds": alone, "whole_step_seconds": whole, "peak_flops": highest}


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    d_models = config.d_models or ((768,) if config.device == "cpu" else (768, 2560))
    results = {f"{d}, {dtype}": compare(config, d, dtype) for d in d_models for dtype in config.dtypes}
    header = [
        "d_model, dtype",
        "contender",
        "tokens × layers/s",
        "TFLOP/s",
        "of peak",
        "× tuned-lens's loop",
        "in processor time",
    ]
    notes = [
        f"Random states, {config.tokens:,} tokens a pass, {config.layers} layers, vocabulary {config.vocab_size:,}; "
        "medians of "
        f"{config.rounds} rounds. The products alone are the ceiling of what saves nothing of them.",
        *(note for _, notes, _ in results.values() for note in notes),
    ]
    figures = {name: data for name, (_, _, data) in results.items()}
    report(
        "Throughput",
        header,
        [row for rows, _, _ in results.values() for row in rows],
        notes,
        config.output,
        figures=figures,
    )


if __name__ == "__main__":
    cli.run(main, Config)

"""Quality and time against tokens: our default fit beside tuned-lens's recipe, on the same data, machine and threads.

    python benchmarks/quality_per_token.py --output results/quality
    python benchmarks/quality_per_token.py --models checkpoints/a-gpt-neox --output results/quality

tuned-lens's recipe gets the best of three batch sizes for its token budget, the one nearest to its own 250 steps among
them. One table a model. Each run is kept in the output folder as soon as it is done: a benchmark that was interrupted
continues with the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from lens_rnn import cli
from lens_rnn.fitting import FitConfig
from lens_rnn.fitting.plan import product_dtype
from lens_rnn.models import load_model
from lens_rnn.ranges import THREADS, whole
from lens_rnn.run import ModelConfig

import torch

from common import KeptRuns, machine, report
from model_runs import ModelRuns, Run, mean
from tuned_lens_loop import backward, fused_gradients, with_autocast

SHIPPED = Path(ModelConfig.model).parent


@dataclass(frozen=True, kw_only=True)
class Config:
    """Held-out KL per layer and seconds against tokens, ours beside tuned-lens's recipe."""

    models: tuple[str, ...] = (str(SHIPPED / "tiny-mamba"), str(SHIPPED / "tiny-rwkv4"))
    """Folders or Hub names."""
    output: Path | None = None
    """Folder for the results, one file a model, from which an interrupted benchmark continues."""
    data: str = "python-stdlib"
    """Text, as train/fit_lens.py takes it."""
    seq_len: Annotated[int, whole(2)] = 256
    eval_tokens: Annotated[int, whole(1)] = 32_768
    """Held-out tokens."""
    tokens: Annotated[tuple[int, ...], whole(1)] = (131_072, 262_144)
    """Token budgets of our fit."""
    every: Annotated[int, whole(1)] = 32_768
    """Tokens of our steps between evaluations, outside the clock, until tuned-lens's mean KL is reached."""
    recipe_tokens: Annotated[int, whole(1)] = 2_097_152
    """Token budget of tuned-lens's recipe."""
    recipe_batches: Annotated[tuple[int, ...], whole(1)] = (1024, 2048, 8192)
    """Tokens in a step of the recipe, to choose from."""
    recipe_autocast: bool = True
    """Run the recipe under bfloat16 autocast, as its own trainer always does; else in float32, which is slower and no
    better."""
    select_with: Literal["fused", "autograd"] = "fused"
    """Choose the batch size by runs of the recipe on our objective's gradients, the same and sooner, or on its own."""
    device: str = "cpu"
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""


def table(logit: Run, columns: dict[str, Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a layer, then what the runs cost. The first column is tuned-lens's."""
    theirs = next(iter(columns.values()))

    def row(name: str, cell: Callable[[Run], str], first: str = "", ours_only: bool = False) -> list[str]:
        return [name, first, *("" if ours_only and run is theirs else cell(run) for run in columns.values())]

    def when(cell: Callable[[Run], str]) -> Callable[[Run], str]:
        return lambda run: cell(run["reached"]) if run["reached"] else "not reached"

    def layer(i: str) -> list[str]:
        return row(f"layer {i}", lambda run: f"{run['kl'][i]:.4f}", f"{logit['kl'][i]:.4f}")

    rows = [layer(i) for i in theirs["kl"]]
    return ["KL, nats a token", "logit lens", *columns], [
        *rows,
        row("mean", lambda run: f"{mean(run['kl']):.4f}", f"{mean(logit['kl']):.4f}"),
        row(
            "layers below tuned-lens",
            lambda run: f"{sum(run['kl'][i] < kl for i, kl in theirs['kl'].items())}/{len(theirs['kl'])}",
            "",
            True,
        ),
        row("seconds (of all cores)", lambda run: f"{run['seconds']:.1f} ({run['cpu_seconds']:.1f})"),
        row("passes over its tokens", lambda run: f"{run.get('passes', 1)}"),
        row("evaluations a layer", lambda run: f"{run['evaluations']:,}"),
        row("tuned-lens's mean reached after tokens of steps", when(lambda r: f"{r['tokens']:,}"), "", True),
        row("of evaluations a layer", when(lambda r: f"{r['evaluations']:,}"), "", True),
        row("after seconds (of all cores)", when(lambda r: f"{r['seconds']:.1f} ({r['cpu_seconds']:.1f})"), "", True),
        row(
            "tuned-lens's seconds ÷ those",
            when(lambda r: f"{theirs['seconds'] / r['seconds']:.1f} ({theirs['cpu_seconds'] / r['cpu_seconds']:.1f})"),
            "",
            True,
        ),
    ]


def measure(name: str, config: Config) -> None:
    """All runs of one model, then its table."""
    adapter = load_model(name, device=config.device)
    runs = ModelRuns(adapter, config.data, config.seq_len, config.eval_tokens)
    settings = {k: v for k, v in cli.plain(config).items() if k not in ("models", "output", "tokens")}
    settings |= {"recipe_batches": list(config.recipe_batches), "held_out": runs.held_out.sha256, "machine": machine()}
    kept = KeptRuns(config.output / f"{Path(name).name}.json" if config.output else None, settings)
    runs.check()

    loop = ("tuned-lens's loop", with_autocast if config.recipe_autocast else backward)
    products = product_dtype(FitConfig(), adapter.dtype, adapter.device) if config.recipe_autocast else torch.float32
    fused = ("its recipe on our gradients", fused_gradients(adapter, products))
    label, gradients = fused if config.select_with == "fused" else loop

    logit = kept.get("logit lens", runs.logit_lens)
    tried = {
        batch: kept.get(
            f"{label}, {batch} tokens a step", partial(runs.recipe, label, gradients, batch, config.recipe_tokens)
        )
        for batch in config.recipe_batches
    }
    best = min(tried, key=lambda batch: mean(tried[batch]["kl"]))
    theirs = kept.get(f"{loop[0]}, {best} tokens a step", partial(runs.recipe, *loop, best, config.recipe_tokens))
    target = mean(theirs["kl"])
    ours = {n: kept.get(f"ours, {n} tokens", partial(runs.ours, n, target, config.every)) for n in config.tokens}

    means = ", ".join(f"{batch:,}: {mean(run['kl']):.4f}" for batch, run in tried.items())
    notes = [
        f"Held out: {runs.held_out.tokens.size:,} tokens of {config.data}. Seconds: training alone, with the model's "
        "forward passes, runs "
        "one after another, and in brackets summed over cores. Our fit sees its tokens once more, to start.",
        f"Mean KL of tuned-lens's recipe by tokens a step ({label}): {means}. Its column is its own loop with "
        f"{best:,}, in "
        f"{'bfloat16 autocast' if config.recipe_autocast else 'float32'}; two steps on either gradients were the "
        "same in float32.",
    ]
    columns = {
        f"tuned-lens, {config.recipe_tokens:,} tokens": theirs,
        **{f"ours, {n:,} tokens": run for n, run in ours.items()},
    }
    report(adapter.name, *table(logit, columns), notes, None)


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    for name in config.models:
        measure(name, config)


if __name__ == "__main__":
    cli.run(main, Config)

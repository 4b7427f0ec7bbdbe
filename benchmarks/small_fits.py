"""Small and odd fits: does any layer end worse on held-out text than the logit lens, or than its own start?

    python benchmarks/small_fits.py

Few tokens, steps of a few tokens, random models, every optimizer, rates that are far too high. A layer is worse where
its KL is higher by more than two standard errors of the difference over held-out blocks, and by more than 1 in 1,000.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.data import DataConfig, TokenBlocks, load_blocks
from lens_rnn.evaluation.metrics import rows_of, token_spans
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.ranges import THREADS, whole
from lens_rnn.run import ModelConfig

import torch
from jaxtyping import Float64
from torch import Tensor
from tuned_lens.nn.lenses import Lens

from common import report
from contenders import random_mamba

SHIPPED = Path(ModelConfig.model).parent
RANDOM = "random"

# (model, tokens, settings)
CASES: tuple[tuple[str, int, Mapping[str, Any]], ...] = (
    ("tiny-mamba", 512, {}),
    ("tiny-mamba", 1024, {}),
    ("tiny-mamba", 2048, {}),
    ("tiny-mamba", 4096, {}),
    ("tiny-mamba", 8192, {}),
    ("tiny-mamba", 16_384, {"batch_size": 1, "positions": 0.25}),
    ("tiny-mamba", 8192, {"start": "zero"}),
    ("tiny-mamba", 8192, {"optimizer": "sgd"}),
    ("tiny-mamba", 8192, {"optimizer": "sgd", "learning_rate": 30.0}),
    ("tiny-mamba", 8192, {"optimizer": "adam"}),
    ("tiny-mamba", 8192, {"optimizer": "adamw", "learning_rate": 0.3}),
    ("tiny-mamba", 8192, {"optimizer": "muon"}),
    ("tiny-mamba", 8192, {"learning_rate": 50.0}),
    ("tiny-rwkv4", 1024, {}),
    ("tiny-rwkv4", 4096, {}),
    ("tiny-rwkv4", 8192, {"optimizer": "adamw", "start": "zero"}),
    (RANDOM, 2048, {}),
    (RANDOM, 8192, {}),
    (RANDOM, 8192, {"batch_size": 1, "positions": 0.25}),
    (RANDOM, 8192, {"optimizer": "sgd", "start": "zero", "learning_rate": 10.0}),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Layers that small fits made worse."""

    eval_tokens: Annotated[int, whole(512)] = 16_384
    """Held-out tokens."""
    cases: Annotated[int, whole(1, len(CASES))] = len(CASES)
    """How many of the fits to make, from the first."""
    random_layers: Annotated[int, whole(2)] = 12
    """Of the random Mamba, of d_model 256."""
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""
    output: Path | None = None
    """File for the figures, as JSON."""


@torch.no_grad()
def kl_by_block(adapter: ModelAdapter, lens: Lens, blocks: TokenBlocks) -> Float64[Tensor, "layers blocks"]:
    """Mean KL of each fitted layer over each block."""
    parts = []
    for row in range(len(blocks)):
        ids = blocks.batch(slice(row, row + 1), adapter.device)
        sums = torch.zeros(len(adapter.fitted_layers), dtype=torch.float64)
        for span in token_spans(adapter, adapter.forward(ids), ids):
            for k, layer in enumerate(adapter.fitted_layers):
                logits = lens(span.hidden[layer], layer)
                sums[k] += rows_of(logits).figures(logits, span.aim, span.labels)[:, 1].sum(dtype=torch.float64)
        parts.append(sums / ids.numel())
    return torch.stack(parts, dim=1)


def worse(after: Tensor, before: Tensor) -> int:
    """Layers whose KL (layers, blocks) is higher after than before, beyond two standard errors and 1 in 1,000."""
    difference = after - before
    error = difference.std(1) / difference.shape[1] ** 0.5
    return int((difference.mean(1) > torch.maximum(2 * error, 1e-3 * before.mean(1))).sum())


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    models = {name: load_model(SHIPPED / name, device="cpu") for name in ("tiny-mamba", "tiny-rwkv4")}
    tokenizer, vocab = models["tiny-mamba"].tokenizer, models["tiny-mamba"].vocab_size
    models[RANDOM] = random_mamba(256, vocab, config.random_layers, torch.float32, torch.device("cpu"))
    held_out = load_blocks(DataConfig(eval_tokens=config.eval_tokens), "eval", tokenizer)
    logit = {name: kl_by_block(a, LogitLens.from_adapter(a), held_out) for name, a in models.items()}
    rows, totals = [], [0, 0, 0]
    for name, tokens, settings in CASES[: config.cases]:
        adapter = models[name]
        text = load_blocks(DataConfig(tokens=tokens), "fit", tokenizer)
        result = fit(adapter, text, FitConfig(**settings))
        end, start = (kl_by_block(adapter, lens, held_out) for lens in (result.lens, result.start_lens))
        counts = [len(end), worse(end, logit[name]), worse(end, start)]
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        means = (f"{kl.mean():.3f}" for kl in (logit[name], start, end))
        rows.append([f"{name}, {tokens:,} tokens{', ' if words else ''}{words}", *means, *map(str, counts[1:])])
    notes = [f"{totals[1]} of {totals[0]} layers worse than the logit lens, {totals[2]} worse than their start."]
    header = ["fit", "KL, logit lens", "start", "end", "layers worse than the logit lens", "than their start"]
    report("Small and odd fits", header, rows, notes, config.output, worse=totals[1:], layers=totals[0])


if __name__ == "__main__":
    cli.run(main, Config)

"""What is lost when a tuned lens is compressed to low rank: mean held-out KL and size by rank.

python benchmarks/low_rank.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.data import DataConfig, load_blocks
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.fitting.low_rank import compress
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.models import load_model
from lens_rnn.ranges import THREADS, whole
from lens_rnn.run import ModelConfig

import numpy as np

from common import report


@dataclass(frozen=True, kw_only=True)
class Config:
    """Mean held-out KL of a tuned lens by the rank that its translators are compressed to."""

    model: str = ModelConfig.model
    lens: str | None = None
    """Folder of a tuned lens. Default: the one beside the model."""
    ranks: Annotated[tuple[int, ...], whole(1)] = (8, 16, 32, 64, 96)
    tokens: Annotated[int, whole(1)] = 16_384
    """Fitting tokens to compress on."""
    eval_tokens: Annotated[int, whole(1)] = 16_384
    """Held-out tokens."""
    seq_len: Annotated[int, whole(2)] = 256
    output: Path | None = None
    """Folder for the figures as JSON."""
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    adapter = load_model(config.model, device="cpu")
    unembedding = Unembedding(adapter)
    tuned = TunedLens.load(adapter, config.lens or f"{config.model}-lens", unembedding)
    data = DataConfig(tokens=config.tokens, eval_tokens=config.eval_tokens, seq_len=config.seq_len)
    blocks, held_out = (load_blocks(data, role, adapter.tokenizer) for role in ("fit", "eval"))
    lenses = {"logit lens": LogitLens(unembedding)}
    lenses |= {f"rank {rank}": compress(adapter, tuned, rank, blocks) for rank in config.ranks}
    lenses |= {"tuned lens": tuned}
    figures = evaluate(adapter, lenses, held_out).lenses
    d = adapter.d_model
    numbers = {"logit lens": 0, "tuned lens": d * (d + 1)} | {f"rank {r}": d * (2 * r + 1) for r in config.ranks}
    rows = [
        [name, f"{np.mean([of[i].kl for i in adapter.fitted_layers]):.4f}", f"{numbers[name] / (d * (d + 1)):.2f}"]
        for name, of in figures.items()
    ]
    notes = [f"Compressed on {config.tokens:,} fitting tokens, measured on {held_out.tokens.size:,} held-out ones."]
    report(adapter.name, ["", "mean KL, nats a token", "numbers ÷ the tuned lens's"], rows, notes, config.output)


if __name__ == "__main__":
    cli.run(main, Config)

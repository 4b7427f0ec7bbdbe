"""Writing with all layers read: tokens a second, and whether memory stays where it was.

python benchmarks/writing.py
"""

import resource
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.evaluation.live import Writing, write_live
from lens_rnn.lens import open_lens
from lens_rnn.models import load_model
from lens_rnn.ranges import THREADS, whole
from lens_rnn.run import ModelConfig

from common import report

PROMPT = "import os\n\n\ndef "


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tokens a second while a model writes and a lens reads all layers, in parts of the text."""

    model: str = ModelConfig.model
    lens: str | None = None
    """Default: the one beside the model."""
    tokens: Annotated[int, whole(2)] = 2000
    parts: Annotated[int, whole(1)] = 4
    output: Path | None = None
    """Folder for the figures as JSON."""
    threads: Annotated[int | None, THREADS] = None
    """Default: all cores."""


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    cli.set_threads(config.threads)
    adapter = load_model(config.model, device="cpu")
    lens = open_lens(adapter, config.lens or f"{config.model}-lens")
    stream = (
        beliefs for beliefs in write_live(adapter, lens, PROMPT, Writing(tokens=config.tokens)) if beliefs.is_written
    )
    next(stream)  # what is compiled or loaded once
    rows, size = [], config.tokens // config.parts
    for part in range(config.parts):
        began = time.perf_counter()
        count = sum(1 for _ in islice(stream, size))
        rate = count / (time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append([f"{part * size:,} to {part * size + count:,}", f"{rate:.0f}", f"{peak:.0f}"])
    notes = [f"All {len(adapter.fitted_layers)} layers read after each token."]
    report(adapter.name, ["tokens", "tokens a second", "highest resident size, MiB"], rows, notes, config.output)


if __name__ == "__main__":
    cli.run(main, Config)

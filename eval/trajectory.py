"""See what a model believes at each layer and token of a text.

    python eval/trajectory.py
    python eval/trajectory.py --text "import numpy as np" --statistic rank --output results/trajectory

Writes trajectory.html (point at a cell for its likeliest tokens), trajectory.png and trajectory.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.drawing import save_page, save_png
from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.evaluation.trajectory import FORMAT, named, predict
from lens_rnn.evaluation.trajectory_plots import html_figure, png_figure
from lens_rnn.lens import open_lens
from lens_rnn.ranges import whole
from lens_rnn.reports import write_report
from lens_rnn.run import (
    ModelConfig,
    begin_output,
    check_output,
    check_text,
    inputs_read,
    load_configured_model,
    start_processes,
)

TEXT = (
    'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n        return '
    "file.readlines()\n"
)
FILES = ("trajectory.html", "trajectory.png", "trajectory.json")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """See what a model believes at each layer and token of a text."""

    lens: str | None = None
    """Folder or tuned-lens resource of a lens, or "logit" for the logit lens. Default: the one in lenses/ that was
    fitted last for the model, or the folder named like the model plus -lens, or else the logit lens."""
    text: str = TEXT
    """What the model reads."""
    statistic: str = "entropy"
    """What the colours say: entropy, ce, kl, rank or probability."""
    stride: Annotated[int, whole(1)] = 1
    """Show every so many-th layer."""
    top_k: Annotated[int, whole(1)] = 20
    """Tokens a cell in trajectory.json."""
    output: Path = Path("results/trajectory")
    """Folder of the results."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        named(self.statistic)
        check_text(self.text)


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.output, config.overwrite)

    # Model and lens.
    name = config.lens or config.default_lens or "logit"
    print(
        inputs_read(config.model, name if config.lens or name != "logit" else None, text=f"{config.text[:60]!r}"),
        flush=True,
    )
    adapter = load_configured_model(config, processes)
    lens = open_lens(adapter, name)
    # Work.
    doing("reading the text")
    trajectory = predict(adapter, lens, config.text, top_k=config.top_k, stride=config.stride)

    # Report.
    doing("writing the results")
    text = token_reader(adapter.tokenizer)
    title = f"{Path(adapter.name).name}, {lens.kind} lens"
    begin_output(config.output, config, config.overwrite, FILES)
    about = {"model": adapter.name, "lens": name, "text": config.text}
    write_report(config.output / "trajectory.json", about | trajectory.report(text), FORMAT)
    save_png(png_figure(trajectory, text, config.statistic, title=title), config.output / "trajectory.png")
    save_page(html_figure(trajectory, text, config.statistic, title=title), config.output / "trajectory.html")
    print(f"saved to {config.output}")
    processes.finish()


if __name__ == "__main__":
    cli.run(main, Config)

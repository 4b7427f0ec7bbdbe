"""Draw all figures of the paper from result files, each as a PNG and all together in one page, with a table.

    python eval/figures.py
    python eval/figures.py results published --output figures
    python eval/figures.py published --figures families transfer --size 160m

A folder stands for every aggregate_metrics.json in it and below. Figures: families (depth against bits per byte, one
size), sizes (all sizes of a family), lenses (tuned against logit), transfer (translator × source), perplexity (log
perplexity per token). A figure that the results hold nothing for is left out with a warning, or refused where it is
named.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lens_rnn import cli, flags
from lens_rnn.activity import doing
from lens_rnn.drawing import Drawable, save_picture
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation import summary
from lens_rnn.evaluation.curves import Curves, warn_of_broken
from lens_rnn.evaluation.figures import NAMES, Name, draw, ordered, parse_size
from lens_rnn.evaluation.results import FILE_NAME, find_results, read_results
from lens_rnn.files import write_text


@dataclass(frozen=True, kw_only=True)
class Config:
    """Draw the figures of the paper from result files."""

    results: flags.Positional[tuple[str, ...]] = ("results",)
    """Result files or folders that hold any number of them; FAMILY:PATH where a file and its folders do not tell the
    family."""
    output: Path = Path("figures")
    """Folder of the figures: NAME.png each, figures.html with all of them, summary.csv."""
    figures: tuple[Name, ...] = NAMES
    """Which to draw. Default: all that the results have something for."""
    size: str | None = None
    """Parameters at which `families` compares, like 160m, 1.4b or 1b5. Default: the sizes that are nearest to each
    other."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        if not self.results or not self.figures:
            raise ConfigError(f"there is nothing to draw; name folders that hold an {FILE_NAME}, and figures")
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"--output {self.output} is a file; name a folder")
        if self.size:
            parse_size(self.size)


def draw_all(config: Config, results: Sequence[Curves]) -> dict[str, Drawable]:
    """All pictures by file stem. What was not asked for by name may be missing."""
    drawn: dict[str, Drawable] = {}
    for name in config.figures:
        try:
            drawn |= draw(name, results, config.size)
        except DataError as error:
            if config.figures != NAMES:
                raise DataError(f"{name}: {error}") from None
            logging.getLogger("lens_rnn").warning("%s: %s; left out", name, error)
    return drawn


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    doing("reading the results")
    results = ordered(read_results(find_results(config.results)))
    warn_of_broken(results)
    doing("drawing")
    drawn = draw_all(config, results)
    rows = summary.summarise(results)

    for name, picture in drawn.items():
        save_picture(picture, config.output / f"{name}.png")
        print(f"wrote {config.output / name}.png")
    page = summary.as_page(rows, {name: picture.plotly() for name, picture in drawn.items()})
    for name, text in {"figures.html": page, "summary.csv": summary.as_csv(rows)}.items():
        write_text(config.output / name, text)
        print(f"wrote {config.output / name}")
    print(summary.as_text(rows))


if __name__ == "__main__":
    cli.run(main, Config)

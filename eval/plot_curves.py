"""Draw how the predictions of one or more models form over depth, from the result files that eval/perplexity.py writes.

    python eval/plot_curves.py results/tiny-mamba --output curves.png
    python eval/plot_curves.py results/tiny-mamba published/mamba/130m pythia:other/metrics.json --output curves.html

One result is drawn with its baselines; several are overlaid. Results in the plain tuned-lens schema do not say what a
layer is: there the family is read from the folders FAMILY/SIZE, or named as FAMILY:PATH (mamba, rwkv, pythia).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lens_rnn import cli, flags
from lens_rnn.activity import doing
from lens_rnn.drawing import save_picture
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.curves import warn_of_broken
from lens_rnn.evaluation.plots import Lens, comparison_picture, layers_picture
from lens_rnn.evaluation.results import FILE_NAME, read_results


@dataclass(frozen=True, kw_only=True)
class Config:
    """Draw results over depth."""

    results: flags.Positional[tuple[str, ...]] = ()
    """Folders that hold an aggregate_metrics.json, or such files; FAMILY:PATH where the family is not known."""
    output: Path
    """A .png or .html file, or a folder that gets curves.png and curves.html."""
    labels: tuple[str, ...] = ()
    """Names for the legend, one a result. Default: the names of the models."""
    lens: Lens = "both"
    """What to draw: the tuned lens (solid), the logit lens (dashed), or both."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        if not self.results:
            raise ConfigError(f"there is no result to draw; name folders that hold an {FILE_NAME}")
        if self.labels and len(self.labels) != len(self.results):
            raise ConfigError(
                f"--labels has {len(self.labels)} names for {len(self.results)} results; give one a result"
            )
        if not self.output.is_dir() and self.output.suffix.lower() not in ("", ".png", ".html"):
            raise ConfigError(f"--output {self.output} ends in {self.output.suffix!r}; use .png, .html or a folder")


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    doing("reading the results")
    results = read_results(config.results)
    if config.labels:
        results = [
            dataclasses.replace(curves, name=label) for curves, label in zip(results, config.labels, strict=True)
        ]

    doing("drawing")
    warn_of_broken(results)
    alone = results[0] if len(results) == 1 else None
    picture = layers_picture(alone, config.lens) if alone else comparison_picture(results, config.lens)
    folder = config.output.is_dir() or not config.output.suffix
    for path in [config.output / "curves.png", config.output / "curves.html"] if folder else [config.output]:
        save_picture(picture, path)
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main, Config)

"""See in a browser what a model believes at each layer and token of a text.

    python eval/viewer.py
    python eval/viewer.py --model state-spaces/mamba-130m-hf --lens my-lens --port 8000

Opens on the first model, with the demo models of checkpoints/ beside it. Needs `pip install 'lens-rnn[viewer]'`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import check_ranges, whole
from lens_rnn.run import ModelConfig, load_configured_model, start_processes
from lens_rnn.viewer import Choice, ViewerCache, build_page, launch_page, shipped

TEXT = (
    'def read_lines(path):\n    """Return the lines of a file."""\n    with open(path) as file:\n        return '
    "file.readlines()\n"
)
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """See in a browser what a model believes at each layer and token of a text."""

    lens: str | None = None
    """Folder or tuned-lens resource of a lens for --model. Default: the one in lenses/ that was fitted last for the
    model, or the folder named like the model plus -lens. The logit lens is always there."""
    also: tuple[str, ...] = ()
    """Other lenses of any kind to choose for --model: folders, Jacobian lens files, or names on the Hub."""
    text: str = TEXT
    """What the page opens on."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: Annotated[int | None, whole(1, 2**16 - 1)] = None
    """Port to listen at. Default: the first free one from 7860."""
    share: bool = False
    """Make a public address through Gradio's servers, too."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def choices(self) -> dict[str, Choice]:
        """The model that was named, then the demo models."""
        lens = self.lens or self.default_lens
        lenses: dict[str, str] = {}
        for name in filter(None, (lens, *self.also)):
            short = Path(name).name.removesuffix(".pt")
            lenses[name if short in lenses else short] = name
        named = Choice(model=self.model, lenses=lenses)
        return {self.model_name: named} | {
            name: choice for name, choice in shipped(CHECKPOINTS).items() if name != self.model_name
        }


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)

    # Models, loaded when they are asked for. The revision and tokenizer of the command line are those of the model it
    # names.
    def load(model: str) -> ModelAdapter:
        revision, tokenizer = (config.revision, config.tokenizer) if model == config.model else (None, None)
        return load_configured_model(replace(config, model=model, revision=revision, tokenizer=tokenizer), processes)

    cache = ViewerCache(config.choices, load)

    # The page, until it is interrupted.
    doing("showing the page")
    page = build_page(cache, config.text)
    launch_page(page, server_name=config.host, server_port=config.port, share=config.share)
    processes.finish()


if __name__ == "__main__":
    cli.run(main, Config)

"""Find where a model carries what makes it say one thing and not another: activation patching between two texts.

    python eval/patch.py
    python eval/patch.py --demonstration bracket --model checkpoints/tiny-rwkv4
    python eval/patch.py --clean "def f(name):\\n    return" --corrupted "def f(path):\\n    return" --answer " name"
    --foil " path"
    python eval/patch.py --pairs pairs.jsonl

Writes patching.png and .html, a map of layers and tokens for each kind of activation, and patching.json.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.drawing import save_page, save_png
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.models import RecurrentAdapter
from lens_rnn.models.inputs import one_text
from lens_rnn.reports import write_report
from lens_rnn.run import ModelConfig, begin_output, check_output, load_configured_model, start_processes
from lens_rnn.views.knockout import KNOCKED_OUT, knock_out
from lens_rnn.views.patching import KINDS, patch
from lens_rnn.views.patching_pairs import DEMONSTRATIONS, PairTexts, read_pairs, tokenised
from lens_rnn.views.patching_pictures import patching_html, patching_png

import numpy as np
from tqdm import tqdm

FILES = ("patching.html", "patching.json", "patching.png")
"""What is written, and replaced with --overwrite."""
FORMAT = 1
"""Of patching.json."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Find where a model carries what makes it say one thing and not another."""

    demonstration: Literal["identifier", "bracket"] = "identifier"
    """What is asked where no texts are given: the name of a parameter, or which bracket is open."""
    clean: str | None = None
    """Text that calls for the answer."""
    corrupted: str | None = None
    """Text of as many tokens that calls for the foil."""
    answer: str | None = None
    """Text of one token, its leading space included."""
    foil: str | None = None
    """Text of one token."""
    pairs: Path | None = None
    """File of JSON lines with clean, corrupted, answer and foil, of one number of tokens."""
    kinds: tuple[Literal["residual", "convolution", "recurrent", "attention"], ...] | None = None
    """What is exchanged. Default: all that the model has, and what is lost when a block cannot read a token again."""
    output: Path = Path("results/patching")
    """Folder of the results."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        if self.demonstration not in DEMONSTRATIONS:
            raise ConfigError(
                f"there is no demonstration {self.demonstration!r}; choose from {', '.join(DEMONSTRATIONS)}"
            )
        if unknown := [kind for kind in self.kinds or () if kind not in KINDS]:
            raise ConfigError(f"there is no kind {unknown[0]!r} to patch; choose from {', '.join(KINDS)}")
        given = [name for name in PairTexts._fields if getattr(self, name) is not None]
        if given and (self.pairs or len(given) < len(PairTexts._fields)):
            raise ConfigError("give --clean, --corrupted, --answer and --foil together, or --pairs, or none of them")

    @property
    def texts(self) -> list[PairTexts]:
        if self.pairs:
            return read_pairs(self.pairs)
        if self.clean is not None:
            return [PairTexts(*(getattr(self, name) for name in PairTexts._fields))]
        return [*DEMONSTRATIONS[self.demonstration]]


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.output, config.overwrite)

    # Model and pairs.
    texts = config.texts
    print(f"model      {config.model}\npairs      {len(texts)}, the first {texts[0].clean!r:.60}", flush=True)
    adapter = load_configured_model(config, processes)
    pairs = [tokenised(adapter, pair) for pair in texts]

    # Work.
    doing("patching")
    with tqdm(total=len(pairs), unit="pair", desc="patching") as bar:
        result = patch(adapter, pairs, config.kinds, on_pair=bar.update)
        if config.kinds is None and isinstance(adapter, RecurrentAdapter):
            result = replace(result, shares={**result.shares, KNOCKED_OUT: knock_out(adapter, pairs).lost})

    # Report.
    doing("writing the results")
    begin_output(config.output, config, config.overwrite, FILES)
    read = token_reader(adapter.tokenizer)
    names = [read(int(i)) for i in one_text(adapter, pairs[0].clean)[0]]
    several = f", mean of {len(pairs)} pairs" if len(pairs) > 1 else ""
    title = f"{Path(adapter.name).name}: {texts[0].answer!r} or {texts[0].foil!r}{several}"
    about = {"model": adapter.name, "pairs": [pair._asdict() for pair in texts], "tokens": names}
    write_report(config.output / "patching.json", about | result.report(), FORMAT)
    save_png(patching_png(result, names, title), config.output / "patching.png")
    save_page(patching_html(result, names, title), config.output / "patching.html")
    print(f"logit[answer] − logit[foil]: clean {result.clean.mean():.2f}, corrupted {result.corrupted.mean():.2f}")
    for kind in result.shares:
        mean = result.mean(kind)
        layer, token = np.unravel_index(np.nanargmax(mean), mean.shape)
        at = result.estimate(kind, int(layer), int(token))
        place = f"{'layer' if kind == 'residual' else 'block'} {layer}, token {token} ({names[token]!r})"
        interval = f" [{at.low:.2f}, {at.high:.2f}]" if len(pairs) > 1 else ""
        print(f"{kind:<12} most at {place}: {at.value:.2f}{interval}")
    print(f"saved to {config.output}")
    processes.finish()


if __name__ == "__main__":
    cli.run(main, Config)

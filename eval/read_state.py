"""Read a memory: put the recurrent state of one text into that of another, go on, and see whether it names what the
first was about.

    python eval/read_state.py
    python eval/read_state.py --model checkpoints/tiny-rwkv4 --multiplier 10
    python eval/read_state.py --source "def check(self, width):\\n    if" --eliciting "    return"

Without texts of its own it is an experiment with controls and intervals. Writes state_reading.json and, of the
experiment, state_reading.png.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.drawing import BLACK, new_figure, save_png
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.tokens import token_reader, visible
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import check_ranges, number, whole
from lens_rnn.reports import to_json, write_report
from lens_rnn.run import ModelConfig, begin_output, check_output, load_configured_model, start_processes
from lens_rnn.views.state_reading import ReadingResult, read_state, reading_experiment
from lens_rnn.views.state_reading_demos import DEMONSTRATIONS, sources_of

from matplotlib.figure import Figure
from tqdm import tqdm

FILES = ("state_reading.json", "state_reading.png")
"""What is written, and replaced with --overwrite."""
FORMAT = 1
"""Of state_reading.json."""
CONTROLS = {"plain": "the prompt alone", "others": "states of other sources", "shuffled": "its own, in wrong blocks"}


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Read a memory: put the state of one text into that of another, and see what is said."""

    source: str | None = None
    """Text whose state is read. Default: the sources of the experiment."""
    eliciting: str | None = None
    """Text that is gone on from with it."""
    multiplier: Annotated[float, number()] = 1.0
    """What the source's state is multiplied by before it is added."""
    exchange: bool = False
    """Take the source's state in place of the prompt's, where it is added otherwise."""
    blocks: Annotated[tuple[int, ...] | None, whole()] = None
    """Blocks whose states take part. Default: all."""
    tokens: Annotated[int, whole(0)] = 20
    """Tokens to go on with, of texts of one's own."""
    output: Path = Path("results/state_reading")
    """Folder of the results."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.source is None) != (self.eliciting is None):
            raise ConfigError("give --source and --eliciting together, or neither for the experiment")


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.output, config.overwrite)
    print(f"model      {config.model}", flush=True)
    adapter = load_configured_model(config, processes)
    how = {"exchange": config.exchange, "blocks": config.blocks}
    about: dict[str, Any] = {"model": adapter.name, "multiplier": config.multiplier, **how}

    doing("reading states")
    if config.source is not None and config.eliciting is not None:
        about |= read_one(adapter, config.source, config.eliciting, config, how)
        begin_output(config.output, config, config.overwrite, FILES)
    else:
        results = experiment(adapter, config, how)
        begin_output(config.output, config, config.overwrite, FILES)
        effects = {name: {c: result.effect(c) for c in CONTROLS} for name, result in results.items()}
        about["experiment"] = to_json(effects)
        title = f"{Path(adapter.name).name}: what a memory says, {'exchanged' if config.exchange else 'added'}"
        save_png(figure(results, title), config.output / "state_reading.png")
    write_report(config.output / "state_reading.json", about, FORMAT)
    print(f"saved to {config.output}")
    processes.finish()


def read_one(adapter: ModelAdapter, source: str, eliciting: str, config: Config, how: dict[str, Any]) -> dict[str, Any]:
    """One text's state after another: printed, and as it is written."""
    name = token_reader(adapter.tokenizer)
    plain = read_state(adapter, source, eliciting, 0.0, tokens=config.tokens)
    read = read_state(adapter, source, eliciting, config.multiplier, tokens=config.tokens, **how)
    gained = read.log_probabilities.exp() - plain.log_probabilities.exp()
    risen = {name(i): float(gained[i]) for i in gained.topk(5).indices.tolist()}
    texts = {"alone": plain, "with the state": read}
    written = {label: "".join(map(name, of.continuation)) for label, of in texts.items()}
    print(
        f"next token: KL from the prompt alone {read.kl:.3f} nats; risen most: "
        + ", ".join(f"{visible(token)} +{p:.3f}" for token, p in risen.items())
    )
    for label, text in written.items():
        print(f"{label:<15} {eliciting + text!r}")
    return {"source": source, "eliciting": eliciting, "kl": read.kl, "risen": risen, "continuations": written}


def experiment(adapter: ModelAdapter, config: Config, how: dict[str, Any]) -> dict[str, ReadingResult]:
    """All demonstrations, printed."""
    results = {}
    total = sum(len(demonstration.sources) for demonstration in DEMONSTRATIONS.values())
    with tqdm(total=total, unit="source", desc="reading") as bar:
        for name, demonstration in DEMONSTRATIONS.items():
            sources = sources_of(adapter, demonstration)
            results[name] = reading_experiment(
                adapter, sources, demonstration.eliciting, config.multiplier, on_source=bar.update, **how
            )
    print("nats by which what the source was about is likelier with its state than with")
    for name, result in results.items():
        effects = [
            f"{words} {effect.value:+.2f} [{effect.low:.2f}, {effect.high:.2f}]"
            for words, effect in ((words, result.effect(c)) for c, words in CONTROLS.items())
        ]
        print(f"  {DEMONSTRATIONS[name].question} ({len(result.own)} sources): " + "; ".join(effects))
    return results


def figure(results: dict[str, ReadingResult], title: str) -> Figure:
    """The effect against each control, in nats, with its interval."""
    drawing = new_figure(7.4, 1.2 + 1.1 * len(results), title, 11)
    axes = drawing.subplots()
    colours = ("#0072B2", "#E69F00", "#007A5A")
    for row, name in enumerate(results):
        for place, (control, words) in enumerate(CONTROLS.items()):
            effect = results[name].effect(control)
            y = row + 0.22 * (place - 1)
            axes.plot([effect.low, effect.high], [y, y], color=colours[place], linewidth=2.4)
            label = f"more than with {words}" if row == 0 else None
            axes.plot([effect.value], [y], "o", color=colours[place], label=label)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(results)), [DEMONSTRATIONS[name].question for name in results], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("log-probability gained by what the source was about (nats)", fontsize=9)
    drawing.legend(fontsize=8, frameon=False, loc="outside lower left", ncols=2)
    return drawing


if __name__ == "__main__":
    cli.run(main, Config)

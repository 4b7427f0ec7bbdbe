"""Steer a model by contrastive activation addition: its residual stream, its recurrent state, or both.

    python eval/steering.py
    python eval/steering.py --model checkpoints/tiny-rwkv4
    python eval/steering.py --behaviour refusal --data FOLDER --template chatml --model state-spaces/mamba-2.8b-hf

Without --behaviour it is a demonstration: will the model say one word or another, on held-out text? Writes
steering.json, steering.csv, steering.png, generations.json and vectors.safetensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.data import STDLIB, DataConfig, open_source
from lens_rnn.errors import ConfigError
from lens_rnn.files import write_json, write_text
from lens_rnn.lens import open_lens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import refuse_processes
from lens_rnn.ranges import whole
from lens_rnn.run import ModelConfig, begin_output, check_output, load_configured_model, start_processes
from lens_rnn.steering.contrasts import BehaviourConfig, Contrast, behaviour_contrast
from lens_rnn.steering.experiment import Experiment, ExperimentConfig, run_experiment
from lens_rnn.steering.generation import generate
from lens_rnn.steering.items import behaviour_file, read_items, read_prompts
from lens_rnn.steering.next_words import NextWordConfig, next_word_contrast
from lens_rnn.steering.pairs import Question, encode, prompt_text, tokenise
from lens_rnn.steering.plots import plot_experiment
from lens_rnn.steering.report import brief, summary, table, through_the_lens

from tqdm import tqdm

KNOWLEDGE = ("mmlu", "truthful_qa")
FILES = ("steering.json", "steering.csv", "steering.png", "generations.json", "vectors.safetensors")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, ExperimentConfig):
    """Steer a model's residual stream, its recurrent state, or both, and measure what that does to its answers."""

    behaviour: str | None = None
    """Name of a behaviour of --data, or a .json file of contrastive questions. Default: the demonstration, --words on
    --data."""
    data: str = STDLIB
    """With --behaviour a folder, or a data set on the Hub, that holds generate/ and test/; without it, text as for
    train/fit_lens.py."""
    words: tuple[str, str] = (" return", " raise")
    """Of the demonstration: the matching word and the other, each one token."""
    template: str = "plain"
    """What stands before an answer: plain, chatml, llama, tokenizer (its own chat template), or a text with {question}
    in it."""
    balance_letters: bool = False
    """Make vectors from every item twice, once with its options swapped, so that they carry no bias to a letter."""
    pairs: Annotated[int, whole(2)] = 400
    """Pairs that vectors are made from, at most."""
    questions: Annotated[int, whole(2)] = 50
    """Questions to choose layer and multiplier on, and as many to report on. Of --words half of them before each, one a
    document as long as documents last."""
    places: Annotated[int, whole(1)] = 4
    """Of --words, places of one document that pairs and questions may come from, at most, before each word."""
    capability: Annotated[int, whole()] = 50
    """Questions of the MMLU and of the TruthfulQA sample beside a behaviour; 0 for none."""
    generations: Annotated[int, whole()] = 3
    """Texts that are gone on with, unsteered and steered."""
    new_tokens: Annotated[int, whole(1)] = 40
    """Tokens of each."""
    lens: str | None = None
    """Folder or tuned-lens resource of a lens. Default: the one in lenses/ that was fitted last for the model, or the
    folder named like the model plus -lens."""
    output: Path | None = None
    """Folder of the results. Default: results/steering/MODEL."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.behaviour and not self.behaviour.endswith(".json") and self.data == STDLIB:
            raise ConfigError(
                f"--behaviour {self.behaviour} needs --data: a folder or Hub data set with generate/ and test/"
            )
        _ = self.contrast_config  # which checks the words, and how many there are of what

    @property
    def contrast_config(self) -> BehaviourConfig | NextWordConfig:
        """How the questions are read."""
        sizes: dict[str, Any] = {"pairs": self.pairs, "questions": self.questions, "seed": self.seed}
        if self.behaviour is None:
            return NextWordConfig(words=self.words, places=self.places, **sizes)
        return BehaviourConfig(template=self.template, balance_letters=self.balance_letters, **sizes)

    @property
    def folder(self) -> Path:
        return self.output or Path("results") / "steering" / self.model_name


def read_contrast(config: Config, adapter: ModelAdapter) -> Contrast:
    """The behaviour, or the demonstration."""
    settings = config.contrast_config
    if isinstance(settings, NextWordConfig):
        return next_word_contrast(open_source(DataConfig(data=config.data)), adapter.tokenizer, settings)
    return behaviour_contrast(config.data, str(config.behaviour), adapter.tokenizer, settings)


def read_further(
    config: Config, adapter: ModelAdapter, contrast: Contrast
) -> tuple[dict[str, list[Question]], list[list[int]]]:
    """Questions of knowledge, by sample, and texts to go on with."""
    if config.behaviour is None or config.behaviour.endswith(".json"):
        return {}, [list(question.ids) for question in contrast.test[: config.generations]]
    samples = {
        name: read_items(behaviour_file(config.data, config.behaviour, name)) for name in KNOWLEDGE if config.capability
    }
    spread = {
        name: items[:: max(1, len(items) // config.capability)][: config.capability] for name, items in samples.items()
    }
    asked = read_prompts(behaviour_file(config.data, config.behaviour, "open_ended")) if config.generations else []
    prompts = asked[: config.generations]
    texts = [prompt_text(prompt, config.template, adapter.tokenizer).rstrip(" ") for prompt in prompts]
    ids = [encode(text, config.template, adapter.tokenizer) for text in texts]
    return {name: tokenise(items, config.template, adapter.tokenizer) for name, items in spread.items()}, ids


def written(
    config: Config, adapter: ModelAdapter, experiment: Experiment, texts: list[list[int]]
) -> list[dict[str, Any]]:
    """generations.json: what follows each text at −multiplier, 0 and +multiplier of each target."""
    rows = []
    for ids in texts:
        row: dict[str, Any] = {"text": adapter.tokenizer.decode(ids)}
        for target, outcome in experiment.outcomes.items():
            times = (-outcome.multiplier, 0.0, outcome.multiplier)
            made = generate(adapter, ids, outcome.edit, times, config.new_tokens)
            row[target] = {f"{m:g}": adapter.tokenizer.decode(new) for m, new in zip(times, made, strict=True)}
        rows.append(row)
    return rows


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    refuse_processes("eval/steering.py")
    processes = start_processes(config)
    check_output(config.folder, config.overwrite)

    # Model, lens and data.
    adapter = load_configured_model(config, processes)
    lens_name = config.lens or config.default_lens
    lens = open_lens(adapter, lens_name) if lens_name else None
    doing("reading the questions")
    contrast = read_contrast(config, adapter)
    knowledge, texts = read_further(config, adapter, contrast)

    # Work.
    doing("steering")
    with tqdm(total=len(contrast.validation) + len(contrast.test), unit="question", desc="steering") as bar:
        experiment = run_experiment(adapter, contrast, config, knowledge, bar.update)
    doing("reading what was steered")
    latent = through_the_lens(experiment, adapter, lens) if lens else {}
    report = summary(experiment, adapter, lens, latent, lens_name)
    generations = written(config, adapter, experiment, texts)

    # Report.
    doing("writing the results")
    begin_output(config.folder, config, config.overwrite, FILES)
    report.write(config.folder / "steering.json")
    write_json(config.folder / "generations.json", generations)
    write_text(config.folder / "steering.csv", table(experiment, adapter))
    experiment.vectors.save(config.folder / "vectors.safetensors")
    plot_experiment(experiment, adapter, config.folder / "steering.png", latent)
    print(brief(report))
    print(f"saved to {config.folder}")
    processes.finish()


if __name__ == "__main__":
    cli.run(main, Config)

"""Measure a lens layer by layer on held-out text, and draw the curves.

    python eval/perplexity.py
    python eval/perplexity.py --model state-spaces/mamba-130m-hf --lens lenses/mamba-130m-hf --data
    monology/pile-uncopyrighted

Writes aggregate_metrics.json (tuned-lens's schema, bits per byte), per_layer.csv, perplexity.png and perplexity.html.
--transfer and --statistics add to the first.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lens_rnn import artifacts, cli
from lens_rnn.activity import doing
from lens_rnn.data import STDLIB, DataConfig, TokenBlocks, load_blocks, open_source, unigram_cross_entropy
from lens_rnn.drawing import save_picture
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.curves import warn_of_broken
from lens_rnn.evaluation.export import Extras, TextsRead, layer_table, result
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.evaluation.plots import layers_picture
from lens_rnn.evaluation.result_file import FILE_NAME, EvaluationResult
from lens_rnn.evaluation.results import read_curves
from lens_rnn.evaluation.statistics import js_between, marginals
from lens_rnn.evaluation.transfer import layer_transfer
from lens_rnn.files import write_text
from lens_rnn.fitting.reference import FILE as REFERENCE
from lens_rnn.fitting.reference import load_reference
from lens_rnn.fitting.report import describe_model, measured_report, others_table, table
from lens_rnn.lens import Lens, LogitLens, LowRankLens, TunedLens, Unembedding, kind_at, open_lens
from lens_rnn.models import ModelAdapter
from lens_rnn.ranges import check_ranges, whole
from lens_rnn.run import (
    ModelConfig,
    begin_output,
    check_length,
    check_output,
    inputs_read,
    load_configured_model,
    start_processes,
)

from tqdm import tqdm

FILES = (FILE_NAME, "per_layer.csv", "perplexity.png", "perplexity.html")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Measure a lens layer by layer on held-out text: cross-entropy, KL from the model, entropy."""

    lens: str | None = None
    """Folder or tuned-lens resource of a lens. Default: the one in lenses/ that was fitted last for the model, or the
    folder named like the model plus -lens."""
    also: tuple[str, ...] = ()
    """Other lenses of any kind to set beside it: folders, Jacobian lens files, or names on the Hub."""
    data: str = STDLIB
    """Text, as for train/fit_lens.py; what is held out of it is measured."""
    eval_data: str | None = None
    """Separate text to measure on, named like --data, of which nothing is held out then."""
    data_split: str = "train"
    """Split of a Hub data set from which 1 document in 50 is held out, where it has no validation split of its own."""
    text_field: str = "text"
    """Field of a record that holds the document."""
    eval_tokens: Annotated[int | None, whole(1)] = None
    """Held-out tokens to measure on. Default: 32,768, or all there are if that is less."""
    seq_len: Annotated[int, whole(2)] = 256
    """Tokens in a block: how far back a prediction can look."""
    micro_batch_size: Annotated[int, whole(1)] = 8
    """Sequences in one forward pass of one process."""
    transfer: bool = False
    """Also read every layer with every other layer's translator: as many readings as layers, squared."""
    statistics: bool = False
    """Also average each layer's predictions, and measure how far apart the two lenses are; in nats, under lens_rnn."""
    output: Path | None = None
    """Folder of the results. Default: results/ and the model's name."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.data_config()
        if len({*self.also}) < len(self.also):
            raise ConfigError("--also names a lens twice; give each once")

    def data_config(self) -> DataConfig:
        return DataConfig(
            data=self.data,
            eval_data=self.eval_data,
            data_split=self.data_split,
            text_field=self.text_field,
            eval_tokens=self.eval_tokens,
            seq_len=self.seq_len,
        )

    @property
    def folder(self) -> Path:
        return self.output or Path("results") / self.model_name


def texts_for(data: DataConfig, lens: str | None) -> tuple[DataConfig, DataConfig]:
    """The text to measure on, and the one whose token counts make the unigram baseline: the lens's own if it is from
    the same source. A lens that was fitted on all of that is measured on the text that was kept separate."""
    report = artifacts.load(lens).report if lens and kind_at(Path(lens)) in (None, TunedLens) else None
    if not report or report.data.fit.source != data.data:
        return data, data
    fitted_on, apart = report.data.fit, report.settings.get("eval_data")
    counted = replace(data, tokens=fitted_on.tokens, seq_len=fitted_on.seq_len, eval_tokens=None, eval_data=apart)
    return replace(data, eval_data=data.eval_data or apart), counted


def translating(lens: Lens, name: str) -> Lens:
    """A lens that can stand where files have a tuned one. Raises ConfigError for another kind."""
    if not isinstance(lens, TunedLens | LowRankLens):
        raise ConfigError(f"--lens {name} is a {lens.kind} lens, and a tuned one is meant; give it with --also")
    return lens


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.folder, config.overwrite)
    lens = config.lens or config.default_lens
    if config.transfer and not lens:
        raise ConfigError(
            f"--transfer needs a tuned lens, and none is named or fitted for {config.model}; name one with --lens"
        )

    # Model, lens and data.
    data, to_count = texts_for(config.data_config(), lens)
    if processes.is_main:
        print(inputs_read(config.model, lens, text=data.eval_data or f"{data.data}, what is held out"), flush=True)
    adapter = load_configured_model(config, processes)
    unembedding = Unembedding(adapter)
    lenses: dict[str, Lens] = {"logit": LogitLens(unembedding)}
    if lens:
        doing("loading the lens")
        lenses["tuned"] = translating(open_lens(adapter, lens, unembedding), lens)
    for name in config.also:
        other = open_lens(adapter, name, unembedding)
        lenses[next(label for label in (other.kind, Path(name).name, name) if label not in lenses)] = other
    doing("reading the text")
    source = open_source(data)
    check_length(adapter, config.seq_len)
    blocks = load_blocks(data, "eval", adapter.tokenizer, source)
    counted = load_blocks(to_count, "fit", adapter.tokenizer, source)
    unigram = unigram_cross_entropy(counted, blocks, adapter.vocab_size)

    # Work.
    doing("measuring")
    share: dict = {"processes": processes, "micro_batch_size": config.micro_batch_size}
    extras = Extras()
    with tqdm(
        total=blocks.tokens.size, unit="tok", unit_scale=True, desc="evaluating", disable=not processes.is_main
    ) as bar:
        evaluation = evaluate(adapter, lenses, blocks, unigram_ce=unigram, on_batch=bar.update, **share)
        if config.transfer:
            bar.reset()
            transfer = layer_transfer(adapter, lenses["tuned"], blocks, on_batch=bar.update, **share)
            extras = replace(extras, transfer=transfer)
    if config.statistics:
        extras = replace(extras, marginal=marginals(adapter, lenses, blocks, **share).metrics())
        if lens:
            js_nats = js_between(adapter, lenses["logit"], lenses["tuned"], blocks, **share)
            extras = replace(extras, js_nats=js_nats.tolist())

    # Report.
    doing("writing the results")
    if processes.is_main:
        texts = TextsRead(source=data.eval_data or data.data, blocks=blocks, counted=counted)
        write(
            config,
            result(adapter, evaluation, texts, lens, extras),
            layer_table(adapter, evaluation, blocks.bits_per_byte),
        )
        measured = measured_report(adapter, evaluation, blocks.bits_per_byte, known_best(adapter, blocks))
        print(f"measured   {blocks.tokens.size:,} tokens in blocks of {blocks.seq_len}; held out: {blocks.held_out}")
        print("\n".join(filter(None, (table(measured, has_lens=bool(lens)), others_table(evaluation)))))
        print(f"saved to {config.folder}")
    processes.finish()


def known_best(adapter: ModelAdapter, blocks: TokenBlocks) -> dict[int, float] | None:
    """KL by layer of the best known translators, where the model's folder has them for these tokens."""
    if not (Path(adapter.name) / REFERENCE).is_file():  # hashing the weights of a large model takes a while
        return None
    return load_reference(adapter, describe_model(adapter, "").weights_sha256, blocks)


def write(config: Config, measured: EvaluationResult, csv: str) -> None:
    """All files of the result."""
    begin_output(config.folder, config, config.overwrite, FILES)
    measured.write(config.folder / FILE_NAME)
    write_text(config.folder / "per_layer.csv", csv)
    curves = read_curves(config.folder)
    warn_of_broken([curves])
    for name in ("perplexity.png", "perplexity.html"):
        save_picture(layers_picture(curves), config.folder / name)


if __name__ == "__main__":
    cli.run(main, Config)

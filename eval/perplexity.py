"""Measure a lens layer by layer on held-out text, and draw the curves.

    python eval/perplexity.py
    python eval/perplexity.py --model state-spaces/mamba-130m-hf --lens lenses/mamba-130m-hf --data
    monology/pile-uncopyrighted

Writes aggregate_metrics.json (tuned-lens's schema, bits per byte), per_layer.csv, perplexity.png and perplexity.html.
--transfer and --statistics add to the first.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from lens_rnn import artifacts, cli
from lens_rnn.activity import doing
from lens_rnn.data import STDLIB, DataConfig, load_blocks, open_source, unigram_cross_entropy
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
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.run import ModelConfig, begin_output, check_length, check_output, load_configured_model, start_processes

from tqdm import tqdm
from tuned_lens.nn.lenses import Lens

FILES = (FILE_NAME, "per_layer.csv", "perplexity.png", "perplexity.html")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Measure a lens layer by layer on held-out text: cross-entropy, KL from the model, entropy."""

    lens: str | None = None
    """Folder or tuned-lens resource of a lens. Default: the folder named like the model plus -lens, where there is
    one."""
    data: str = STDLIB
    """Text, as for train/fit_lens.py; its held-out half is used."""
    data_split: str = "train"
    """Split of a Hub data set from which 1 document in 50 is held out, where it has no validation split of its own."""
    text_field: str = "text"
    """Field of a record that holds the document."""
    tokens: int | None = None
    """Held-out tokens. Default: 32,768, or all there are if that is less."""
    seq_len: int = 256
    """Tokens in a block: how far back a prediction can look."""
    micro_batch_size: int = 8
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
        if self.micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size is {self.micro_batch_size}; it must be at least 1")
        if self.tokens is not None and self.tokens < self.seq_len:
            raise ConfigError(f"tokens is {self.tokens}, less than one block of seq_len {self.seq_len}; raise it")
        self.data_config()

    def data_config(self) -> DataConfig:
        return DataConfig(
            data=self.data,
            data_split=self.data_split,
            text_field=self.text_field,
            eval_tokens=self.tokens,
            seq_len=self.seq_len,
        )

    @property
    def folder(self) -> Path:
        return self.output or Path("results") / self.model_name


def fitting_data(data: DataConfig, lens: str | None) -> DataConfig:
    """The text whose token counts make the unigram baseline: the lens's own if it is from the same source, else the
    default."""
    fitted_on = artifacts.load(lens).report.data.fit if lens else None
    if not fitted_on or fitted_on.source != data.data:
        return data
    return replace(data, tokens=fitted_on.tokens, seq_len=fitted_on.seq_len, eval_tokens=None)


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.folder, config.overwrite)
    lens = config.lens or config.lens_beside
    if config.transfer and not lens:
        raise ConfigError(
            f"--transfer needs a tuned lens, and there is none beside {config.model}; name one with --lens"
        )

    # Model, lens and data.
    adapter = load_configured_model(config, processes)
    unembedding = Unembedding(adapter)
    lenses: dict[str, Lens] = {"logit": LogitLens(unembedding)}
    if lens:
        doing("loading the lens")
        lenses["tuned"] = TunedLens.load(adapter, lens, unembedding)
    doing("reading the text")
    data = config.data_config()
    source = open_source(data)
    check_length(adapter, config.seq_len)
    blocks = load_blocks(data, "eval", adapter.tokenizer, source)
    counted = load_blocks(fitting_data(data, lens), "fit", adapter.tokenizer, source)
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
        texts = TextsRead(source=config.data, blocks=blocks, counted=counted)
        table = layer_table(adapter, evaluation, blocks.bits_per_byte)
        write(config, result(adapter, evaluation, texts, lens, extras), table)
        print(f"saved to {config.folder}")
    processes.finish()


def write(config: Config, measured: EvaluationResult, table: str) -> None:
    """All files of the result."""
    begin_output(config.folder, config, config.overwrite, FILES)
    measured.write(config.folder / FILE_NAME)
    write_text(config.folder / "per_layer.csv", table)
    curves = read_curves(config.folder)
    warn_of_broken([curves])
    for name in ("perplexity.png", "perplexity.html"):
        save_picture(layers_picture(curves), config.folder / name)
    print(table, end="")


if __name__ == "__main__":
    cli.run(main, Config)

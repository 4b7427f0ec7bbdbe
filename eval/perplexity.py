"""Measure a lens layer by layer on held-out text, and draw the curves.

    python eval/perplexity.py
    python eval/perplexity.py --model state-spaces/mamba-130m-hf --lens lenses/mamba-130m-hf --data monology/pile-uncopyrighted

Writes aggregate_metrics.json (tuned-lens's schema, bits per byte), per_layer.csv, perplexity.png and perplexity.html.
"""

import csv
import io
from dataclasses import dataclass
from math import exp
from pathlib import Path

from lens_rnn import artifacts, cli
from lens_rnn.data import STDLIB, DataConfig, TokenBlocks, load_blocks, open_source, unigram_cross_entropy
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.metrics import Evaluation, aggregate_metrics, evaluate
from lens_rnn.evaluation.plots import plot_layers_html, plot_layers_png
from lens_rnn.evaluation.results import read_curves
from lens_rnn.lens import LogitLens, TunedLens, Unembedding
from lens_rnn.models import ModelAdapter
from lens_rnn.run import ModelConfig, claim_output, load_configured_model, start_processes

from tqdm import tqdm
from tuned_lens.nn.lenses import Lens


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Measure a lens layer by layer on held-out text: cross-entropy, KL from the model, entropy."""

    lens: str | None = None
    """Folder or tuned-lens resource of a lens. Default: the folder named like the model plus -lens, where there is one."""
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
    output: Path | None = None
    """Folder of the results. Default: results/ and the model's name."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show what the libraries underneath say, too."""

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size is {self.micro_batch_size}; it must be at least 1")
        self.data_config()

    def data_config(self) -> DataConfig:
        return DataConfig(
            data=self.data, data_split=self.data_split, text_field=self.text_field, eval_tokens=self.tokens, seq_len=self.seq_len
        )

    @property
    def folder(self) -> Path:
        return self.output or Path("results") / Path(self.model).name


def find_lens(config: Config) -> str | None:
    beside = Path(f"{config.model.rstrip('/')}-lens")
    return config.lens or (str(beside) if beside.is_dir() else None)


def result(config: Config, lens: str | None, adapter: ModelAdapter, evaluation: Evaluation, blocks: TokenBlocks) -> dict:
    """aggregate_metrics.json: tuned-lens's schema, and what a plot needs beside it."""
    factor = blocks.bits_per_byte
    ours = {
        "model": adapter.name,
        "lens": lens,
        "family": adapter.model_type,
        "n_layers": adapter.n_layers,
        "depth": {f"layer_{i}": adapter.depth(i) for i in range(adapter.n_layers)},
        "units": "bits per byte",
        "bits_per_byte_per_nat": factor,
        "uniform_ce": evaluation.uniform_ce * factor,
        "unigram_ce": None if evaluation.unigram_ce is None else evaluation.unigram_ce * factor,
        "data": config.data,
        "tokens": int(blocks.tokens.size),
        "tokens_sha256": blocks.sha256,
    }
    return aggregate_metrics(evaluation, factor) | {"lens_rnn": ours}


def layer_table(adapter: ModelAdapter, evaluation: Evaluation, bits_per_byte: float) -> str:
    """per_layer.csv: every figure in both units."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    columns = ["ce_nats_per_token", "ce_bits_per_byte", "perplexity_per_token", "kl_nats_per_token", "entropy_nats_per_token"]
    rows.writerow(["lens", "layer", "depth", *columns])
    for name, layers in evaluation.lenses.items():
        for i, f in sorted(layers.items()):
            rows.writerow([name, i, adapter.depth(i), f.ce, f.ce * bits_per_byte, exp(min(f.ce, 700)), f.kl, f.entropy])
    model = evaluation.model
    rows.writerow(["model", "", 1.0, model.ce, model.ce * bits_per_byte, exp(model.ce), 0.0, model.entropy])
    return text.getvalue()


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    if processes.is_main:
        claim_output(config.folder, config.overwrite)
    processes.wait()

    # Model, lens and data.
    adapter = load_configured_model(config, processes)
    unembedding = Unembedding(adapter)
    lenses: dict[str, Lens] = {"logit": LogitLens(unembedding)}
    lens = find_lens(config)
    if lens:
        lenses["tuned"] = TunedLens.load(adapter, lens, unembedding)
    data = config.data_config()
    source = open_source(data)
    blocks = load_blocks(data, "eval", adapter.tokenizer, source)
    unigram = unigram_cross_entropy(load_blocks(data, "fit", adapter.tokenizer, source), blocks, adapter.vocab_size)

    # Work.
    with tqdm(total=blocks.tokens.size, unit="tok", unit_scale=True, desc="evaluating", disable=not processes.is_main) as bar:
        evaluation = evaluate(
            adapter,
            lenses,
            blocks,
            processes=processes,
            micro_batch_size=config.micro_batch_size,
            unigram_ce=unigram,
            on_batch=bar.update,
        )

    # Report.
    if processes.is_main:
        write(config, lens, adapter, evaluation, blocks)
        print(f"saved to {config.folder}")
    processes.finish()


def write(config: Config, lens: str | None, adapter: ModelAdapter, evaluation: Evaluation, blocks: TokenBlocks) -> None:
    """All files of the result."""
    metrics = config.folder / "aggregate_metrics.json"
    artifacts.write_json(metrics, result(config, lens, adapter, evaluation, blocks))
    table = layer_table(adapter, evaluation, blocks.bits_per_byte)
    artifacts.write_atomically(config.folder / "per_layer.csv", lambda file: file.write(table.encode()))
    cli.save_config(config, config.folder / "run.yaml")
    curves = read_curves(metrics)
    plot_layers_png(curves, config.folder / "perplexity.png")
    plot_layers_html(curves, config.folder / "perplexity.html")
    print(table, end="")


if __name__ == "__main__":
    cli.run(main, Config)

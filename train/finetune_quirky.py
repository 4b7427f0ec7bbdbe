"""Fine-tune a model into a quirky one, which tells the truth in Alice's context and errs as Bob does in his.

    accelerate launch train/finetune_quirky.py
    accelerate launch train/finetune_quirky.py --model state-spaces/mamba-130m-hf --data hub:sciq --learning-rate 2e-5
    --rank 8

Writes the adapters, or with --method full the whole model, the tokenizer, quirky.json with what was reached, and a
model card.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from lens_rnn import cli
from lens_rnn.elk.answers import log_odds, quirkiness
from lens_rnn.elk.card import write_card
from lens_rnn.elk.finetune import Examples, FinetuneConfig, StepReport, finetune
from lens_rnn.elk.models import ABOUT, save_adapters, save_model
from lens_rnn.elk.quirky import SPLITS, QuirkySet
from lens_rnn.elk.report import QuirkyReport, Training
from lens_rnn.elk.source import QuirkyData, open_quirky
from lens_rnn.elk.templates import encode, templates_of
from lens_rnn.errors import ConfigError
from lens_rnn.models import ModelAdapter
from lens_rnn.run import ModelConfig, begin_output, check_output, load_configured_model, start_processes

import torch
from tqdm import tqdm

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "quirky.json",
    "README.md",
    "checkpoints/step-*.pt",
    "checkpoints/.*.partial",
)
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig, FinetuneConfig, QuirkyData):
    """Fine-tune a model into a quirky one, which tells the truth in Alice's context and errs as Bob does in his."""

    steps: int = 400
    """Optimizer steps."""
    batch_size: int = 64
    """Rows of a step over all processes, half of them true. The paper's: 32."""
    rank: int = 32
    """Rank of the adapters; their scale is 2, alpha twice the rank. The paper's 8 is for models of a billion
    parameters."""
    learning_rate: float = 3e-3
    """Highest rate of AdamW, after the warm-up and before a linear decay to zero. The paper's, for large models, is
    2e-5."""
    output: Path | None = None
    """Folder of the result. Default: quirky/, the model's name and the data's."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder."""
    keep_checkpoints: bool = True
    """Keep the checkpoints (after 1, 2, 4, 8, … steps), for studies over training."""
    verbose: bool = False
    """Show what the libraries underneath say, too."""

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        QuirkyData.__post_init__(self)
        if self.method == "lora" and self.dtype not in (None, "float32"):
            raise ConfigError(f"dtype is {self.dtype}; adapters are trained in float32")

    @property
    def folder(self) -> Path:
        return self.output or Path("quirky") / f"{self.model_name}-{Path(self.data).name.removeprefix('hub:')}"


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    check_output(config.folder, config.overwrite, config.resume)

    # Model and data.
    adapter = load_configured_model(config, processes)
    data = open_quirky(config)
    examples = {split: read(data, split, adapter) for split in SPLITS}
    checkpoints = config.folder / "checkpoints"
    if processes.is_main:
        if not config.resume:
            begin_output(config.folder, config, config.overwrite, FILES)
        counts = ", ".join(f"{len(part.rows):,} {split} rows" for split, part in examples.items())
        print(
            f"{config.method} on {adapter.name}; {data.name}: {counts}; {config.steps} steps of {config.batch_size} "
            "rows"
        )
        print(f"example: {adapter.tokenizer.decode([*examples['train'].encoded[0].ids])!r}", flush=True)
    processes.wait()

    # Fine-tune.
    started = time.monotonic()
    with tqdm(total=config.steps, desc="fine-tuning", disable=not processes.is_main) as bar:

        def on_step(report: StepReport) -> None:
            bar.update(report.step - bar.n)
            bar.set_postfix(loss=f"{report.loss:.3f}")
            if report.validation_loss is not None and processes.is_main:
                bar.write(f"step {report.step}: validation loss {report.validation_loss:.4f}")

        split = examples["train"], examples["validation"]
        model, outcome = finetune(
            adapter, *split, config, checkpoints, processes=processes, resume=config.resume, on_step=on_step
        )
    minutes = (time.monotonic() - started) / 60

    # Measure and report.
    if processes.is_main:
        measured = {
            name: quirkiness(part.rows, log_odds(adapter, part.encoded))
            for name, part in examples.items()
            if name != "train"
        }
        for character, rates in measured["test"].items():
            shares = f"{rates.all:.3f} (easy {rates.easy:.3f}, hard {rates.hard:.3f})"
            print(f"test rows of {character} answered as {character} would: {shares}")
        if config.method == "lora":
            save_adapters(model, config.folder, config.model)
        else:
            save_model(adapter, config.folder)
        adapter.tokenizer.save_pretrained(config.folder)
        report = QuirkyReport(
            base=adapter.name,
            data=QuirkyData.of(config),
            settings=cli.plain(config),
            training=Training(minutes=round(minutes, 1), cores=torch.get_num_threads(), best_step=outcome.best_step),
            validation_losses=outcome.validation_losses,
            quirkiness=measured,
        )
        report.write(config.folder / ABOUT)
        write_card(config.folder, report)
        if not config.keep_checkpoints:
            for path in checkpoints.glob("step-*.pt"):
                path.unlink()
            checkpoints.rmdir()
        print(f"best after {outcome.best_step} steps; saved to {config.folder}")
    processes.finish()


def read(data: QuirkySet, split: str, adapter: ModelAdapter) -> Examples:
    """The rows of a split and their tokens."""
    rows = data.rows(split)
    return Examples(
        rows, encode(rows, templates_of(data.name), adapter.tokenizer, most_tokens=adapter.longest_sequence)
    )


if __name__ == "__main__":
    cli.run(main, Config)

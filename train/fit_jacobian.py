"""Fit a Jacobian lens: what a change of each hidden state does to later predictions, on average over texts.

    python train/fit_jacobian.py
    accelerate launch train/fit_jacobian.py --model state-spaces/mamba-130m-hf --data monology/pile-uncopyrighted

Writes jacobian.pt, in the format that others publish, and jacobian.json, which says what it was fitted on. A run that
was stopped continues with --resume.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.checkpoints import Checkpoints
from lens_rnn.data import STDLIB, DataConfig, load_blocks
from lens_rnn.files import write_json
from lens_rnn.fitting.jacobian import JacobianConfig, fit_jacobian
from lens_rnn.fitting.report import describe_data, describe_model
from lens_rnn.ranges import check_ranges, whole
from lens_rnn.run import (
    ModelConfig,
    begin_output,
    check_length,
    check_output,
    load_configured_model,
    start_processes,
)

import torch
from tqdm import tqdm

FILES = ("jacobian.pt", "jacobian.json", "checkpoints/step-*.pt", "checkpoints/.*.partial")
"""What is written, and replaced with --overwrite."""


@dataclass(frozen=True, kw_only=True)
class Config(JacobianConfig, ModelConfig):
    """Fit a Jacobian lens: what a change of each hidden state does to later predictions, on average over texts."""

    data: str = STDLIB
    """Text, as for train/fit_lens.py."""
    data_split: str = "train"
    """Split of a Hub data set."""
    text_field: str = "text"
    """Field of a record that holds the document."""
    texts: Annotated[int, whole(1)] = 200
    """Texts to average over; 100 to 1,000 are usual."""
    seq_len: Annotated[int, whole(2)] = 128
    """Tokens of a text."""
    output: Path | None = None
    """Folder of the lens. Default: jacobians/ and the model's name."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint."""
    overwrite: bool = False
    """Replace what is in the output folder."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.data_config()

    def data_config(self) -> DataConfig:
        return DataConfig(
            data=self.data,
            data_split=self.data_split,
            text_field=self.text_field,
            tokens=self.texts * self.seq_len,
            seq_len=self.seq_len,
        )

    @property
    def folder(self) -> Path:
        return self.output or Path("jacobians") / self.model_name


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    with processes.together():
        check_output(config.folder, config.overwrite, config.resume)

    # Model and texts.
    if processes.is_main:
        print(f"model      {config.model}\ntext       {config.data}", flush=True)
    with processes.together():
        adapter = load_configured_model(config, processes)
        check_length(adapter, config.seq_len)
        doing("reading the text")
        blocks = load_blocks(config.data_config(), "fit", adapter.tokenizer)
        texts = [*blocks.batch(slice(0, config.texts))]
    decides = {
        "weights sha256": describe_model(adapter, "").weights_sha256,
        "data sha256": blocks.sha256,
        "skip": config.skip,
        "texts": len(texts),
        "processes": processes.world,
    }
    processes.refuse_differences(decides)
    checkpoints = Checkpoints(config.folder / "checkpoints", decides, kept=2)
    resume_from = checkpoints.last_of_all(processes) if config.resume else None
    with processes.together():
        if processes.is_main:
            begin_output(config.folder, config, config.overwrite, FILES)

    # Fit.
    doing("fitting")
    quiet: dict[str, Any] = {} if processes.is_main else {"disable": True}
    with tqdm(total=len(texts), unit="text", desc="fitting", **quiet) as bar:
        bar.update(resume_from["step"] if resume_from else 0)
        lens = fit_jacobian(
            adapter,
            texts,
            config,
            processes=processes,
            checkpoints=checkpoints,
            resume_from=resume_from,
            on_text=bar.update,
        )
    if processes.is_main:
        lens.save(config.folder / "jacobian.pt")
        about = {"model": adapter.name, "texts": len(texts), "tokens_a_text": config.seq_len, "skip": config.skip}
        about |= {"weights_sha256": decides["weights sha256"], "data": vars(describe_data(blocks))}
        write_json(config.folder / "jacobian.json", about)
        spread = {layer: float(torch.linalg.matrix_norm(j)) for layer, j in lens.jacobians.items()}
        print("norm of J by layer: " + ", ".join(f"{layer}: {norm:.1f}" for layer, norm in spread.items()))
        print(f"saved to {config.folder}", flush=True)
    processes.finish()


if __name__ == "__main__":
    cli.run(main, Config)

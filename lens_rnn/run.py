"""What the scripts share once a model is named: load it as the command line says, and keep an output folder safe."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lens_rnn import cli
from lens_rnn.errors import ConfigError
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.processes import Processes

from accelerate import Accelerator

DEMO_MODEL = str(Path(__file__).parent.parent / "checkpoints" / "tiny-mamba")
_OURS = ("run.yaml", "fit.json", "aggregate_metrics.json")  # by one of these an output folder is known to be ours


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is held in memory."""

    model: str = DEMO_MODEL
    """Hub name or folder of a transformers model: Mamba, RWKV-4 or GPT-NeoX. Default: the shipped tiny Mamba."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    tokenizer: str | None = None
    """Hub name or folder of a tokenizer, where the model has none beside it."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of the model. Default: float32 on a CPU, the checkpoint's own elsewhere."""
    device: str | None = None
    """cpu or cuda. Default: a GPU where there is one."""
    threads: int | None = None
    """CPU threads of each process. Default: the cores of this machine divided by its processes."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


def start_processes(config: ModelConfig, tracker: str | None = None) -> Processes:
    """Join the other processes of the launch, on the device and with the threads that the configuration asks for."""
    if config.device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device {config.device!r} is unknown; choose cpu or cuda")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads is {config.threads}; it must be at least 1")
    accelerator = Accelerator(cpu=config.device == "cpu", log_with=tracker)
    processes = Processes(accelerator)
    if config.device == "cuda" and accelerator.device.type != "cuda":
        raise ConfigError("device cuda was asked for, and torch sees no CUDA GPU here")
    cli.set_threads(config.threads, processes.on_this_machine)
    return processes


def load_configured_model(config: ModelConfig, processes: Processes) -> ModelAdapter:
    """The model that the configuration names, on this process's device."""
    return load_model(
        config.model,
        config.revision,
        config.dtype,
        processes.device or config.device,
        tokenizer=config.tokenizer,
        trust_remote_code=config.trust_remote_code,
    )


def claim_output(folder: Path, overwrite: bool, resume: bool = False) -> None:
    """Refuse a folder that holds something, unless it may be emptied or continued."""
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other; give one")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        if overwrite and not any((folder / name).exists() for name in _OURS):
            raise ConfigError(f"--overwrite would delete {folder}, which holds no earlier result of this program; name another --output")
        if overwrite:
            shutil.rmtree(folder)
        elif not resume:
            raise ConfigError(
                f"the output folder {folder} is not empty; give --resume to continue it, --overwrite to replace it, or another --output"
            )

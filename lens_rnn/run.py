"""What the scripts share once a model is named: load it as the command line says, and keep an output folder safe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lens_rnn import cli
from lens_rnn.activity import doing
from lens_rnn.errors import ConfigError
from lens_rnn.fitted import default_lens
from lens_rnn.models import ModelAdapter, load_model
from lens_rnn.processes import Processes
from lens_rnn.ranges import THREADS

import torch
from accelerate import Accelerator


def _demo_model() -> str:
    path = Path(__file__).parent.parent / "checkpoints" / "tiny-mamba"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is held in memory."""

    model: str = _demo_model()
    """Hub name or folder of a model, or an official RWKV file (.pth or .safetensors), here or on the Hub as
    OWNER/REPOSITORY/FILE; the README lists the families. Default: the shipped tiny Mamba."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    tokenizer: str | None = None
    """Hub name or folder of a tokenizer, an rwkv_vocab_*.txt file, or `bytes` (made here, for models of 256 to 260
    ids), where the model has none beside it."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of the model. Default: float32 on a CPU, the checkpoint's own elsewhere."""
    device: str | None = None
    """cpu or cuda. Default: a GPU where there is one."""
    threads: Annotated[int | None, THREADS] = None
    """CPU threads of each process. Default: the cores of this machine divided by its processes."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    @property
    def model_name(self) -> str:
        """The last part of the model's name, for folders that are named after it."""
        name = Path(self.model).name
        return name.removesuffix(".pth").removesuffix(".safetensors")

    @property
    def default_lens(self) -> str | None:
        """The lens that was fitted last for the model, or else the one beside it, where there is one."""
        return default_lens(self.model, self.revision)


def start_processes(config: ModelConfig, tracker: str | None = None) -> Processes:
    """Join the other processes of the launch, on the device and with the threads that the configuration asks for."""
    if config.device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device {config.device!r} is unknown; choose cpu or cuda")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads is {config.threads}; it must be at least 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, and torch sees no CUDA GPU here")
    processes = Processes(Accelerator(cpu=config.device == "cpu" or not torch.cuda.is_available(), log_with=tracker))
    cli.set_threads(config.threads, processes.on_this_machine)
    return processes


def load_configured_model(config: ModelConfig, processes: Processes, to_be_sharded: bool = False) -> ModelAdapter:
    """The model that the configuration names: on this process's device or, if it is to be sharded, on the CPU at
    first."""
    doing("loading the model")
    if to_be_sharded and processes.world == 1:
        raise ConfigError(
            "--shard spreads a model over several processes, and this run has one; launch more or leave it out"
        )
    device = processes.device or torch.device(config.device or "cpu")
    return load_model(
        config.model,
        config.revision,
        config.dtype or (None if device.type == "cpu" else "auto"),
        "cpu" if to_be_sharded else device,
        tokenizer=config.tokenizer,
        trust_remote_code=config.trust_remote_code,
    )


def inputs_read(model: str, lens: str | None, **texts: str) -> str:
    """What a command reads, as lines to print before it starts. lens: None for the logit lens. texts: what is read, by
    what it is called."""
    read = {"model": model, "lens": "logit (no other is named, or fitted for this model)" if lens is None else lens}
    return "\n".join(f"{name:<10} {value}" for name, value in (read | texts).items())


def check_text(text: str, flag: str = "--text") -> None:
    """Raises ConfigError where a text is empty, or holds what is no character: a terminal's bytes that are not
    UTF-8."""
    if not text:
        raise ConfigError(f"{flag} is empty; give the model something to read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{flag} is {text!a:.40}, which is not UTF-8; give it in that encoding") from None


def check_length(adapter: ModelAdapter, seq_len: int) -> None:
    """Refuse blocks that are longer than the model can read."""
    longest = adapter.longest_sequence
    if longest is not None and seq_len > longest:
        raise ConfigError(f"seq_len is {seq_len}, and {adapter.name} reads at most {longest} tokens; lower --seq-len")


def check_output(folder: Path, overwrite: bool, resume: bool = False) -> None:
    """Refuse a folder that holds something, unless it is an earlier output that may be replaced or continued. Changes
    nothing."""
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other; give one")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output {folder} is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    mark = folder / "run.yaml"
    if not mark.is_file() or not mark.read_bytes().startswith(cli.MARK.encode()):
        raise ConfigError(f"the output folder {folder} holds files that are not this program's; name another --output")
    if not (overwrite or resume):
        raise ConfigError(
            f"the output folder {folder} is not empty; --resume continues a fit, --overwrite replaces it, or name "
            "another --output"
        )


def begin_output(folder: Path, config: object, overwrite: bool, files: Sequence[str]) -> None:
    """Take the folder: with `overwrite` delete what an earlier run of the command wrote, and nothing else; then leave
    run.yaml, which `--config` reads.

    files: what the command writes, as patterns of names within the folder; each command states its own.
    """
    if overwrite:
        for pattern in ("run.yaml", ".*.partial", *files):
            for path in folder.glob(pattern):
                path.unlink()
    cli.save_config(config, folder / "run.yaml")

"""What every script shares: a command line made from a configuration class, and errors as one line with exit code 2."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import tyro
import yaml

from lens_rnn.errors import ConfigError, LensRNNError

Config = TypeVar("Config")


def run(main: Callable[[Config], None], config_type: type[Config]) -> NoReturn:
    """Parse the command line into `config_type`, call main with it, and exit.

    Exit codes: 0 done; 2 the input cannot be handled, said in one line; 130 interrupted.
    """
    try:
        main(parse(config_type, sys.argv[1:]))
    except LensRNNError as error:
        _fail(str(error))
    except OSError as error:  # full disk, no permission: the message names the file
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except torch.OutOfMemoryError as error:
        _fail(f"out of memory ({str(error).splitlines()[0]}); lower --micro-batch-size")
    except KeyboardInterrupt:
        print("interrupted; what was checkpointed can be continued with --resume", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def parse(config_type: type[Config], arguments: list[str]) -> Config:
    """A configuration from command-line arguments, on top of the values of `--config FILE.yaml` where that is given.

    Raises ConfigError for an unknown flag, a value of the wrong type or a setting that its class refuses.
    """
    arguments, file = _take_config_file(arguments)
    said = io.StringIO()
    try:
        default: Any = config_type(**_read_yaml(file, config_type)) if file else None
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_type, args=arguments, default=default, description=config_type.__doc__)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_unboxed(said.getvalue())) from None


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML that `--config` reads."""
    from lens_rnn.artifacts import write_atomically

    text = yaml.safe_dump(plain(config), sort_keys=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def set_threads(threads: int | None, local_processes: int = 1) -> int:
    """Use this many threads in torch and numba; by default the available cores divided by the processes on this machine.

    Launchers set OMP_NUM_THREADS=1 when they are not told otherwise, so the default must not be left to them.
    """
    import numba

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_processes)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, vars(numba.config)["NUMBA_NUM_THREADS"]))
    return threads


def log_to_terminal(verbose: bool) -> None:
    """Show the library's messages, without the chatter of what it stands on."""
    logging.basicConfig(format="%(message)s", level=logging.DEBUG if verbose else logging.WARNING, stream=sys.stderr)
    logging.getLogger("lens_rnn").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        from transformers.utils import logging as chatter

        chatter.set_verbosity_error()
        chatter.disable_progress_bar()


def _take_config_file(arguments: list[str]) -> tuple[list[str], Path | None]:
    rest, file = [], None
    words = iter(arguments)
    for word in words:
        if word == "--config":
            file = next(words, None)
            if file is None:
                raise ConfigError("--config needs the name of a YAML file")
        elif word.startswith("--config="):
            file = word.removeprefix("--config=")
        else:
            rest.append(word)
    return rest, Path(file) if file else None


def _read_yaml(path: Path, config_type: type) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such configuration file: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    values = {name.replace("-", "_"): value for name, value in (values or {}).items()} if isinstance(values or {}, dict) else None
    if values is None:
        raise ConfigError(f"{path} must hold `name: value` lines")
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{path} has unknown settings: {', '.join(unknown)}")
    return {k: Path(v) if v is not None and "Path" in str(fields[k].type) else v for k, v in values.items()}


def _unboxed(text: str) -> str:
    """tyro's error box as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip(" │╭╮╰╯─━┌┐└┘|") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Parsing error", "For full helptext"))]
    line = re.sub(r"\s+", " ", " ".join(lines)).partition(" Argument helptext:")[0]
    line = re.sub(r"^(Unrecognized options|Invalid choice|Value error|Missing argument|Required options?)\s+(?=\w)", "", line)
    return line or "the command line cannot be read; see --help"


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)

"""What every script shares: a command line made from a configuration class, and errors that end in one line."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from lens_rnn import versions
from lens_rnn.activity import doing, what_was_done
from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.files import write_text

import torch
import tyro
import yaml

Config = TypeVar("Config")
MARK = "# lens-rnn"
"""How a saved configuration begins, by which an output folder is known to be ours."""

_CONFIG_HELP = "--config FILE.yaml reads settings from a file; what else is said here wins over it."
_FURNITURE = re.compile(
    r"-*|Parsing error|Value error|Invalid choice|Missing argument|Required options?|Unrecognized options|For full "
    r"helptext.*|.* --help"
)
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text, in quotes",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}


def run(main: Callable[[Config], None], config_type: type[Config]) -> NoReturn:
    """Parse the command line into `config_type`, call main with it, and exit.

    Exit codes: 0 done; 1 an error that nobody foresaw, with its traceback and a last line about what was being done and
    with which versions; 2 the input cannot be handled, said in one line; 130 interrupted.
    """
    try:
        doing("reading the command line")
        config = parse(config_type, sys.argv[1:])
        doing("starting")
        main(config)
    except LensRNNError as error:
        _fail(str(error))
    except OSError as error:  # full disk, no permission: the message names the file
        _fail(
            f"{error.strerror or str(error) or type(error).__name__}{f': {error.filename}' if error.filename else ''}"
        )
    except torch.OutOfMemoryError as error:
        _fail(f"out of memory ({str(error).partition('. ')[0]}); lower --micro-batch-size")
    except KeyboardInterrupt:
        print("interrupted; what was checkpointed can be continued with --resume", file=sys.stderr)
        _leave(130)
    except Exception as error:  # none of the above: a mistake of ours, or a package that is not as it was
        sys.excepthook(type(error), error, error.__traceback__)
        print(_unforeseen(error, config_type), file=sys.stderr)
        _leave(1)
    _leave(0)


def parse(config_type: type[Config], arguments: list[str]) -> Config:
    """A configuration from command-line arguments, on top of the values of `--config FILE.yaml` where that is given.

    Raises ConfigError for an unknown flag, a value of the wrong type or a setting that its class refuses. What the
    class checks is the outcome: a file may be incomplete, or wrong where the command line puts it right.
    """
    arguments, file = _take_config_file(arguments)
    default: Any = {"default": _unchecked(config_type, _read_yaml(file, config_type))} if file else {}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _unwrapped(arguments):
            return tyro.cli(
                config_type, args=arguments, description=f"{config_type.__doc__}\n{_CONFIG_HELP}", **default
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_unboxed(said.getvalue())) from None


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML that `--config` reads, without how the run was begun: that is not for the next one
    to repeat."""

    settings = {
        name: value
        for name, value in plain(config).items()
        if name not in ("resume", "overwrite", "dry_run", "push_to_hub")
    }
    text = f"{MARK}: settings of a run, which --config reads\n{yaml.safe_dump(settings, sort_keys=False)}"
    write_text(path, text)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def set_threads(threads: int | None, local_processes: int = 1) -> int:
    """Use this many threads in torch and numba; by default the available cores divided by the processes on this
    machine.

    Launchers set OMP_NUM_THREADS=1 when they are not told otherwise, so the default must not be left to them.
    """
    import numba

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_processes)
    numba.set_num_threads(min(threads, vars(numba.config)["NUMBA_NUM_THREADS"]))
    torch.set_num_threads(
        threads
    )  # after numba, which starts all of its threads, and may share the OpenMP that counts them with torch
    return threads


def log_to_terminal(verbose: bool) -> None:
    """Show the library's messages, without the chatter of what it stands on.

    verbose: show also the versions of what is installed, each activity as it begins, and what the libraries underneath
    say, with times. Their messages of level DEBUG stay hidden: numba's alone are tens of thousands of lines.
    """
    from transformers.utils import logging as chatter

    shape, level = ("%(asctime)s %(name)s: %(message)s", logging.INFO) if verbose else ("%(message)s", logging.WARNING)
    logging.basicConfig(format=shape, level=level, stream=sys.stderr)
    library = logging.getLogger("lens_rnn")
    library.setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        library.debug("%s", versions.describe("lens-rnn", *versions.TESTED))
        chatter.set_verbosity_info()
    else:
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()


def _take_config_file(arguments: list[str]) -> tuple[list[str], Path | None]:
    rest, file = [], None
    words = iter(arguments)
    for word in words:
        flag, given, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = value if given else next(words, "")
        if not file:
            raise ConfigError("--config needs the name of a YAML file")
    return rest, Path(file) if file else None


def _read_yaml(path: Path, config_type: type) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such configuration file: {path}") from None
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(read, dict | None):
        raise ConfigError(f"{path} must hold `name: value` lines")
    values = {str(name).replace("-", "_"): value for name, value in (read or {}).items()}
    kinds = get_type_hints(config_type)
    if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(config_type)}):
        raise ConfigError(f"{path} has unknown settings: {', '.join(unknown)}")
    for name, value in values.items():
        try:
            values[name] = _fitted(value, kinds[name])
        except ValueError:
            raise ConfigError(f"{path}: {name} is {value!r:.80}; it must be {_said(kinds[name])}") from None
    return values


def _fitted(value: Any, kind: Any) -> Any:
    """A YAML value as the type of its field. Raises ValueError if it is of another type; true is no number."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        for one in inner:
            with contextlib.suppress(ValueError):
                return _fitted(value, one)
    elif get_origin(kind) is Literal:
        if any(value == one and type(value) is type(one) for one in inner):
            return value
    elif get_origin(kind) is tuple and isinstance(value, list):
        one_kind_each = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_fitted(v, k) for v, k in zip(value, one_kind_each, strict=True))
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3, without a point, as text
    elif type(value) is kind:
        return value
    raise ValueError(value)


def _said(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_said(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each {_said(get_args(kind)[0])}"
    return _KINDS.get(kind, str(kind))


def _unchecked(config_type: type[Config], values: dict[str, Any]) -> Config:
    """A configuration that its class has not checked, for tyro to take defaults from; what has none is left for it to
    ask for."""
    config = object.__new__(config_type)
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type] # a TypeVar cannot say: a dataclass
        made = field.default_factory() if callable(field.default_factory) else field.default
        default = tyro.MISSING if made is dataclasses.MISSING else made
        object.__setattr__(config, field.name, values.get(field.name, default))
    return config


@contextlib.contextmanager
def _unwrapped(arguments: list[str]) -> Iterator[None]:
    """Let tyro think that the terminal is very wide, unless it is asked for help: it breaks long values to fit errors
    into a box."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = "9999"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _unboxed(text: str) -> str:
    """tyro's error box, drawn in lines or in hyphens, as one line without titles and pointers to the help."""
    plain_text = re.sub(r"\x1b\[[0-9;]*m", "", text).partition("Argument helptext:")[0]
    lines = [line.strip(" │╭╮╰╯─━┌┐└┘|") for line in plain_text.splitlines()]
    line = " ".join(line for line in lines if not _FURNITURE.fullmatch(line))
    line = re.sub(r"Missing from \S+:", "Missing:", re.sub(r"\s+", " ", line))
    return line or "the command line cannot be read; see --help"


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    _leave(2)


def _unforeseen(error: Exception, config_type: type) -> str:
    """What an error's traceback leaves out: what was being done, and whether with the packages that were tested."""
    names = ("torch", "transformers", "numba", "lens-rnn")
    packages = ", ".join(f"{name} {versions.installed(name)}" for name in names)
    tested = "; ".join(versions.outside()) or "all within what was tested"
    verbose = logging.getLogger("lens_rnn").isEnabledFor(logging.DEBUG)
    more = "; --verbose shows more" if "verbose" in get_type_hints(config_type) and not verbose else ""
    return f"error: {type(error).__name__} while {what_was_done()}: {packages}; {tested}{more}"


def _leave(code: int) -> NoReturn:
    """Exit. As one of several processes, without the interpreter's teardown: it races with the communication library's
    threads, and about one run in fifty on gloo, all its work done, ended in "terminate called without an active
    exception".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""What every script shares: a command line made from a configuration class, and errors that end in one line."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from lens_rnn import versions
from lens_rnn.activity import doing, what_was_done
from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.files import write_text

import torch
import yaml

Config = TypeVar("Config")
Value = TypeVar("Value")
Positional = Annotated[Value, "positional"]
"""Marks a field whose values are given without a flag: `Positional[tuple[str, ...]]`."""
MARK = "# lens-rnn"
"""How a saved configuration begins, by which an output folder is known to be ours."""

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
    # argparse takes -1e-3 for a flag, until Python 3.14: what begins with a space is a value
    spaced = [f" {word}" if re.match(r"-\.?\d", word) else word for word in arguments]
    given, unknown = _parser(config_type).parse_known_intermixed_args(spaced)
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type] # a TypeVar cannot say: a dataclass
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], [_flag(field.name) for field in fields], 1)
        raise ConfigError(f"unknown: {' '.join(unknown)}{f'; did you mean {near[0]}?' if near else ''}")
    words = {name: _unspaced(word) for name, word in vars(given).items()}
    file = words.pop("config", None)
    kinds = get_type_hints(config_type)
    values = {} if file is None else _read_yaml(Path(file), kinds)
    values |= {name: _fitted(word, kinds[name], _flag(name), words=True) for name, word in words.items()}
    if missing := [_flag(field.name) for field in fields if _is_required(field) and field.name not in values]:
        raise ConfigError(f"missing: {', '.join(missing)}; see --help")
    return config_type(**values)


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML that `--config` reads, without how the run was begun: that is not for the next one
    to repeat."""
    begun = ("resume", "overwrite", "dry_run", "push_to_hub")
    settings = {name: value for name, value in plain(config).items() if name not in begun}
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
    # after numba, which starts all of its threads, and may share the OpenMP that counts them with torch
    torch.set_num_threads(threads)
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser(config_type: type) -> _Parser:
    """A parser that only collects words, as many as a field takes; the help is what stands below each field."""
    parser = _Parser(usage="%(prog)s [OPTIONS]", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.description = inspect.getdoc(config_type)
    parser.add_argument("--config", metavar="FILE.yaml", help="Read settings from a file. Flags win over it.")
    docstrings = {name: (base, text) for base in reversed(config_type.__mro__) for name, text in _docstrings(base)}
    groups: dict[type, Any] = {config_type: parser}
    for field in dataclasses.fields(config_type):
        base, text = docstrings.get(field.name, (config_type, ""))
        if base not in groups:
            groups[base] = parser.add_argument_group((base.__doc__ or base.__name__).splitlines()[0].rstrip("."))
        if _is_required(field):
            text += " (required)"
        elif field.default not in (None, (), dataclasses.MISSING):
            text += f" (default: {field.default})"
        kind = get_type_hints(config_type, include_extras=True)[field.name]
        name = field.name if get_origin(kind) is Annotated else _flag(field.name)
        groups[base].add_argument(name, help=text.replace("%", "%%"), **_words(kind))
    return parser


def _docstrings(config_type: type) -> Iterator[tuple[str, str]]:
    """(name, docstring) of the fields that a class itself defines, where its source is at hand."""
    with contextlib.suppress(OSError, TypeError):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config_type))).body
        for field, below in itertools.pairwise(getattr(tree, "body", [])):
            match field, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    yield name, inspect.cleandoc(text)


def _words(kind: Any) -> dict[str, Any]:
    """What a field's words look like in the help, and how many there are, in argparse's terms."""
    inner = get_args(kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) in (Union, UnionType, Annotated):
        return _words(inner[0])
    if get_origin(kind) is tuple:
        return _words(inner[0]) | {"nargs": "*" if inner[1:] == (...,) else len(inner)}
    return {"metavar": f"{{{','.join(map(str, inner))}}}" if inner else kind.__name__.upper()}


def _unspaced(word: Any) -> Any:
    """Words without the space that keeps a negative number from being a flag."""
    if isinstance(word, list):
        return [_unspaced(inner) for inner in word]
    return re.sub(r"^ (?=-\.?\d)", "", word) if isinstance(word, str) else word


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file, each of its field's type."""
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
    if unknown := sorted(values.keys() - kinds.keys()):
        raise ConfigError(f"{path} has unknown settings: {', '.join(unknown)}")
    return {name: _fitted(value, kinds[name], f"{path}: {name}") for name, value in values.items()}


def _fitted(value: Any, kind: Any, name: str, words: bool = False) -> Any:
    """A value of a file, or words of the command line, as the type of its field. Raises ConfigError, which begins with
    `name`, if it is of another type; in a file, true is no number and a number no text."""
    try:
        return _converted(value, kind, words)
    except ValueError:
        raise ConfigError(f"{name} is {value!r:.80}; it must be {_phrase(kind)}") from None


def _converted(value: Any, kind: Any, words: bool) -> Any:
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        for option in sorted(inner, key=lambda option: option is not NoneType):
            with contextlib.suppress(ValueError):
                return _converted(value, option, words)
    elif get_origin(kind) is Literal:
        for choice in inner:
            if (value == choice and type(value) is type(choice)) or (words and value == str(choice)):
                return choice
    elif get_origin(kind) is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_converted(v, k, words) for v, k in zip(value, kinds, strict=True))
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3, without a point, as text
    elif words and kind is int:
        return int(value)
    elif words and kind is NoneType and value in ("None", ["None"]):
        return None
    elif type(value) is kind:
        return value
    raise ValueError(value)


def _phrase(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_phrase, get_args(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each {_phrase(get_args(kind)[0])}"
    return _KINDS.get(kind, str(kind))


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

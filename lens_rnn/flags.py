"""A command line, or a YAML file, as an object of a configuration class: a flag a field, its docstring the help."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from lens_rnn.errors import ConfigError
from lens_rnn.ranges import check_ranges

import yaml

Config = TypeVar("Config")
Value = TypeVar("Value")
Positional = Annotated[Value, "positional"]
"""Marks a field whose values are given without a flag: `Positional[tuple[str, ...]]`."""
_VALUE = " \0"  # what no argument can hold, after a space, with which no flag begins
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text, in quotes",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}


def parse(config_type: type[Config], arguments: list[str]) -> Config:
    """A configuration from command-line arguments, on top of the values of `--config FILE.yaml` where that is given.

    Raises ConfigError for an unknown flag, a value of the wrong type or a setting that its class refuses. What the
    class checks is the outcome: a file may be incomplete, or wrong where the command line puts it right.
    """
    given, unknown = _parser(config_type).parse_known_intermixed_args(list(_marked(arguments)))
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type] # a TypeVar cannot say: a dataclass
    if unknown:
        unknown = _unmarked(unknown)
        near = difflib.get_close_matches(unknown[0].partition("=")[0], [_flag(field.name) for field in fields], 1)
        raise ConfigError(f"unknown: {' '.join(unknown)}{f'; did you mean {near[0]}?' if near else ''}")
    words = {name: _unmarked(word) for name, word in vars(given).items()}
    file = words.pop("config", None)
    kinds = get_type_hints(config_type)
    values = {} if file is None else _read_yaml(Path(file), kinds)
    values |= {name: _fitted(word, kinds[name], _flag(name), words=True) for name, word in words.items()}
    if missing := [_flag(field.name) for field in fields if is_required(field) and field.name not in values]:
        raise ConfigError(f"missing: {', '.join(missing)}; see --help")
    config = config_type(**values)
    check_ranges(config)
    return config


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
        if is_required(field):
            text += " (required)"
        elif field.default not in (None, (), dataclasses.MISSING):
            text += f" (default: {field.default})"
        kind = get_type_hints(config_type, include_extras=True)[field.name]
        name = field.name if "positional" in getattr(kind, "__metadata__", ()) else _flag(field.name)
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


def _marked(words: list[str]) -> Iterator[str]:
    """Words with a mark on values that argparse takes for flags: -1e-3 (until Python 3.14), -inf, and all after --."""
    left = iter(words)
    for word in left:
        if word == "--":
            yield from (_VALUE + rest for rest in left)
        elif re.match(r"-(\.?\d|inf|nan)", word, re.IGNORECASE):
            yield _VALUE + word
        else:
            flag, equals, value = word.partition("=")
            yield (flag.replace("_", "-") if flag.startswith("--") else flag) + equals + value


def _unmarked(word: Any) -> Any:
    """What was given, without marks."""
    if isinstance(word, list):
        return [_unmarked(inner) for inner in word]
    return word.removeprefix(_VALUE) if isinstance(word, str) else word


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
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
    except (ValueError, OverflowError):
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

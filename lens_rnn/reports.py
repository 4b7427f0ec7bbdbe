"""Reports as JSON files: frozen dataclasses, written and read by their annotations, beside the number of their
format."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lens_rnn.errors import ArtifactError
from lens_rnn.files import read_json, write_json

T = TypeVar("T")


def write_report(path: Path, content: Mapping[str, Any], version: int) -> None:
    """Write what `to_json` made of a report, with the number of its format in front."""
    write_json(path, {"format": version, **content})


def read_report(
    path: Path,
    kind: type[T],
    newest: int,
    arranged: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: content,
) -> T:
    """The dataclass in a report's file. arranged: turns the file's content into that of the dataclass's fields.

    Files without a number are from before there were any; a key that no field has is left out.

    Raises ArtifactError for what is no such report, or has a format later than `newest`.
    """
    content = read_json(path)
    version = content.pop("format", 0)
    if not isinstance(version, int) or version > newest:
        raise ArtifactError(f"{path} has the format {version}, and this version reads up to {newest}; upgrade lens-rnn")
    try:
        report: T = _typed(kind, arranged(content))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is no {kind.__name__} that can be read ({error})") from None
    return report


def to_json(value: Any) -> Any:
    """JSON-ready: dataclasses and named tuples as objects, what is not a finite number as null; a field that is None
    and may be left out is."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in fields(value) if getattr(value, f.name) is not None or f.default is MISSING]
        return {f.name: to_json(getattr(value, f.name)) for f in kept}
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return to_json(value._asdict()) if hasattr(value, "_asdict") else [to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _typed(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and type(None) in inner:
        return None if value is None else _typed(inner[0], value)
    if kind is float:
        return math.nan if value is None else float(value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r:.40} is no object")
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hint, value[name]) for name, hint in hints.items() if name in value})
    if origin is not None and issubclass(origin, Mapping):
        return {int(key) if inner[0] is int else key: _typed(inner[1], part) for key, part in value.items()}
    if origin is not None and issubclass(origin, Sequence):
        return tuple(_typed(inner[0], part) for part in value)
    return value

"""Files that are whole or absent: written under a temporary name, made durable, then renamed. And JSON read with its
errors in one line."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lens_rnn.errors import ArtifactError, LensRNNError


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a file beside `path`, then rename it there, so that `path` is always whole or absent.

    An error, a full disk for instance, leaves no partial file behind. An OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # torch.save turns the OSError of a full disk into a RuntimeError about positions in its file
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.filename in (None, name):
            raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, error_class: type[LensRNNError] = ArtifactError) -> dict[str, Any]:
    """The object in a JSON file. Raises `error_class` if there is none in it, OSError if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8 or JSON, digits or brackets without end
        raise error_class(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise error_class(f"{path} does not hold a JSON object")
    return value

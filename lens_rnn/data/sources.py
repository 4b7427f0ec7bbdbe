"""Where text comes from: the Python standard library, files, or the Hub."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lens_rnn.data.config import STDLIB, DataConfig, Role
from lens_rnn.data.documents import Document, Source
from lens_rnn.data.file_source import FileSource
from lens_rnn.data.splits import BY_HASH, HELD_OUT_ONE_IN, Split, is_held_out
from lens_rnn.data.texts import SUFFIXES
from lens_rnn.errors import DataError

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}


class StdlibSource(Source):
    """Sources of the running Python's standard library, without its tests."""

    name = STDLIB
    is_small = True

    def __init__(self, root: Path | None = None):
        self.root = root or Path(sysconfig.get_path("stdlib"))
        self.paths = sorted(self._find())
        if not self.paths:
            raise DataError(f"no Python sources in {self.root}; install them or name another text with --data")

    def _find(self) -> Iterator[str]:
        for folder, inner, files in os.walk(self.root):
            inner[:] = [name for name in inner if name not in _EXCLUDED_FOLDERS]
            for name in files:
                if name.endswith(".py"):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()

    @property
    def split(self) -> Split:
        return Split(f"1 file in {HELD_OUT_ONE_IN}, chosen by a hash of its name")

    def identity(self, _: Role | None) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.encode() + b"\0" + (self.root / path).read_bytes() + b"\0")
        return {"python": platform.python_version(), "files": len(self.paths), "sha256": digest.hexdigest()}

    def documents(self, role: Role | None) -> Iterator[Document]:
        for path in self.paths:
            if role is None or is_held_out(path) == (role == "eval"):
                text = (self.root / path).read_bytes().decode("utf-8", "replace")
                if text:
                    yield Document(path, text)


class HubSource(Source):
    """A data set on the Hub, streamed. Its own validation split is what is held out, where it has one."""

    def __init__(self, name: str, split: str = "train", text_field: str = "text"):
        import datasets
        from huggingface_hub import HfApi

        self.name, self.text_field = name, text_field
        try:
            self.commit = HfApi().dataset_info(name).sha
            self.splits = list(datasets.get_dataset_split_names(name, revision=self.commit))
        except Exception as error:  # offline, missing, private, not a data set: each has its own exception types
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"there is no file or folder {name!r} here, and the Hub gives no data set of that name ({reason})"
            ) from error
        if split not in self.splits:
            raise DataError(f"the data set {name} has no split {split!r}; it has {', '.join(self.splits)}")
        self.fit_split = split
        own = [s for s in ("validation", "val", "valid") if s in self.splits and s != split]
        self.eval_split = own[0] if own else split
        self.is_apart = bool(own)

    @property
    def split(self) -> Split:
        return Split(f"its split {self.eval_split}") if self.is_apart else BY_HASH

    def identity(self, role: Role | None) -> dict[str, Any]:
        split = self.eval_split if role == "eval" else self.fit_split
        return {
            "dataset": self.name,
            "commit": self.commit,
            "split": split,
            "other": self.eval_split,
            "field": self.text_field,
        }

    def documents(self, role: Role | None) -> Iterator[Document]:
        import datasets

        split = self.eval_split if role == "eval" else self.fit_split
        everything = self.is_apart or role is None
        number = 0
        try:
            stream = datasets.load_dataset(self.name, split=split, revision=self.commit, streaming=True)
            for number, record in enumerate(stream, 1):
                text = record.get(self.text_field)
                if not isinstance(text, str):
                    raise DataError(
                        f"{self.name}, record {number}: no text in the field {self.text_field!r}; it has "
                        f"{', '.join(record)}"
                    )
                if text and (everything or is_held_out(text) == (role == "eval")):
                    yield Document(text, text)
        except DataError:
            raise
        except Exception as error:  # a lost connection or a damaged file: each file format has its own exception types
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.name}: the Hub's data cannot be read after record {number} ({reason})") from error


def open_source(config: DataConfig) -> Source:
    """The source that `config.data` names. Raises DataError if there is none."""
    if config.data == STDLIB:
        return StdlibSource()
    path = Path(config.data).expanduser()
    looks_like_path = path.is_absolute() or config.data.startswith((".", "~")) or config.data.endswith((*SUFFIXES, "/"))
    if path.exists() or looks_like_path:
        return FileSource(path, config.text_field)
    return HubSource(config.data, config.data_split, config.text_field)

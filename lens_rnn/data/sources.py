"""Where text comes from: the Python standard library, files, or the Hub; and which half of the split a document is
in."""

import hashlib
import json
import os
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lens_rnn.errors import ConfigError, DataError

import zstandard

STDLIB = "python-stdlib"
HELD_OUT_ONE_IN = 50

Role = Literal["fit", "eval"]

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
_SUFFIXES = (".jsonl", ".jsonl.zst", ".txt")
_TXT_PIECE = 32_768  # characters: a book in one .txt file becomes several documents, so that some of it can be held out
_SMALL_BYTES = 2**24  # of files that are packed whole, in about ten seconds
_CHUNK = 2**20  # bytes of a compressed file read at a time


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text to use, and how much of it."""

    data: str = STDLIB
    """`python-stdlib` (sources of the running Python's standard library), a Hub data set name such as
    monology/pile-uncopyrighted, or a .jsonl, .jsonl.zst or .txt file, or a folder of them."""
    data_split: str = "train"
    """Split of a Hub data set that is fitted on. Evaluation uses its own validation split where it has one."""
    text_field: str = "text"
    """Field of a JSON record or of a Hub data set that holds the document."""
    tokens: int | None = None
    """Tokens to fit on, each seen once; of a small source they are drawn from everywhere. Default: 262,144, or all
    there are if that is less."""
    eval_tokens: int | None = None
    """Held-out tokens to evaluate on. Default: 32,768, or all there are if that is less."""
    seq_len: int = 256
    """Tokens in a block: how far back a prediction can look."""

    def __post_init__(self) -> None:
        for name in ("tokens", "eval_tokens"):
            value = getattr(self, name)
            if value is not None and value < self.seq_len:
                raise ConfigError(f"{name} is {value}, less than one block of seq_len {self.seq_len}; raise it")
        if self.seq_len < 2:
            raise ConfigError(f"seq_len is {self.seq_len}; a block needs at least 2 tokens to predict anything")


class Document(NamedTuple):
    """One text. `key` alone decides which half of the split it is in: the file name for python-stdlib, else the text
    itself."""

    key: str
    text: str


def is_held_out(key: str) -> bool:
    """Whether a document is kept for evaluation: 1 in 50, by a hash, so that fit and evaluation agree without
    talking."""
    return (
        int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % HELD_OUT_ONE_IN == 0
    )


class Source(ABC):
    """Somewhere that documents come from. `identity` changes whenever the documents may have changed."""

    name: str
    is_small: bool = False
    """Whether all of it is packed even if fewer tokens are wanted, which are then drawn from everywhere: a source in
    the order of file names starts with one subject."""

    @abstractmethod
    def identity(self, role: Role) -> dict[str, Any]:
        """What decides the documents, for the cache key."""

    @abstractmethod
    def documents(self, role: Role) -> Iterator[Document]:
        """All documents of one half of the split."""


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

    def identity(self, _: Role) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.encode() + b"\0" + (self.root / path).read_bytes() + b"\0")
        return {"python": platform.python_version(), "files": len(self.paths), "sha256": digest.hexdigest()}

    def documents(self, role: Role) -> Iterator[Document]:
        for path in self.paths:
            if is_held_out(path) == (role == "eval"):
                text = (self.root / path).read_bytes().decode("utf-8", "replace")
                if text:
                    yield Document(path, text)


class FileSource(Source):
    """A .jsonl, .jsonl.zst or .txt file in the Pile's record format, or a folder of such files."""

    def __init__(self, path: Path, text_field: str = "text"):
        self.name = str(path)
        self.text_field = text_field
        if not path.exists():
            raise DataError(f"no such data file or folder: {path}")
        self.paths = (
            sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
            if path.is_dir()
            else [path]
        )
        if not self.paths:
            raise DataError(f"the folder {path} holds no {', '.join(_SUFFIXES)} file")
        if not self.paths[0].name.endswith(_SUFFIXES):
            raise DataError(f"cannot read {path}: its name must end in {', '.join(_SUFFIXES)}")
        self.is_small = sum(p.stat().st_size for p in self.paths) <= _SMALL_BYTES

    def identity(self, _: Role) -> dict[str, Any]:
        stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return {"files": stats, "text_field": self.text_field}

    def documents(self, role: Role) -> Iterator[Document]:
        for path in self.paths:
            texts = _txt_pieces(path) if path.suffix == ".txt" else _json_lines(path, self.text_field)
            for text in texts:
                if text and is_held_out(text) == (role == "eval"):
                    yield Document(text, text)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain or zstd-compressed file. Raises ZstdError for compressed data that are damaged or stop inside a
    frame."""
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield from file
            return
        rest = b""
        frame = None  # zstandard's own reader takes a truncated file for a shorter one, so frames are followed here
        while chunk := file.read(_CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                *whole, rest = (rest + frame.decompress(chunk)).split(b"\n")
                yield from whole
                chunk = b""
                if frame.eof:
                    chunk, frame = frame.unused_data, None
        if frame is not None:
            raise zstandard.ZstdError("the file ends before its data do")
        if rest:
            yield rest


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            record = json.loads(line.decode("utf-8"))
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise DataError(f"{path}, line {number}: no text in the field {text_field!r}")
            yield text
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd data after line {number} ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:  # numbers too long or nesting too deep for Python's reader
        raise DataError(f"{path}, line {number}: not readable as JSON ({error})") from error


def _txt_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces that end at a line end, so that a long one has parts in both halves of the split."""
    try:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_TXT_PIECE):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from error


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

    def identity(self, role: Role) -> dict[str, Any]:
        split = self.fit_split if role == "fit" else self.eval_split
        return {
            "dataset": self.name,
            "commit": self.commit,
            "split": split,
            "other": self.eval_split,
            "field": self.text_field,
        }

    def documents(self, role: Role) -> Iterator[Document]:
        import datasets

        split = self.fit_split if role == "fit" else self.eval_split
        separate = self.eval_split != self.fit_split
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
                if text and (separate or is_held_out(text) == (role == "eval")):
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
    looks_like_path = (
        path.is_absolute() or config.data.startswith((".", "~")) or config.data.endswith((*_SUFFIXES, "/"))
    )
    if path.exists() or looks_like_path:
        return FileSource(path, config.text_field)
    return HubSource(config.data, config.data_split, config.text_field)

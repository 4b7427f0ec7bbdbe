"""Text sources to packed blocks of tokens on disk, with bytes and tokens counted exactly.

    source (python-stdlib | files | Hub data set)  →  documents  →  one half of a fixed split  →  tokens  →  blocks

Documents are joined by the end-of-text token and cut into blocks of `seq_len` tokens. Blocks are kept in a memory-mapped file
in the cache folder, under a name made of everything that decides its content, and are reused.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import log
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zstandard
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lens_rnn.errors import ConfigError, DataError

STDLIB = "python-stdlib"
HELD_OUT_ONE_IN = 50
DEFAULT_FIT_TOKENS = 262_144
DEFAULT_EVAL_TOKENS = 65_536

Role = Literal["fit", "eval"]

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
_SUFFIXES = (".jsonl", ".jsonl.zst", ".txt")
_TXT_PIECE = 32_768  # characters: a book in one .txt file becomes several documents, so that some of it can be held out
_CHUNK = 2**20  # bytes of a compressed file read at a time
_GROUP = 2_000_000  # characters tokenised at a time, so that a stream is not read far beyond what is needed

log_to = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text to use, and how much of it."""

    data: str = STDLIB
    """`python-stdlib` (sources of the running Python's standard library), a Hub data set name such as monology/pile-uncopyrighted,
    or a .jsonl, .jsonl.zst or .txt file, or a folder of them."""
    data_split: str = "train"
    """Split of a Hub data set that is fitted on. Evaluation uses its own validation split where it has one."""
    text_field: str = "text"
    """Field of a JSON record or of a Hub data set that holds the document."""
    tokens: int | None = None
    """Tokens to fit on, each seen once. Default: 262,144, or all there are if that is less."""
    eval_tokens: int | None = None
    """Held-out tokens to evaluate on. Default: 65,536, or all there are if that is less."""
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
    """One text. `key` alone decides which half of the split it is in: the file name for python-stdlib, else the text itself."""

    key: str
    text: str


def is_held_out(key: str) -> bool:
    """Whether a document is kept for evaluation: 1 in 50, by a hash, so that fit and evaluation agree without talking."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class TokenBlocks:
    """Packed tokens of one half of a source."""

    tokens: np.ndarray
    """(blocks, seq_len), memory-mapped, uint16 or uint32."""
    source: str
    """What was packed, for people and for fit.json."""
    n_bytes: int
    """UTF-8 bytes of the documents that were tokenised, which may run on beyond the last whole block."""
    n_tokens: int
    """Tokens of those documents, an end-of-text token after each included."""
    n_documents: int
    sha256: str
    """Of the packed tokens."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return int(self.tokens.shape[1])

    def batch(self, rows: np.ndarray | slice, device: torch.device | str = "cpu") -> Tensor:
        """Tokens of some blocks, (rows, seq_len), int64."""
        return torch.from_numpy(self.tokens[rows].astype(np.int64)).to(device)

    @property
    def bits_per_byte(self) -> float:
        """Factor from nats per predicted token to bits per byte: (tokens ÷ bytes) ÷ ln 2."""
        return self.n_tokens / self.n_bytes / log(2)

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each token id occurs, (vocab_size,)."""
        total = np.zeros(vocab_size, dtype=np.int64)
        for rows in np.array_split(self.tokens, max(1, self.tokens.size // 2**24)):
            total += np.bincount(rows.ravel(), minlength=vocab_size)
        return total


def unigram_cross_entropy(fit: TokenBlocks, scored: TokenBlocks, vocab_size: int) -> float:
    """Nats a token of the unigram model with add-one counts from `fit`, on the predicted tokens of `scored`."""
    counts = fit.counts(vocab_size) + 1
    log_p = np.log(counts / counts.sum())
    return float(-log_p[scored.tokens[:, 1:]].mean())


# --- sources -----------------------------------------------------------------------------------------------------------------


class Source(ABC):
    """Somewhere that documents come from. `identity` changes whenever the documents may have changed."""

    name: str

    @abstractmethod
    def identity(self, role: Role) -> dict[str, Any]:
        """What decides the documents, for the cache key."""

    @abstractmethod
    def documents(self, role: Role) -> Iterator[Document]:
        """All documents of one half of the split."""


class StdlibSource(Source):
    """Sources of the running Python's standard library, without its tests."""

    name = STDLIB

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
        return {"python": sysconfig.get_python_version(), "files": len(self.paths), "sha256": digest.hexdigest()}

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
        self.paths = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file()) if path.is_dir() else [path]
        if not self.paths:
            raise DataError(f"the folder {path} holds no {', '.join(_SUFFIXES)} file")
        if not self.paths[0].name.endswith(_SUFFIXES):
            raise DataError(f"cannot read {path}: its name must end in {', '.join(_SUFFIXES)}")

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
    """Lines of a plain or zstd-compressed file. Raises ZstdError for compressed data that are damaged or stop inside a frame."""
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
            raise DataError(f"there is no file or folder {name!r} here, and the Hub gives no data set of that name ({reason})") from error
        if split not in self.splits:
            raise DataError(f"the data set {name} has no split {split!r}; it has {', '.join(self.splits)}")
        self.fit_split = split
        own = [s for s in ("validation", "val", "valid") if s in self.splits and s != split]
        self.eval_split = own[0] if own else split

    def identity(self, role: Role) -> dict[str, Any]:
        split = self.fit_split if role == "fit" else self.eval_split
        return {"dataset": self.name, "commit": self.commit, "split": split, "other": self.eval_split, "field": self.text_field}

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
                    raise DataError(f"{self.name}, record {number}: no text in the field {self.text_field!r}; it has {', '.join(record)}")
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
    looks_like_path = path.is_absolute() or config.data.startswith((".", "~")) or config.data.endswith((*_SUFFIXES, "/"))
    if path.exists() or looks_like_path:
        return FileSource(path, config.text_field)
    return HubSource(config.data, config.data_split, config.text_field)


# --- packing -----------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """$LENS_RNN_CACHE, by default ~/.cache/lens_rnn."""
    return Path(os.environ.get("LENS_RNN_CACHE", "~/.cache/lens_rnn")).expanduser()


def load_blocks(
    config: DataConfig, role: Role, tokenizer: PreTrainedTokenizerBase, source: Source | None = None, everything: bool = False
) -> TokenBlocks:
    """Packed blocks of one half of a source: from the cache, or packed now by one process of this machine while others wait.

    everything: take all there is, whatever the configuration asks for.

    Raises DataError if the source is missing or malformed, if it has no document in this half, or if it holds fewer tokens than
    config.tokens (role fit) or config.eval_tokens (role eval) asks for.
    """
    source = source or open_source(config)
    asked = config.tokens if role == "fit" else config.eval_tokens
    wanted = asked or (DEFAULT_FIT_TOKENS if role == "fit" else DEFAULT_EVAL_TOKENS)
    wanted = sys.maxsize if everything else wanted - wanted % config.seq_len
    identity = {
        "source": source.name,
        "identity": source.identity(role),
        "role": role,
        "tokens": wanted,
        "seq_len": config.seq_len,
        "tokenizer": tokenizer_sha256(tokenizer),
        "format": 1,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / key
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            for left in cache_folder().glob(f"{key}.partial*"):  # a killed process left it; nobody else writes under this lock
                shutil.rmtree(left)
            partial = Path(f"{folder}.partial")
            try:
                partial.mkdir()
                _pack(source, role, tokenizer, wanted, config.seq_len, partial, identity)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    blocks = _open_blocks(folder, source.name)
    if len(blocks) * config.seq_len < (asked or 0) // config.seq_len * config.seq_len:
        kind = "fitting" if role == "fit" else "evaluation (1 document in 50 is held out)"
        flag = "--tokens" if role == "fit" else "--eval-tokens"
        raise DataError(f"{source.name} holds {blocks.tokens.size:,} tokens for {kind}, {asked:,} were asked for; lower {flag}")
    return blocks


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides how text becomes ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:  # padding and truncation are what the last call asked for, and packing asks for neither
        text = json.dumps(json.loads(backend.to_str()) | {"padding": None, "truncation": None}, sort_keys=True)
    return hashlib.sha256(f"{text}{_end_of_text(tokenizer)}".encode()).hexdigest()


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {tokenizer.name_or_path} has no end-of-text token to put between documents")
    return int(tokenizer.eos_token_id)


def _tokenise(source: Source, role: Role, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, list[int]]]:
    """(UTF-8 bytes, ids) of each document, in order, a group of documents at a time and in parallel."""
    import datasets

    # A fast tokenizer runs on all cores by itself; a Python one needs processes.
    workers = None if tokenizer.is_fast else len(os.sched_getaffinity(0))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return {"ids": ids, "bytes": [len(text.encode()) for text in batch["text"]]}

    for group in _groups(source.documents(role)):
        table = datasets.Dataset.from_dict({"text": group})
        datasets.disable_progress_bars()
        try:
            done = table.map(encode, batched=True, num_proc=workers, remove_columns="text", new_fingerprint="x", keep_in_memory=True)
        finally:
            datasets.enable_progress_bars()
        yield from zip(done["bytes"], done["ids"], strict=True)


def _groups(documents: Iterator[Document]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document.text.encode("utf-8", "replace").decode())  # JSON can hold half a surrogate pair, which is no character
        size += len(document.text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pack(
    source: Source, role: Role, tokenizer: PreTrainedTokenizerBase, wanted: int, seq_len: int, folder: Path, identity: dict[str, Any]
) -> None:
    """Write tokens.bin and meta.json of at most `wanted` tokens, in whole blocks, into `folder`."""
    end = _end_of_text(tokenizer)
    largest = max(end, *tokenizer.get_vocab().values())  # ids may leave gaps, so their number would not do
    dtype = np.uint16 if largest < 2**16 else np.uint32
    n_bytes = n_tokens = n_documents = 0
    with (folder / "tokens.bin").open("wb") as file:
        for size, ids in _tokenise(source, role, tokenizer):
            part = np.asarray([*islice(ids, max(0, wanted - n_tokens)), end], dtype=dtype)[: wanted - n_tokens]
            file.write(part.tobytes())
            n_bytes, n_tokens, n_documents = n_bytes + size, n_tokens + len(ids) + 1, n_documents + 1
            if n_tokens >= wanted:
                break
        kept = min(n_tokens, wanted) // seq_len * seq_len
        file.truncate(kept * np.dtype(dtype).itemsize)
        file.flush()
        os.fsync(file.fileno())
    if not kept:
        half = "to fit on" if role == "fit" else f"held out (1 document in {HELD_OUT_ONE_IN}, chosen by a hash)"
        raise DataError(
            f"{source.name} has {n_documents} documents with {n_tokens} tokens {half}, less than one block of {seq_len}; give more text"
        )
    with (folder / "tokens.bin").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    meta = {
        "shape": [kept // seq_len, seq_len],
        "dtype": np.dtype(dtype).name,
        "n_bytes": n_bytes,
        "n_tokens": n_tokens,
        "n_documents": n_documents,
        "sha256": digest.hexdigest(),
        "identity": identity,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    log_to.info("packed %s tokens of %s documents of %s (%s)", f"{kept:,}", f"{n_documents:,}", source.name, role)


def _open_blocks(folder: Path, name: str) -> TokenBlocks:
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r", shape=tuple(meta["shape"]))
    return TokenBlocks(tokens, name, meta["n_bytes"], meta["n_tokens"], meta["n_documents"], meta["sha256"])

"""Documents to packed blocks of tokens on disk, with bytes and tokens counted exactly.

Documents are joined by the end-of-text token and cut into blocks of `seq_len` tokens. Blocks are kept in a
memory-mapped file in the cache folder, under a name made of everything that decides its content, and are reused.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lens_rnn.data.sources import HELD_OUT_ONE_IN, DataConfig, Document, Role, Source, open_source
from lens_rnn.errors import DataError

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedTokenizerBase

DEFAULT_FIT_TOKENS = 262_144
DEFAULT_EVAL_TOKENS = 32_768

_GROUP = 2_000_000  # characters tokenised at a time, so that a stream is not read far beyond what is needed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenBlocks:
    """Packed tokens of one half of a source."""

    tokens: np.ndarray
    """(blocks, seq_len), uint16 or uint32: memory-mapped, or a few blocks drawn from a small source."""
    source: str
    """What was packed, for people and for fit.json."""
    n_bytes: int
    """UTF-8 bytes of the documents that were tokenised: the ratio of tokens to bytes is that of whole documents."""
    n_tokens: int
    """Tokens of those documents, an end-of-text token after each included."""
    n_documents: int
    sha256: str
    """Of the packed tokens."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of itself: for python-stdlib the Python version and a hash of its files, for a Hub data set
    the commit."""

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
        return self.n_tokens / self.n_bytes / math.log(2)

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


def cache_folder() -> Path:
    """$LENS_RNN_CACHE, by default ~/.cache/lens_rnn."""
    return Path(os.environ.get("LENS_RNN_CACHE", "~/.cache/lens_rnn")).expanduser()


def load_blocks(
    config: DataConfig,
    role: Role,
    tokenizer: PreTrainedTokenizerBase,
    source: Source | None = None,
    everything: bool = False,
) -> TokenBlocks:
    """Packed blocks of one half of a source: from the cache, or packed now by one process of this machine while others
    wait.

    everything: take all there is, whatever the configuration asks for.

    Raises DataError if the source is missing or malformed, if it has no document in this half, or if it holds fewer
    tokens than config.tokens (role fit) or config.eval_tokens (role eval) asks for.
    """
    source = source or open_source(config)
    asked = config.tokens if role == "fit" else config.eval_tokens
    wanted = asked or (DEFAULT_FIT_TOKENS if role == "fit" else DEFAULT_EVAL_TOKENS)
    wanted = sys.maxsize if everything else wanted - wanted % config.seq_len
    to_pack = sys.maxsize if source.is_small else wanted
    identity = {
        "source": source.name,
        "identity": source.identity(role),
        "role": role,
        "tokens": to_pack,
        "seq_len": config.seq_len,
        "tokenizer": tokenizer_sha256(tokenizer),
        "format": 1,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / key
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            _build(folder, lambda partial: _pack(source, role, tokenizer, to_pack, config.seq_len, partial, identity))
    blocks = _open_blocks(folder, source.name)
    if len(blocks) * config.seq_len < (asked or 0) // config.seq_len * config.seq_len:
        kind = "fitting" if role == "fit" else "evaluation (1 document in 50 is held out)"
        raise DataError(
            f"{source.name} holds {blocks.tokens.size:,} tokens for {kind}, {asked:,} were asked for; ask for fewer"
        )
    return _draw(blocks, wanted // config.seq_len)


def _draw(blocks: TokenBlocks, count: int) -> TokenBlocks:
    """`count` blocks from everywhere in the text, always the same ones; all of them if there are no more."""
    if len(blocks) <= count:
        return blocks
    tokens = blocks.tokens[np.sort(np.random.default_rng(0).permutation(len(blocks))[:count])]
    return replace(blocks, tokens=tokens, sha256=hashlib.sha256(tokens.tobytes()).hexdigest())


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a cache entry whole or not at all. The caller holds its lock."""
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process left it
    try:
        partial.mkdir()
        fill(partial)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            message = (
                f"cannot write the token cache in {folder.parent}: {error.strerror}; set LENS_RNN_CACHE to "
                "another folder"
            )
            raise DataError(message) from error
        raise


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
    workers = None if tokenizer.is_fast else os.cpu_count()

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return {"ids": ids, "bytes": [len(text.encode()) for text in batch["text"]]}

    for group in _groups(source.documents(role)):
        table = datasets.Dataset.from_dict({"text": group})
        datasets.disable_progress_bars()
        try:
            done = table.map(
                encode, batched=True, num_proc=workers, remove_columns="text", new_fingerprint="x", keep_in_memory=True
            )
        finally:
            datasets.enable_progress_bars()
        yield from zip(done["bytes"], done["ids"], strict=True)


def _groups(documents: Iterator[Document]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(
            document.text.encode("utf-8", "replace").decode()
        )  # JSON can hold half a surrogate pair, which is no character
        size += len(document.text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pack(
    source: Source,
    role: Role,
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    seq_len: int,
    folder: Path,
    identity: dict[str, Any],
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
            f"{source.name} has {n_documents} documents with {n_tokens} tokens {half}, less than one block of "
            f"{seq_len}; give more text"
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
    log.info("packed %s tokens of %s documents of %s (%s)", f"{kept:,}", f"{n_documents:,}", source.name, role)


def _open_blocks(folder: Path, name: str) -> TokenBlocks:
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r", shape=tuple(meta["shape"]))
    return TokenBlocks(
        tokens,
        name,
        meta["n_bytes"],
        meta["n_tokens"],
        meta["n_documents"],
        meta["sha256"],
        meta["identity"]["identity"],
    )

"""Documents to packed blocks of tokens on disk, with the bytes of each token counted exactly.

Documents are joined by the end-of-text token, and cut into blocks of `seq_len` tokens when they are asked for. Tokens
are kept in a memory-mapped file in the cache folder, under a name made of everything that decides its content, and
reused.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lens_rnn.data.blocks import TokenBlocks, sha256_of
from lens_rnn.data.config import DataConfig, Role
from lens_rnn.data.documents import Source
from lens_rnn.data.sources import open_source
from lens_rnn.data.tokenising import GROUP, tokenise
from lens_rnn.errors import DataError

import numpy as np
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

DEFAULT_FIT_TOKENS = 524_288
DEFAULT_EVAL_TOKENS = 32_768

SHORTEST_BLOCK = 8
"""Tokens: no text is so short that its blocks get shorter."""
FORMAT = 2
"""Of the cache."""
TOKENS, TOKEN_BYTES, META = "tokens.bin", "token_bytes.bin", "meta.json"

log = logging.getLogger(__name__)


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
    wait. Where the end of a text is held out, a block before it is in neither half.

    source: what config.data names, where it is open already. everything: take all there is, whatever the configuration
    asks for. Where it asks for no number, all there is is taken of a source that holds less than the default.

    A large source shows a bar with the tokens packed a second while it is packed. A process that is killed meanwhile
    leaves nothing that is taken for whole: the next one begins again.

    Raises DataError if the source is missing or malformed, if it has no block in this half, or if it holds fewer
    tokens than config.tokens (role fit) or config.eval_tokens (role eval) asks for.
    """
    asked = config.tokens if role == "fit" else config.eval_tokens
    wanted = asked or (DEFAULT_FIT_TOKENS if role == "fit" else DEFAULT_EVAL_TOKENS)
    wanted = sys.maxsize if everything else wanted - wanted % config.seq_len
    if config.eval_data is not None and role == "eval":
        source = open_source(replace(config, data=config.eval_data, eval_data=None))
    source = source or open_source(config)
    # Of separate texts each is taken whole, except that a validation split is what there is to measure on.
    half = role if config.eval_data is None or (role == "eval" and source.is_apart) else None
    packed = _packed(source, half, tokenizer, wanted, config.seq_len)
    seq_len = _block_length(config.seq_len, packed)
    blocks = _cut(packed, seq_len, source.name)
    if config.eval_data is not None:
        blocks = replace(blocks, held_out=f"separate text, {config.eval_data}")
    if not len(blocks):
        kind = "to fit on" if role == "fit" else f"held out ({blocks.held_out})"
        raise DataError(
            f"{source.name} has {packed.n_tokens} tokens {kind}, less than one block of {seq_len}; give more text"
        )
    if seq_len < config.seq_len and (role == "eval" or config.eval_data is not None):  # of one text, once
        log.warning("%s is short: blocks have %d tokens in place of %d", source.name, seq_len, config.seq_len)
    if len(blocks) * seq_len < (asked or 0) // seq_len * seq_len:
        kind = "fitting" if role == "fit" else f"evaluation (held out: {blocks.held_out})"
        raise DataError(
            f"{source.name} holds {blocks.tokens.size:,} tokens for {kind}, {asked:,} were asked for; ask for fewer"
        )
    return _draw(blocks, wanted // seq_len, source.is_small)


def _packed(
    source: Source, half: Role | None, tokenizer: PreTrainedTokenizerBase, wanted: int, seq_len: int
) -> "_Packed":
    """The cache's entry of a half or of all of a source, made now if it is not there."""
    # of a large text a block more than is wanted: if its end is held out, one is not used
    to_pack = sys.maxsize if source.is_small else min(wanted + seq_len, sys.maxsize)
    identity = {
        "source": source.name,
        "identity": source.identity(half),
        "role": half,
        "tokens": to_pack,
        "tokenizer": tokenizer_sha256(tokenizer),
        "format": FORMAT,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / key
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            _build(folder, lambda partial: _pack(source, half, tokenizer, to_pack, partial, identity))
    return _open(folder)


def _block_length(asked: int, packed: "_Packed") -> int:
    """Tokens in a block: as asked for, or halved until both halves of a short text have a block."""
    length, shortest = asked, min(asked, SHORTEST_BLOCK)
    while length // 2 >= shortest and not (
        packed.n_tokens - packed.gap(length) >= length and packed.held_out_tokens >= length
    ):
        length //= 2
    return length


def _cut(packed: "_Packed", seq_len: int, name: str) -> TokenBlocks:
    """All whole blocks, not hashed yet."""
    kept = max(0, packed.n_tokens - packed.gap(seq_len)) // seq_len
    tokens, sizes = (array[: kept * seq_len].reshape(kept, seq_len) for array in (packed.tokens, packed.token_bytes))
    origin = packed.meta["identity"]["identity"]
    return TokenBlocks(tokens, sizes, name, packed.meta["n_documents"], "", origin, packed.meta["held_out"])


def _draw(blocks: TokenBlocks, count: int, from_everywhere: bool) -> TokenBlocks:
    """`count` blocks, hashed, always the same ones: the first, or some from everywhere in the text. All if there are no
    more."""
    rows: Any = slice(count)
    if from_everywhere and len(blocks) > count:  # few enough to be copied
        rows = np.sort(np.random.default_rng(0).permutation(len(blocks))[:count])
    tokens, sizes = blocks.tokens[rows], blocks.token_bytes[rows]
    return replace(blocks, tokens=tokens, token_bytes=sizes, sha256=sha256_of(tokens))


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


def _pack(
    source: Source,
    half: Role | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Write at most `wanted` tokens, their bytes and what there is to know of them into `folder`."""
    end = _end_of_text(tokenizer)
    largest = max(end, *tokenizer.get_vocab().values())  # ids may leave gaps, so their number would not do
    dtype = np.dtype(np.uint16 if largest < 2**16 else np.uint32)
    texts = (document.text for document in source.documents(half))
    # Of few tokens small groups: a stream is not read far beyond what is needed.
    groups = tokenise(texts, tokenizer, end, dtype, min(GROUP, wanted))
    total = None if wanted == sys.maxsize else wanted
    n_tokens = n_documents = 0
    quiet = source.is_small or bool(os.environ.get("TQDM_DISABLE"))  # which tqdm reads only where it is told nothing
    start = time.monotonic()
    with (
        (folder / TOKENS).open("wb") as tokens,
        (folder / TOKEN_BYTES).open("wb") as sizes,
        closing(groups),
        tqdm(total=total, unit="tok", unit_scale=True, desc="packing", delay=2, disable=quiet) as bar,
    ):
        for group in groups:
            left = min(wanted - n_tokens, len(group.ids))
            tokens.write(group.ids[:left].data)
            sizes.write(group.token_bytes[:left].data)
            n_tokens += left
            n_documents += int(np.searchsorted(group.ends[:-1], left)) + 1
            bar.update(left)
            if n_tokens == wanted:
                break
        for file in (tokens, sizes):
            file.flush()
            os.fsync(file.fileno())
    seconds = time.monotonic() - start
    held_out_tokens = n_tokens
    if half == "fit" and source.is_small and source.split.first is not None:
        others = (document.text for document in source.documents("eval"))
        held_out_tokens = sum(len(group.ids) for group in tokenise(others, tokenizer, end, dtype))
    meta = {
        "dtype": dtype.name,
        "n_tokens": n_tokens,
        "n_documents": n_documents,
        "held_out": source.split.words,
        "held_out_tokens": held_out_tokens,
        "gap": half == "fit" and source.split.first is not None,
        "identity": identity,
    }
    (folder / META).write_text(json.dumps(meta, indent=1))
    log.info(
        "packed %s tokens of %s documents of %s (%s) in %.1f s, %s tokens a second",
        f"{n_tokens:,}",
        f"{n_documents:,}",
        source.name,
        half,
        seconds,
        f"{n_tokens / max(seconds, 1e-9):,.0f}",
    )


@dataclass(frozen=True)
class _Packed:
    """An entry of the cache."""

    tokens: np.ndarray
    """(tokens), memory-mapped."""
    token_bytes: np.ndarray
    """(tokens), memory-mapped."""
    meta: Mapping[str, Any]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def held_out_tokens(self) -> int:
        """Of a short text: how many are held out, of which a block must be full. Else: its own."""
        return int(self.meta["held_out_tokens"])

    def gap(self, seq_len: int) -> int:
        """Tokens at the end that belong to neither half."""
        return seq_len if self.meta["gap"] else 0


def _open(folder: Path) -> _Packed:
    meta = json.loads((folder / META).read_text())
    if not meta["n_tokens"]:  # an empty file cannot be mapped
        return _Packed(np.zeros(0, dtype=meta["dtype"]), np.zeros(0, dtype=np.uint32), meta)
    tokens = np.memmap(folder / TOKENS, dtype=meta["dtype"], mode="r")
    return _Packed(tokens, np.memmap(folder / TOKEN_BYTES, dtype=np.uint32, mode="r"), meta)

"""Packed blocks of tokens, with the bytes that each token stands for."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

_SPAN = 2**22  # tokens of a memory-mapped text that are looked at together


@dataclass(frozen=True)
class TokenBlocks:
    """Packed tokens of one half of a source, or some of their blocks."""

    tokens: np.ndarray
    """(blocks, seq_len), uint16 or uint32: memory-mapped, or a few blocks drawn from a small source."""
    token_bytes: np.ndarray
    """(blocks, seq_len), uint32: UTF-8 bytes of the text of each token; 0 for the end of a text."""
    source: str
    """What was packed, for people and for fit.json."""
    n_documents: int
    """Documents, or parts of long ones, that were packed."""
    sha256: str
    """Of the packed tokens."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the source says of itself: for python-stdlib the Python version and a hash of its files, for a Hub data set
    the commit."""
    held_out: str = ""
    """What of the source is held out, in words."""

    @classmethod
    def of_tokens(cls, tokens: np.ndarray, source: str = "tokens without a text") -> Self:
        """Blocks that no text stands behind, (blocks, seq_len), each token taken for a byte."""
        return cls(tokens, np.ones(tokens.shape, dtype=np.uint32), source, 0, sha256_of(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        """Tokens in a block."""
        return int(self.tokens.shape[1])

    def batch(self, rows: np.ndarray | slice, device: torch.device | str = "cpu") -> Tensor:
        """Tokens of some blocks, (rows, seq_len), int64."""
        return torch.from_numpy(self.tokens[rows].astype(np.int64)).to(device)

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text in these blocks."""
        return sum(int(part.sum(dtype=np.int64)) for part in _parts(self.token_bytes))

    @property
    def tokens_per_byte(self) -> float:
        """All tokens of these blocks, ends of texts included, over their UTF-8 bytes.

        The first token of a block is counted with the others, though nothing predicts it: blocks begin anywhere, so it
        is a token like any other, and with as many bytes on average.
        """
        return self.tokens.size / self.n_bytes

    @property
    def bits_per_byte(self) -> float:
        """Factor from nats per predicted token to bits per byte: (tokens ÷ bytes) ÷ ln 2."""
        return self.tokens_per_byte / math.log(2)

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each token id occurs, (vocab_size,)."""
        total = np.zeros(vocab_size, dtype=np.int64)
        for rows in _parts(self.tokens):
            total += np.bincount(rows.ravel(), minlength=vocab_size)
        return total


def unigram_cross_entropy(fit: TokenBlocks, scored: TokenBlocks, vocab_size: int) -> float:
    """Nats a token of the unigram model with add-one counts from `fit`, on the predicted tokens of `scored`."""
    counts = fit.counts(vocab_size) + 1
    log_p = np.log(counts / counts.sum())
    return float(-sum(log_p[rows[:, 1:]].sum() for rows in _parts(scored.tokens)) / scored.tokens[:, 1:].size)


def sha256_of(tokens: np.ndarray) -> str:
    """Hash of the bytes of (blocks, seq_len) tokens, of which few are in memory at a time."""
    digest = hashlib.sha256()
    for rows in _parts(tokens):
        digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """All blocks, not too many at a time."""
    yield from np.array_split(rows, max(1, math.ceil(rows.size / _SPAN)))

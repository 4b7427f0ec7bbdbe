"""Which half of a text a document is in: by a hash where that leaves enough on both sides, else the end of the text.

A text is read as pieces: a JSON record is one, a long .txt file has several. What is decided depends on the text alone,
not on tokens or block lengths, so that commands with different settings hold the same text out.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lens_rnn.data.config import Role

HELD_OUT_ONE_IN = 50
END_ONE_IN = 10
ENOUGH = 16_384
"""Characters, about 16 blocks of 256 tokens: documents chosen by a hash hold at least so many, or else the end of the
text is held out."""
MOST_ONE_IN = 5
"""Documents chosen by a hash hold at most this part of the text: one long document may be most of it."""


class Piece(NamedTuple):
    """Some text of a document, whose pieces come one after the other."""

    document: int
    """Its number in the source."""
    text: str


@dataclass(frozen=True)
class Split:
    """What of a text is held out."""

    words: str
    """For people."""
    first: int | None = None
    """The character with which the held-out end begins; None where documents are chosen by a hash."""


BY_HASH = Split(f"1 document in {HELD_OUT_ONE_IN}, chosen by a hash of its text")


def is_held_out(key: str) -> bool:
    """Whether a document is kept for evaluation: 1 in 50, by a hash, so that fit and evaluation agree without
    talking."""
    return (
        int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % HELD_OUT_ONE_IN == 0
    )


def choose_split(pieces: Iterable[Piece]) -> Split:
    """By a hash of documents if those are enough and not too much of the text, else its last tenth, which begins after
    a space or line end where there is one in the 64 characters before."""
    total = held = 0
    for piece, is_held in _hashed(pieces):
        total += len(piece.text)
        held += len(piece.text) * is_held
    if ENOUGH <= held <= total // MOST_ONE_IN:
        return BY_HASH
    return Split(
        f"the last tenth of the text, and a block before it is left out (1 document in {HELD_OUT_ONE_IN}, chosen "
        "by a hash, would be too little or too much)",
        total - total // END_ONE_IN,
    )


def texts_of_half(pieces: Iterable[Piece], split: Split, role: Role) -> Iterator[str]:
    """The texts of one half, in order; none is empty."""
    if split.first is None:
        yield from (piece.text for piece, is_held in _hashed(pieces) if piece.text and is_held == (role == "eval"))
        return
    start = 0
    for piece in pieces:
        cut = _good_cut(piece.text, min(len(piece.text), max(0, split.first - start)))
        start += len(piece.text)
        text = piece.text[:cut] if role == "fit" else piece.text[cut:]
        if text:
            yield text


def _hashed(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Each piece, and whether its document is held out, which its first piece decides."""
    document, is_held = -1, False
    for piece in pieces:
        if piece.document != document:
            document, is_held = piece.document, is_held_out(piece.text)
        yield piece, is_held


def _good_cut(text: str, at: int) -> int:
    """A place to cut in two, at `at` or a little before it."""
    if not 0 < at < len(text):
        return at
    start = max(0, at - 64)
    return max(text.rfind("\n", start, at), text.rfind(" ", start, at)) + 1 or at

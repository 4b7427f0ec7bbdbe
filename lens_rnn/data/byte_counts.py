"""How many UTF-8 bytes of a text each of its tokens stands for, so that those of a document sum to its bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Most tokenizers write a letter a byte: GPT-2's alphabet, or Latin-1, in which every byte is the letter of its number.
_GPT2 = {ord(letter): byte for byte, letter in bytes_to_unicode().items()}
_ALPHABETS: tuple[Mapping[int, int], ...] = (_GPT2, {})


class ByteCounter:
    """Counts for one tokenizer.

    Where tokens are spelled a letter a byte, which is checked for every text, the counts are exact, also where a
    character is spread over tokens. Else they are those of the characters that the tokenizer says a token came from:
    characters between tokens go to the one after them, and of tokens that share a character the first gets its bytes.
    A tokenizer in Python that says neither has the bytes shared out in proportion to its tokens' spellings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._spelling = {index: piece for piece, index in tokenizer.get_vocab().items()}
        self._bytes = [_in_bytes(self._spelling, alphabet) for alphabet in _ALPHABETS]

    def spelled(self, text: str, ids: Sequence[int]) -> np.ndarray | None:
        """UTF-8 bytes of each token, (len(ids),) uint32, where the tokens' spellings are the bytes of the text, a
        letter a byte; else None."""
        data = text.encode()
        for entries in self._bytes:
            try:
                pieces = list(map(entries.__getitem__, ids))
            except KeyError:  # a letter of another alphabet
                continue
            if b"".join(pieces) == data:
                return np.fromiter(map(len, pieces), dtype=np.uint32, count=len(pieces))
        return None

    def of_offsets(self, text: str, ends: Sequence[int]) -> np.ndarray:
        """UTF-8 bytes of each token, (len(ends),) uint32, from the character with which each ends, which the tokenizer
        says. The last token has all that is left."""
        if not len(ends):
            return np.zeros(0, dtype=np.uint32)
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        before = np.zeros(len(points) + 1, dtype=np.int64)  # bytes before each character
        np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF), dtype=np.int64, out=before[1:])
        reached = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))  # nothing is before that of an earlier token
        reached[-1] = len(points)
        return np.diff(before[reached], prepend=0).astype(np.uint32)

    def in_proportion(self, text: str, ids: Sequence[int]) -> np.ndarray:
        """UTF-8 bytes of the text shared out over its tokens, (len(ids),) uint32."""
        if not len(ids):
            return np.zeros(0, dtype=np.uint32)
        pieces = [self._spelling.get(index, "").encode("utf-8", "replace") for index in ids]
        size = np.cumsum([len(piece) + 1 for piece in pieces], dtype=np.float64)
        whole = np.rint(size / size[-1] * len(text.encode())).astype(np.int64)
        return np.diff(whole, prepend=0).astype(np.uint32)


def _in_bytes(spelling: Mapping[int, str], alphabet: Mapping[int, int]) -> dict[int, bytes]:
    """The bytes that each token's letters are, of the tokens that have letters of this alphabet only."""
    entries = {}
    for index, piece in spelling.items():
        try:
            entries[index] = piece.translate(alphabet).encode("latin-1")
        except UnicodeEncodeError:
            continue
    return entries

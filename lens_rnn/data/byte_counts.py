"""How many UTF-8 bytes of a text each of its tokens stands for, so that those of a document sum to its bytes."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

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
        self.tokenizer = tokenizer
        self.spelling = {index: piece for piece, index in tokenizer.get_vocab().items()}

    def counts(self, text: str, ids: Sequence[int]) -> list[int]:
        """UTF-8 bytes of each token of a text, as many as there are ids; they sum to those of the text."""
        if not ids:
            return []
        pieces = [self.spelling.get(index, "") for index in ids]
        if _is_spelled(pieces, text):
            return [len(piece) for piece in pieces]
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ends = [end for _, end in encoded["offset_mapping"]]
            size = np.fromiter(_bytes_before(text, ends), dtype=np.int64, count=len(ends))
        else:
            size = np.cumsum([len(piece.encode("utf-8", "replace")) + 1 for piece in pieces], dtype=np.float64)
            size = np.rint(size / size[-1] * len(text.encode())).astype(np.int64)
        return [int(count) for count in np.diff(size, prepend=0)]


def _is_spelled(pieces: Sequence[str], text: str) -> bool:
    """Whether the tokens' spellings are the bytes of a text, a letter a byte."""
    joined, data = "".join(pieces), text.encode()
    if len(joined) != len(data):
        return False
    for alphabet in _ALPHABETS:
        try:
            if joined.translate(alphabet).encode("latin-1") == data:
                return True
        except UnicodeEncodeError:  # a letter of another alphabet
            continue
    return False


def _bytes_before(text: str, ends: Sequence[int]) -> Iterator[int]:
    """UTF-8 bytes of the text up to the end of each token, none before that of an earlier one; the last token has all
    that is left."""
    *inner, _ = np.maximum.accumulate([0, *ends]).tolist()
    done = 0
    for start, end in pairwise([*inner, len(text)]):
        done += len(text[start:end].encode())
        yield done

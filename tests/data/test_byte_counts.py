"""Bytes of tokens: those of a document sum to its bytes, whatever kind of tokenizer cut it."""

from collections.abc import Sequence

from lens_rnn.data.byte_counts import ByteCounter
from lens_rnn.data.tokenising import tokenise
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from tests.data.tokenizers import parts_of_characters, sentencepiece_like, words, world
from tests.reference.data import bytes_at_ends

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

TEXTS = [
    "plain words, and  two spaces\n",
    "grüße aus köln; naïve café",
    "日本語のテキスト 🙂👍🏽 mixed with ASCII\n\tand a tab",
    "e\u0301 in two characters, \ufb01 as one",
    " leading and trailing \n ",
    "<|endoftext|> is text here",
    "é",
    "",
]


EXACT = {"world": world, "bytes": lambda: byte_tokenizer(257), "parts of characters": parts_of_characters}
OTHERS = {"sentencepiece": sentencepiece_like, "words": words}


def counted(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Sequence[int], list[int]]:
    """Ids and bytes of one document."""
    (group,) = tokenise([text], tokenizer, 0, np.dtype(np.uint32))
    assert (group.ids[-1], group.token_bytes[-1], *group.ends) == (0, 0, len(group.ids))
    return group.ids[:-1].tolist(), group.token_bytes[:-1].tolist()


@pytest.mark.parametrize("kind", [*EXACT, *OTHERS])
@pytest.mark.parametrize("text", TEXTS)
def test_a_document_has_its_bytes(kind: str, text: str) -> None:
    ids, counts = counted((EXACT | OTHERS)[kind](), text)
    assert len(counts) == len(ids)
    assert sum(counts) == len(text.encode())
    assert min(counts, default=0) >= 0


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", TEXTS)
def test_each_token_has_the_bytes_that_it_decodes_to(kind: str, text: str) -> None:
    tokenizer = EXACT[kind]()
    ids, counts = counted(tokenizer, text)
    assert min(counts, default=1) > 0, "of a character in parts, each part has some"
    for n, size in bytes_at_ends(tokenizer, text, ids).items():
        assert sum(counts[:n]) == size


def test_parts_of_a_character_have_their_own_bytes() -> None:
    assert counted(parts_of_characters(), "a日the") == ([*parts_of_characters()("a日the").input_ids], [1, 2, 1, 3])
    assert counted(byte_tokenizer(257), "é")[1] == [1, 1]
    assert counted(world(), "the🙂é日本")[1] == [3, 3, 1, 2, 6]


def test_characters_between_tokens_go_to_the_one_after_them() -> None:
    """The last has what is left. Parts of a character that have no bytes of their own: the first has them all."""
    assert counted(words(), "  words ﬁ and \n")[1] == [7, 4, 6]
    assert counted(sentencepiece_like(), "a üé")[1] == [1, 1, 2, 2, 0]


def test_a_tokenizer_in_python_that_says_nothing() -> None:
    class Vowels:
        is_fast = False

        def get_vocab(self) -> dict[str, int]:
            return {"vowel": 0, "other": 1}

    for text in TEXTS:
        ids = [int(letter not in "aeiou") for letter in text]
        counter = ByteCounter(Vowels())
        assert counter.spelled(text, ids) is None or not text
        counts = counter.in_proportion(text, ids).tolist()
        assert (len(counts), sum(counts)) == (len(text), len(text.encode()))
        assert max(counts, default=0) - min(counts, default=0) <= 1 + len(text.encode()) // max(1, len(text))

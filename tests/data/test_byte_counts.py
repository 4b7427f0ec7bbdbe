"""Bytes of tokens: those of a document sum to its bytes, whatever kind of tokenizer cut it."""

from collections.abc import Sequence

from lens_rnn.data.byte_counts import ByteCounter
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from lens_rnn.models.world_tokenizer import WorldTokenizer
from tests.reference.data import bytes_at_ends

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

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


def world() -> PreTrainedTokenizerBase:
    """All bytes, and some entries of several, among them one that ends within a character."""
    entries = [bytes([i]) for i in range(256)] + [b"the", b" and", "日本".encode(), "é".encode(), "🙂".encode()[:3]]
    return WorldTokenizer(dict(enumerate(entries, 1)))


def parts_of_characters() -> PreTrainedTokenizerBase:
    """GPT-2's alphabet with merges, of which one joins two of the three bytes of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, second = next(iter(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("日")))[0][:2]
    merges = [(first, second), ("t", "h"), ("th", "e")]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", split_special_tokens=True)


def sentencepiece_like(byte_fallback: bool = True) -> PreTrainedTokenizerBase:
    """Spaces as ▁, one before the text; what it has no letter for becomes bytes, one token each."""
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdefghijklmnopqrstuvwxyzü", "▁a"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("▁", "a")],
            unk_token="<unk>",
            byte_fallback=byte_fallback,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def words() -> PreTrainedTokenizerBase:
    """Lower-cased and normalised words; what stands between them is in no token."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "words": 1, "and": 2}, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<unk>")


EXACT = {"world": world, "bytes": lambda: byte_tokenizer(257), "parts of characters": parts_of_characters}
OTHERS = {"sentencepiece": sentencepiece_like, "words": words}


def counted(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Sequence[int], list[int]]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, ByteCounter(tokenizer).counts(text, ids)


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
        counts = ByteCounter(Vowels()).counts(text, ids)
        assert (len(counts), sum(counts)) == (len(text), len(text.encode()))
        assert max(counts, default=0) - min(counts, default=0) <= 1 + len(text.encode()) // max(1, len(text))

"""Tokenizers of every kind, made here."""

from lens_rnn.models.world_tokenizer import WorldTokenizer

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


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

"""Naive twins of packing: one document after the other, one token after the other."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode


def expected_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All documents, each followed by the end of text."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return ids


def expected_bytes(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """UTF-8 bytes of each of those tokens, for tokenizers whose tokens decode to the text that they came from; of a
    character in parts each byte is found by the parts that can complete it."""
    counts: list[int] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        known = {0: 0} | bytes_at_ends(tokenizer, text, ids)
        for start, end in zip(list(known), list(known)[1:], strict=False):
            parts = end - start  # tokens that are a character, or several, only together
            if parts > 1:
                letters = tokenizer.convert_ids_to_tokens(ids[start:end])
                assert sum(map(len, letters)) == known[end] - known[start]
                counts += map(len, letters)
            else:
                counts.append(known[end] - known[start])
        counts.append(0)
    return counts


def bytes_at_ends(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> dict[int, int]:
    """For each number of tokens that decode to a beginning of the text: how many bytes that has."""
    beginnings = {n: str(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) for n in range(1, len(ids) + 1)}
    return {n: len(part.encode()) for n, part in beginnings.items() if text.startswith(part)}


def counts_of_any(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """UTF-8 bytes of each token of a text, whatever kind of tokenizer cut it: letters that are bytes, else offsets,
    else shares in proportion to the spellings."""
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    if not ids:
        return []
    spelling = {index: piece for piece, index in tokenizer.get_vocab().items()}
    pieces = [spelling[index] for index in ids]
    gpt2 = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}
    latin = {chr(byte): bytes([byte]) for byte in range(256)}
    for alphabet in (latin | gpt2, latin):
        if b"".join(alphabet.get(letter, b"no byte") for letter in "".join(pieces)) == text.encode():
            return [len(piece) for piece in pieces]
    if not tokenizer.is_fast:
        size = np.cumsum([len(piece.encode("utf-8", "replace")) + 1 for piece in pieces], dtype=np.float64)
        return np.diff(np.rint(size / size[-1] * len(text.encode())), prepend=0).astype(int).tolist()
    ends, reached = [], 0
    for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]:
        reached = max(reached, end)
        ends.append(reached)
    return [len(text[start:end].encode()) for start, end in pairwise([0, *ends[:-1], len(text)])]

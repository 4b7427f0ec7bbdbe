"""Naive twins of packing: one document after the other, one token after the other."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


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

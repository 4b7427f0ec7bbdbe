"""Tokens as people can read them: what they decode to, with spaces, line ends and invisible characters made visible."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_PICTURES = {" ": "␣", "\n": "↵", "\t": "⇥"}
_RUN = re.compile(r"([␣↵⇥])\1{3,}")
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp")  # Unicode categories


def token_reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """A function from a token id to its text, a leading space included.

    Bytes that are a part of a character only become \\xe6, ids that the tokenizer does not have ⟨id⟩.
    """
    bytes_of = {
        letter: byte for byte, letter in bytes_to_unicode().items()
    }  # how GPT-2's tokenizer, and many since, writes bytes

    @cache
    def read(token: int) -> str:
        piece: str | None
        try:
            piece = tokenizer.convert_ids_to_tokens([token])[0]
            text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        except (IndexError, KeyError, ValueError):  # Python tokenizers such as ByT5's, of ids that they do not have
            piece = None
        if piece is None:
            return f"⟨{token}⟩"
        if "▁" in piece:  # SentencePiece's space, which is lost when a token is decoded by itself
            return piece.replace("▁", " ")
        if "\ufffd" in text and bytes_of.keys() >= set(piece):
            return bytes(bytes_of[letter] for letter in piece).decode(errors="backslashreplace")
        return text

    return read


def visible(text: str, width: int | None = None) -> str:
    """`text` in one line of printing characters, at most `width` of them.

    A space is ␣, a line end ↵, a tab ⇥, eight spaces ␣×8, a zero-width space ⟨200b⟩, nothing at all ∅; what is cut off
    ends in ….
    """
    shown = _RUN.sub(lambda run: f"{run[1]}×{len(run[0])}", "".join(_visible(character) for character in text)) or "∅"
    return shown if width is None or len(shown) <= width else f"{shown[: width - 1]}…"


def _visible(character: str) -> str:
    if character in _PICTURES:
        return _PICTURES[character]
    return f"⟨{ord(character):x}⟩" if unicodedata.category(character) in _INVISIBLE else character

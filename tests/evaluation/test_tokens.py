"""Tokens made visible."""

from pathlib import Path

from lens_rnn.evaluation.tokens import token_reader, visible

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the", "the"),
        (" the", "␣the"),
        ("   ", "␣␣␣"),
        (" " * 8, "␣×8"),
        ("\n\n", "↵↵"),
        ("\n" + " " * 7 + "\t", "↵␣×7⇥"),
        ("aaaaa", "aaaaa"),
        ("", "∅"),
        ("\x00\r\x7f", "⟨0⟩⟨d⟩⟨7f⟩"),
        ("\u200b\u00a0\u2028\ue000", "⟨200b⟩⟨a0⟩⟨2028⟩⟨e000⟩"),
        ("\u202edcba", "⟨202e⟩dcba"),
        ("日本é<b>$x$&amp;", "日本é<b>$x$&amp;"),
    ],
)
def test_what_is_invisible_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_tokens_are_shortened() -> None:
    assert visible("internationalisation", 8) == "interna…"
    assert visible("internal", 8) == "internal"
    assert visible(" " * 30, 8) == "␣×30", "it is what is shown that counts"


def test_a_reader_of_byte_tokens(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    read = token_reader(byte_tokenizer)
    for text in ("a", " ", "\n", "<", "\x00"):
        (token,) = byte_tokenizer(text)["input_ids"]
        assert read(token) == text
    assert [read(token) for token in byte_tokenizer("é")["input_ids"]] == ["\\xc3", "\\xa9"], "half a character"
    assert read(256) == "<|endoftext|>"
    assert read(300) == "⟨300⟩", "the head has more rows than the tokenizer has tokens"


def test_a_reader_of_sentencepiece_tokens_keeps_their_space() -> None:
    backend = Tokenizer(models.WordLevel({"▁the": 0, "cat": 1}, unk_token="cat"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    read = token_reader(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert (read(0), read(1)) == (" the", "cat")


def test_tokens_of_a_real_tokenizer_make_up_the_text(test_data: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(test_data / "tokenizers" / "20B_tokenizer.json"))
    text = "def f(x):\n    return  x  # that's $5 <b> naïve\n\n\n"
    read = token_reader(tokenizer)
    assert "".join(read(token) for token in tokenizer(text)["input_ids"]) == text


def test_tokens_of_the_demo_model() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "checkpoints" / "tiny-mamba")
    text = "class A:\n    def f(self):\n        pass\n"
    read = token_reader(tokenizer)
    assert "".join(read(token) for token in tokenizer(text)["input_ids"]) == text

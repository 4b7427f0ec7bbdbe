"""What is held out of a text: by a hash where that is enough, else its end; the halves share nothing, and both are
there for every text from 2 kB up."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from lens_rnn.data import DataConfig, FileSource, TokenBlocks, is_held_out, load_blocks
from lens_rnn.data.splits import BY_HASH, ENOUGH, Piece, choose_split, texts_of_half
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from tests.data.texts import config, refusal, texts_of, write_jsonl

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """Id i is byte i, 256 the end of a text."""
    return byte_tokenizer(257)


def made_text(characters: int, seed: int, line_ends: bool = True) -> str:
    """Words that no other text has, and between some of them line ends."""
    random = np.random.default_rng(seed)
    numbers = random.integers(10**12, size=characters // 14 + 1)
    made = "".join(f"{n:012d}é" + (" " if not line_ends or n % 10 else "\n") for n in numbers)
    return made[:characters]


def pieces(*texts: str) -> list[Piece]:
    return list(itertools.starmap(Piece, enumerate(texts)))


def halves(of: list[Piece]) -> tuple[list[str], list[str]]:
    split = choose_split(of)
    return list(texts_of_half(of, split, "fit")), list(texts_of_half(of, split, "eval"))


# --- what is decided --------------------------------------------------------------------------------------------------


def test_documents_are_chosen_by_a_hash_where_that_is_enough() -> None:
    texts = [f"{i}: {'x' * 4_000}" for i in range(500)]
    assert sum(len(text) for text in texts if is_held_out(text)) > ENOUGH
    assert choose_split(pieces(*texts)) == BY_HASH
    assert halves(pieces(*texts)) == (
        [text for text in texts if not is_held_out(text)],
        [text for text in texts if is_held_out(text)],
    )


@pytest.mark.parametrize("most", [True, False])
def test_a_hash_that_holds_too_much_or_too_little_out_gives_way_to_the_end(most: bool) -> None:
    """One long document can be most of the text."""
    chosen = [f"{i}" for i in range(1000) if is_held_out(f"{i}")]
    others = [f"{i}" for i in range(1000) if not is_held_out(f"{i}")]
    texts = [f"{i} some words" for i in range(40)] if not most else others[:200]
    of = pieces(*texts)
    if most:  # a piece follows its document's first, which a hash has chosen
        of = [Piece(0, chosen[0]), Piece(0, "y" * 100_000), *(Piece(1 + i, text) for i, text in enumerate(texts))]
    split = choose_split(of)
    total = sum(len(piece.text) for piece in of)
    assert split.first == total - total // 10
    assert "the last tenth" in split.words


def test_all_pieces_of_a_document_are_in_one_half() -> None:
    """By the hash of the first; here every document is its number, and then a long piece."""
    of = [Piece(i, text) for i in range(1500) for text in (f"{i}", f"{i}: {'x' * 2_000}")]
    assert choose_split(of) == BY_HASH
    fit, held = halves(of)
    numbers = [{text.partition(":")[0] for text in half} for half in (fit, held)]
    assert len(numbers[0]) + len(numbers[1]) == 1500
    assert not numbers[0] & numbers[1]


def test_the_end_begins_at_a_line_or_a_word() -> None:
    for text, start in (("ab cd ef gh\nij kl mn op qr st", "st"), ("a" * 20, "aa")):
        fit, held = halves(pieces(text))
        assert "".join(fit) + "".join(held) == text
        assert held == [start]
    lines = "one line\n" * 40
    assert halves(pieces(lines))[1] == ["one line\n" * 4]


def test_a_book_is_one_document_and_its_end_is_held_out(tmp_path: Path) -> None:
    """308 kB in one .txt file, which a hash of its parts would have torn up."""
    book = made_text(300_000, 0)
    (tmp_path / "book.txt").write_text(book)
    source = FileSource(tmp_path / "book.txt")
    fit, held = "".join(texts_of(source, "fit")), "".join(texts_of(source, "eval"))
    assert fit + held == book
    assert len(held) == pytest.approx(30_000, abs=64)
    assert "the last tenth" in source.split.words


def test_a_large_book_too(tmp_path: Path, large_sources: None) -> None:
    book = made_text(300_000, 0)
    (tmp_path / "book.txt").write_text(book)
    source = FileSource(tmp_path / "book.txt")
    assert not source.is_small
    assert "".join(texts_of(source, "fit")) + "".join(texts_of(source, "eval")) == book
    records = FileSource(write_jsonl(tmp_path / "one.jsonl", [book]))
    assert records.split == BY_HASH, "records are read no further than is needed"


# --- what is packed ---------------------------------------------------------------------------------------------------


def documents() -> Iterator[tuple[str, list[str]]]:
    """Texts by name, of every number and size from 1 document of 2 kB up."""
    for number, size in (
        (1, 2_000),
        (1, 2_001),
        (1, 5_000),
        (1, 40_000),
        (2, 1_000),
        (3, 30_000),
        (13, 160),
        (13, 9_000),
    ):
        yield f"{number} of {size}", [made_text(size, 100 * number + i) for i in range(number)]
    random = np.random.default_rng(0)
    for number in (1, 2, 7, 40, 300):
        sizes = random.permutation(
            np.ceil(2_000 / number + random.pareto(0.8, number) * 50).astype(int).clip(max=50_000)
        )
        yield f"{number} of any size", [made_text(size, 1000 + i) for i, size in enumerate(sizes)]
    yield "1 without line ends", [made_text(20_000, 7, line_ends=False)]
    yield "a long last one", [*(made_text(50, i) for i in range(50)), made_text(50_000, 99)]
    yield "a long first one", [made_text(50_000, 99), *(made_text(50, i) for i in range(50))]


TEXTS = dict(documents())


def written(texts: list[str], kind: str, folder: Path) -> Path:
    if kind == "jsonl":
        return write_jsonl(folder / "texts.jsonl", texts)
    for i, text in enumerate(texts):
        (folder / f"{i:04d}.txt").write_text(text)
    return folder


def text_of(blocks: TokenBlocks) -> str:
    """The blocks' text, of a byte tokenizer, whose end of text is 256; no separate texts share words over its end."""
    return "".join("\0" if i == 256 else chr(i) for i in blocks.tokens.ravel())


@pytest.mark.parametrize("seq_len", [16, 256, 2048])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_text_has_two_halves_that_share_nothing(
    name: str, kind: str, seq_len: int, tmp_path: Path, token_cache: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = written(TEXTS[name], kind, tmp_path)
    fit, held = (
        load_blocks(config(path, seq_len=seq_len), role, tokenizer, everything=True) for role in ("fit", "eval")
    )
    assert len(fit) >= 1
    assert len(held) >= 1
    assert fit.seq_len == held.seq_len
    assert seq_len / fit.seq_len in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    seen, measured = text_of(fit), text_of(held)
    words = {seen[i : i + 16] for i in range(len(seen) - 15)}  # as long as a word, so that chance does not repeat them
    assert not [i for i in range(len(measured) - 15) if measured[i : i + 16] in words]
    assert fit.held_out == held.held_out != ""
    again = load_blocks(config(path, seq_len=seq_len), "eval", tokenizer, everything=True)
    assert again.sha256 == held.sha256
    smaller = load_blocks(config(path, seq_len=8), "eval", tokenizer, everything=True)
    assert measured[: held.seq_len] in text_of(smaller), "the same text is held out whatever the length of a block"


def test_a_block_before_the_held_out_end_is_in_neither_half(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    text = made_text(10_000, 0)
    path = written([text], "txt", tmp_path)
    for seq_len in (64, 200):
        fit, held = (
            load_blocks(config(path, seq_len=seq_len), role, tokenizer, everything=True) for role in ("fit", "eval")
        )
        start = len(text.encode()) - len("".join(texts_of(FileSource(path), "eval")).encode())
        assert 0 <= (start + 1 - seq_len) - fit.tokens.size < seq_len  # one more: the end of the text that is fitted on
        assert held.tokens.ravel().tolist() == [*text.encode()[start:]][: held.tokens.size]


def test_blocks_of_a_short_text_are_halved_and_that_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    path = written([made_text(2_000, 0)], "txt", tmp_path)
    held = load_blocks(config(path, seq_len=256), "eval", tokenizer)
    assert held.tokens.shape == (1, 128)
    assert caplog.messages[-1] == f"{path} is short: blocks have 128 tokens in place of 256"


# --- separate texts ---------------------------------------------------------------------------------------------------


def test_separate_texts_are_taken_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [[made_text(500, 10 * part + i) for i in range(8)] for part in range(2)]
    paths = [str(write_jsonl(tmp_path / f"{part}.jsonl", texts[part])) for part in range(2)]
    settings = DataConfig(data=paths[0], eval_data=paths[1], seq_len=16)
    for role, path, part in (("fit", paths[0], texts[0]), ("eval", paths[1], texts[1])):
        blocks = load_blocks(settings, role, tokenizer, everything=True)
        whole = "".join(f"{text}\0" for text in part).encode()
        assert text_of(blocks).encode("latin-1") == whole[: len(whole) // 16 * 16]
        assert blocks.source == path
        assert blocks.held_out == f"separate text, {paths[1]}"


def test_what_cannot_be_separate() -> None:
    assert "both a.txt" in refusal(lambda: DataConfig(data="a.txt", eval_data="a.txt"), kind=ConfigError)


def test_a_text_of_less_than_a_few_blocks(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "twenty characters ab"}))
    message = refusal(lambda: load_blocks(config(path), "eval", tokenizer), kind=DataError)
    assert "less than one block of 8; give more text" in message

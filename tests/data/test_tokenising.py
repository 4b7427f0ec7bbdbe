"""Tokenising in groups, in parallel: what one document after the other gives, in bounded memory, read no further than
is needed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lens_rnn.data import Document, Role, TokenBlocks, blocks, load_blocks, packing
from lens_rnn.data.documents import Source
from lens_rnn.data.tokenising import Packed, tokenise
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from lens_rnn.models.world_tokenizer import read_world_tokenizer
from tests.data.texts import config
from tests.data.tokenizers import parts_of_characters, sentencepiece_like, words, world
from tests.reference.data import counts_of_any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[2]
TEXTS = [
    "def f(x):\n    return  x\n",
    "",
    "grüße aus köln; naïve café",
    "日本語のテキスト 🙂👍🏽 mixed, 👩‍👩‍👧 family",
    "e\u0301 in two characters, \ufb01 as one, n\u0303o",
    "a replacement character \ufffd, and half a pair \ud83d of surrogates",
    "<|endoftext|> is text here, <|padding|> too </s> <unk>",
    "\x00\x7f\x80\xff \u2028 \r\n",
    "▁a ▁ Ġ Ċ are letters of spellings",
    " leading and trailing \n ",
    *(f"number {i} " * (i % 5) for i in range(30)),
]


def tiny_mamba() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "tiny-mamba")


def official_world() -> PreTrainedTokenizerBase:
    pytest.importorskip("rwkv", reason="the World vocabulary is in the rwkv package")
    return read_world_tokenizer(None)


KINDS = {
    "tiny-mamba": tiny_mamba,
    "sentencepiece": sentencepiece_like,
    "sentencepiece, no bytes": lambda: sentencepiece_like(byte_fallback=False),
    "World": official_world,
    "made World": world,
    "bytes": lambda: byte_tokenizer(257),
    "bytes, NUL ends": lambda: byte_tokenizer(256),
    "parts of characters": parts_of_characters,
    "words": words,
}


def joined(groups: Iterator[Packed]) -> list[list[int]]:
    parts = list(groups)
    return [np.concatenate([getattr(part, name) for part in parts]).tolist() for name in ("ids", "token_bytes")]


@pytest.mark.parametrize("size", [1, 200, 10**9])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_in_parallel_are_one_document_after_the_other(kind: str, size: int) -> None:
    tokenizer = KINDS[kind]()
    ids: list[int] = []
    counts: list[int] = []
    lengths = []
    for text in (text.encode("utf-8", "replace").decode() for text in TEXTS):
        of_text = tokenizer([text], add_special_tokens=False)["input_ids"][0]
        ids += [*of_text, 7]
        counts += [*counts_of_any(text, tokenizer), 0]
        lengths.append(len(of_text) + 1)
    groups = list(tokenise(TEXTS, tokenizer, 7, np.dtype(np.uint32), size))
    assert joined(iter(groups)) == [ids, counts]
    assert np.concatenate([np.diff(group.ends, prepend=0) for group in groups]).tolist() == lengths
    assert (len(groups) == 1) == (size == 10**9)


def test_a_stream_is_read_no_further_than_the_groups_in_work() -> None:
    read = 0

    def stream() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "x" * 100

    groups = tokenise(stream(), byte_tokenizer(257), 256, np.dtype(np.uint16), 1000)
    assert len(next(groups).ids) == 10 * 101
    assert read <= 10 * 9, "ten texts a group, and no more groups than workers and one"
    groups.close()


@pytest.mark.parametrize("make", [lambda: byte_tokenizer(257), world])
def test_an_error_of_the_source_comes_through(make: Any) -> None:
    def stream() -> Iterator[str]:
        yield "fine"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(tokenise(stream(), make(), 0, np.dtype(np.uint16), 1))


# --- memory -----------------------------------------------------------------------------------------------------------


class Stream(Source):
    """Text without end, made on the way."""

    name = "made text"

    def __init__(self, pause: float = 0.0):
        self.pause = pause

    def identity(self, role: Role | None) -> dict[str, Any]:
        return {"made": 1}

    def documents(self, role: Role | None) -> Iterator[Document]:
        random = np.random.default_rng(0)
        while True:
            time.sleep(self.pause)
            text = random.bytes(1500).hex(" ")
            yield Document(text, text)


def most_memory(tokens: int) -> tuple[int, TokenBlocks]:
    """Bytes that Python and numpy held at most while so many tokens were packed, hashed and counted."""
    tracemalloc.start()
    try:
        made = load_blocks(config("made", tokens=tokens, seq_len=64), "fit", byte_tokenizer(257), Stream())
        assert made.counts(257).sum() == made.tokens.size
        assert made.n_bytes < made.tokens.size
        made.batch(np.array([0, 5]))
        return tracemalloc.get_traced_memory()[1], made
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tokens", [300_032, pytest.param(20_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_text(tokens: int, monkeypatch: pytest.MonkeyPatch, token_cache: Path) -> None:
    """Four times the tokens, and not a tenth more memory."""
    monkeypatch.setattr(packing, "GROUP", tokens // 100)
    monkeypatch.setattr(blocks, "_SPAN", tokens // 100)
    most_memory(tokens // 8)  # what is loaded once
    few, _ = most_memory(tokens // 4)
    many, made = most_memory(tokens)
    assert made.tokens.shape == (tokens // 64, 64)
    assert many < 1.1 * few + 100_000
    assert many < 20 * tokens // 4


# --- progress, and a run that is killed -------------------------------------------------------------------------------

SCRIPT = """
from lens_rnn.data import load_blocks
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from tests.data.test_tokenising import Stream
from tests.data.texts import config
from tests.data.tokenizers import world

if __name__ == "__main__":
    tokenizer = world() if {world} else byte_tokenizer(257)
    load_blocks(config("made", tokens=10**8), "fit", tokenizer, Stream(pause=0.001))
"""


@pytest.mark.parametrize("in_python", [False, True])
def test_progress_is_shown_and_a_killed_packing_is_not_taken_for_whole(
    in_python: bool, tmp_path: Path, token_cache: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(world=in_python)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "", "LENS_RNN_CACHE": str(token_cache)}
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=stderr)
    try:
        until = time.monotonic() + 120
        while b"tok/s" not in (tmp_path / "stderr").read_bytes():
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = workers.read_text().split() if workers.exists() else []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert b"packing:" in (tmp_path / "stderr").read_bytes()
    assert [path.suffix for path in token_cache.iterdir() if path.is_dir()] == [".partial"]
    made = load_blocks(config("made", tokens=1600), "fit", byte_tokenizer(257), Stream())
    assert made.tokens.shape == (100, 16)
    until = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):  # nobody gives its workers work any more
        assert time.monotonic() < until
        time.sleep(0.1)

"""Packing and counting, the cache, and every refusal in one line."""

import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lens_rnn.data import (
    DataConfig,
    Document,
    FileSource,
    Role,
    TokenBlocks,
    cache_folder,
    is_held_out,
    load_blocks,
    packing,
    tokenizer_sha256,
    unigram_cross_entropy,
)
from lens_rnn.data import blocks as blocks_module
from tests.data.texts import FITTED, HELD_OUT, TEXTS, config, refusal, texts_of, write_jsonl
from tests.reference.data import expected_bytes, expected_tokens

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

pytestmark = pytest.mark.usefixtures("by_hash")


@pytest.mark.parametrize("role", ["fit", "eval"])
def test_blocks_and_counts_equal_a_naive_recomputation(
    role: Role, jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    blocks = load_blocks(config(jsonl), role, byte_tokenizer)
    texts = FITTED if role == "fit" else HELD_OUT
    ids = expected_tokens(texts, byte_tokenizer)
    assert blocks.tokens.shape == (len(ids) // 16, 16)
    assert blocks.tokens.ravel().tolist() == ids[: len(ids) // 16 * 16]
    ends = ids[: len(ids) // 16 * 16].count(byte_tokenizer.eos_token_id)
    assert blocks.n_documents == len(texts)
    assert blocks.n_bytes == blocks.tokens.size - ends
    assert blocks.bits_per_byte == pytest.approx(blocks.tokens.size / blocks.n_bytes / math.log(2))
    assert blocks.held_out == "1 document in 50, chosen by a hash of its text"
    assert (len(blocks), blocks.seq_len, blocks.source) == (len(ids) // 16, 16, str(jsonl))


@pytest.mark.usefixtures("large_sources")
def test_only_what_is_asked_for_is_packed_and_counted(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """79 tokens are four blocks of 16, and one more is read, in case that the end of the text is held out."""
    blocks = load_blocks(config(jsonl, tokens=79), "fit", byte_tokenizer)
    ids = expected_tokens(FITTED, byte_tokenizer)
    assert blocks.tokens.ravel().tolist() == ids[:64]
    ends = np.cumsum([len(text.encode()) + 1 for text in FITTED])
    used = int(np.searchsorted(ends, 80)) + 1
    assert blocks.n_documents == used < len(FITTED)
    assert blocks.n_bytes == 64 - ids[:64].count(byte_tokenizer.eos_token_id)


@pytest.mark.usefixtures("large_sources")
@pytest.mark.parametrize("wanted", [48, 64, 80])
def test_an_end_that_falls_on_a_document_end(
    wanted: int, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = [
        text for text in (f"{i:015d}" for i in range(100)) if not is_held_out(text)
    ]  # 16 tokens each with the end of text
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    blocks = load_blocks(config(path, tokens=wanted), "fit", byte_tokenizer)
    assert blocks.tokens.size == wanted
    assert blocks.n_documents == wanted // 16 + 1
    assert (blocks.tokens[:, -1] == byte_tokenizer.eos_token_id).all()


@pytest.mark.usefixtures("large_sources")
def test_groups_do_not_change_the_tokens(
    jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "GROUP", 100)
    blocks = load_blocks(config(jsonl, seq_len=17, tokens=1000), "fit", byte_tokenizer)
    assert blocks.tokens.ravel().tolist() == expected_tokens(FITTED, byte_tokenizer)[: 1000 // 17 * 17]


def test_everything_overrides_what_was_asked_for(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    blocks = load_blocks(config(jsonl, eval_tokens=16), "eval", byte_tokenizer, everything=True)
    assert blocks.n_documents == len(HELD_OUT)
    assert len(load_blocks(config(jsonl, eval_tokens=16), "eval", byte_tokenizer)) == 1


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("role", ["fit", "eval"])
def test_by_default_a_source_that_holds_less_gives_all_there_is(
    role: Role,
    small: bool,
    jsonl: Path,
    byte_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if not small:
        request.getfixturevalue("large_sources")
    ids = expected_tokens(FITTED if role == "fit" else HELD_OUT, byte_tokenizer)
    assert len(ids) < packing.DEFAULT_EVAL_TOKENS < packing.DEFAULT_FIT_TOKENS
    blocks = load_blocks(config(jsonl), role, byte_tokenizer)
    assert blocks.tokens.ravel().tolist() == ids[: len(ids) // 16 * 16]
    monkeypatch.setattr(packing, f"DEFAULT_{role.upper()}_TOKENS", 70)
    assert load_blocks(config(jsonl), role, byte_tokenizer).tokens.shape == (4, 16)


def test_the_hash_is_that_of_the_tokens_one_span_after_the_other(
    jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_blocks(config(jsonl), "fit", byte_tokenizer)
    whole = hashlib.sha256(loaded.tokens.tobytes()).hexdigest()
    held = load_blocks(config(jsonl), "eval", byte_tokenizer)
    counts, size = loaded.counts(257), loaded.n_bytes
    unigram = unigram_cross_entropy(loaded, held, 257)
    assert loaded.sha256 == whole
    monkeypatch.setattr(blocks_module, "_SPAN", 50)  # three blocks, and some are left over
    assert TokenBlocks.of_tokens(loaded.tokens).sha256 == whole
    assert loaded.counts(257).tolist() == counts.tolist()
    assert loaded.n_bytes == size
    assert unigram_cross_entropy(loaded, held, 257) == pytest.approx(unigram, rel=1e-14)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """JSON can hold one, UTF-8 cannot."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "smile \\ud83d\\ude00, half \\ud83d of it!"}\n')
    blocks = load_blocks(config(path), "fit", byte_tokenizer)
    assert blocks.token_bytes.tolist() == [[1] * 16]
    assert blocks.tokens.ravel().tolist() == expected_tokens(["smile 😀, half ? of it!"], byte_tokenizer)[:16]


def word_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="end")


@pytest.mark.parametrize(
    ("largest", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32), (10**6, np.uint32)]
)  # two words only: ids may leave gaps, so the number of words says nothing
def test_ids_are_stored_in_16_bits_where_they_fit(largest: int, dtype: type, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a big a", "big big"])
    tokenizer = word_tokenizer({"end": 0, "a": 1, "big": largest})
    blocks = load_blocks(config(path, seq_len=2), "fit", tokenizer)
    assert blocks.tokens.dtype == dtype
    assert blocks.tokens.tolist() == [[1, largest], [1, 0], [largest, largest]]
    assert blocks.batch(slice(0, 1)).tolist() == [[1, largest]]
    assert blocks.batch(np.array([2])).dtype == torch.int64


def test_a_tokenizer_in_python(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """One that is not fast is run in several processes and gives the same."""

    class Slow:
        is_fast = False
        eos_token_id = 256
        get_vocab = byte_tokenizer.get_vocab

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [byte_tokenizer(text).input_ids for text in texts]}

    slow = load_blocks(config(jsonl), "fit", Slow())
    assert slow.sha256 == load_blocks(config(jsonl), "fit", byte_tokenizer).sha256


def test_more_is_asked_for_than_there_is(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    held = len(expected_tokens(FITTED, byte_tokenizer)) // 16 * 16
    message = refusal(lambda: load_blocks(config(jsonl, tokens=50_000), "fit", byte_tokenizer))
    assert message == f"{jsonl} holds {held:,} tokens for fitting, 50,000 were asked for; ask for fewer"
    message = refusal(lambda: load_blocks(config(jsonl, eval_tokens=50_000), "eval", byte_tokenizer))
    assert "ask for fewer" in message
    assert load_blocks(config(jsonl, tokens=held), "fit", byte_tokenizer).tokens.size == held


@pytest.mark.parametrize("content", ["", "\n", '{"text": ""}\n', '{"text": "short"}\n'])
def test_less_than_one_block(content: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    message = refusal(lambda: load_blocks(config(path), "fit", byte_tokenizer))
    assert (
        message == f"{path} has {6 * ('short' in content)} tokens to fit on, less than one block of 8; give more text"
    )


def test_a_tokenizer_without_end_of_text(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    assert "has no end-of-text token" in refusal(lambda: load_blocks(config(jsonl), "fit", tokenizer))


def test_counts_and_unigram_cross_entropy(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    fit, held = load_blocks(config(jsonl), "fit", byte_tokenizer), load_blocks(config(jsonl), "eval", byte_tokenizer)
    counts = [0] * 300
    for token in fit.tokens.ravel().tolist():
        counts[token] += 1
    assert fit.counts(300).tolist() == counts
    total = sum(counts) + 300  # one more for each id of the vocabulary
    losses = [-math.log((counts[token] + 1) / total) for row in held.tokens.tolist() for token in row[1:]]
    assert unigram_cross_entropy(fit, held, 300) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_few_tokens_of_a_small_source_come_from_everywhere(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The first tokens of sorted files would be of one subject. The draw is the same each time, and no block is drawn
    twice."""
    path = tmp_path / "numbered.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number:015d}"}) + "\n" for number in range(2000)))
    whole = load_blocks(DataConfig(data=str(path), seq_len=16), "fit", byte_tokenizer, everything=True)
    drawn, again = (
        load_blocks(DataConfig(data=str(path), seq_len=16, tokens=1600), "fit", byte_tokenizer) for _ in range(2)
    )
    rows = {block.tobytes(): number for number, block in enumerate(whole.tokens)}
    places = [rows[block.tobytes()] for block in drawn.tokens]
    assert len(places) == len(set(places)) == 100
    assert places == sorted(places)
    assert min(places) < 0.1 * len(whole) < 0.9 * len(whole) < max(places)
    assert (drawn.tokens == again.tokens).all()
    assert drawn.sha256 == again.sha256 != whole.sha256
    assert drawn.n_bytes == 1500 < whole.n_bytes, "of these blocks"


# --- the cache --------------------------------------------------------------------------------------------------------


class Counting(FileSource):
    """A source that notes in a file each time it is read."""

    def documents(self, role: Role) -> Iterator[Document]:
        with Path(f"{self.name}.reads").open("a") as log:
            log.write("read\n")
        return super().documents(role)


def reads(path: Path) -> int:
    log = Path(f"{path}.reads")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LENS_RNN_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("LENS_RNN_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lens_rnn"


def test_packed_once_and_used_again(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, token_cache: Path) -> None:
    first = load_blocks(config(jsonl), "fit", byte_tokenizer, Counting(jsonl))
    second = load_blocks(config(jsonl), "fit", byte_tokenizer, Counting(jsonl))
    assert reads(jsonl) == 1
    assert second.sha256 == first.sha256
    assert np.array_equal(second.tokens, first.tokens)
    assert np.array_equal(second.token_bytes, first.token_bytes)
    assert (second.n_documents, second.held_out) == (first.n_documents, first.held_out)
    assert not list(token_cache.glob("*.partial*"))


@pytest.mark.usefixtures("large_sources")
def test_whatever_decides_the_tokens_decides_the_entry(
    jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, token_cache: Path
) -> None:
    def load(
        role: Role = "fit", tokenizer: PreTrainedTokenizerBase = byte_tokenizer, **settings: object
    ) -> TokenBlocks:
        return load_blocks(config(jsonl, **settings), role, tokenizer, Counting(jsonl))

    load()
    load(tokens=160)
    load("eval", eval_tokens=160)
    load(tokenizer=word_tokenizer({"end": 0, "a": 1}))
    assert reads(jsonl) == 4
    before = load()
    write_jsonl(jsonl, [text.upper() for text in TEXTS])
    os.utime(jsonl, ns=(0, 0))  # a file system may be too coarse to see two writes in a row
    assert load().sha256 != before.sha256
    assert reads(jsonl) == 5


def test_padding_does_not_change_the_hash_of_a_tokenizer(
    byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Fast tokenizers keep the padding and truncation of their last call."""
    byte_tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, pad_token=byte_tokenizer.eos_token)
    before = tokenizer_sha256(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_sha256(tokenizer) == before == tokenizer_sha256(byte_tokenizer)
    assert (
        tokenizer_sha256(word_tokenizer({"end": 0, "a": 1}))
        != tokenizer_sha256(word_tokenizer({"end": 1, "a": 0}))
        != before
    )


def test_what_a_killed_packing_left_is_cleared(
    jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, token_cache: Path
) -> None:
    first = load_blocks(config(jsonl), "fit", byte_tokenizer)
    (folder,) = (path for path in token_cache.iterdir() if path.is_dir())
    folder.rename(f"{folder}.partial")  # as if it had been killed just before the rename
    (Path(f"{folder}.partial") / "meta.json").unlink()
    again = load_blocks(config(jsonl), "fit", byte_tokenizer, Counting(jsonl))
    assert reads(jsonl) == 1
    assert again.sha256 == first.sha256
    assert [path for path in token_cache.iterdir() if path.is_dir()] == [folder]


def test_a_failed_packing_leaves_nothing(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase, token_cache: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n')
    for _ in range(2):
        assert "line 2: not JSON" in refusal(lambda: load_blocks(config(path), "fit", byte_tokenizer))
    assert not [entry for entry in token_cache.iterdir() if entry.is_dir()]


def _pack_in_a_process(path: Path, tokenizer: Path, cache: Path, barrier: Any, results: Any) -> None:
    os.environ["LENS_RNN_CACHE"] = str(cache)
    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    barrier.wait(60)
    results.put(load_blocks(config(path), "fit", loaded, Counting(path)).sha256)


def test_two_processes_at_once_pack_once(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (jsonl, tmp_path / "tokenizer", tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_pack_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results.get(timeout=10) == results.get(timeout=10)
    assert reads(jsonl) == 2, "each half, by one of them"


# --- real texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pile_text.jsonl", "demo_pile_format.val.jsonl"])
def test_real_texts(name: str, test_data: Path, byte_tokenizer: PreTrainedTokenizerBase, token_cache: Path) -> None:
    path = test_data / "text" / name
    records = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    for role in ("fit", "eval"):
        texts = [text for text in records if text and is_held_out(text) == (role == "eval")]
        if sum(len(text.encode()) + 1 for text in texts) < 64:
            assert "1 document in 50" in refusal(lambda: load_blocks(config(path, seq_len=64), "eval", byte_tokenizer))
            continue
        blocks = load_blocks(config(path, seq_len=64), role, byte_tokenizer, everything=True)
        ids = expected_tokens(texts, byte_tokenizer)
        assert np.array_equal(blocks.tokens.ravel(), ids[: len(ids) // 64 * 64])
        assert blocks.n_bytes == blocks.tokens.size - ids[: blocks.tokens.size].count(byte_tokenizer.eos_token_id)


def test_the_real_tokenizer(test_data: Path, token_cache: Path) -> None:
    """At a vocabulary of 50,277 ids still fit in 16 bits; packing them gives what one call a document gives."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(test_data / "tokenizers" / "20B_tokenizer.json"), eos_token="<|endoftext|>"
    )
    path = test_data / "text" / "pile_text.jsonl"
    blocks = load_blocks(config(path, seq_len=64), "fit", tokenizer)
    texts = texts_of(FileSource(path), "fit")
    ids = expected_tokens(texts, tokenizer)
    assert blocks.tokens.dtype == np.uint16
    assert blocks.tokens.ravel().tolist() == ids[: len(ids) // 64 * 64]
    assert blocks.token_bytes.ravel().tolist() == expected_bytes(texts, tokenizer)[: blocks.tokens.size]

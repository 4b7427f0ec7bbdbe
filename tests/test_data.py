"""Text sources, the fixed split, packing and counting, the cache, and every refusal in one line."""

import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lens_rnn.data import (
    DataConfig,
    Document,
    FileSource,
    Role,
    Source,
    StdlibSource,
    TokenBlocks,
    cache_folder,
    is_held_out,
    load_blocks,
    open_source,
    packing,
    sources,
    tokenizer_sha256,
    unigram_cross_entropy,
)
from lens_rnn.errors import ConfigError, DataError
from tests import hub_server

import numpy as np
import pytest
import torch
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXTS = [f"Document {i}: {'grüße, ' * (i % 7)}{'x' * (i % 13)}\n" for i in range(300)]
HELD_OUT = [text for text in TEXTS if is_held_out(text)]
FITTED = [text for text in TEXTS if not is_held_out(text)]


def refusal(call: Callable[[], object], kind: type[Exception] = DataError) -> str:
    """The message of the error that a call ends in, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({field: text, "meta": {"n": i}}) + "\n" for i, text in enumerate(texts)), encoding="utf-8"
    )
    return path


def config(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(data=str(path), **{"seq_len": 16, **settings})


def texts_of(source: Source, role: Role) -> list[str]:
    return [document.text for document in source.documents(role)]


def expected_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All documents, each followed by the end of text: the naive twin of packing."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return ids


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", TEXTS)


@pytest.fixture
def large_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is taken for a large one, of which only the beginning is read."""
    monkeypatch.setattr(sources, "_SMALL_BYTES", 0)


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
    assert (drawn.n_bytes, drawn.n_tokens) == (whole.n_bytes, whole.n_tokens), "the ratio is of the whole text"


# --- configuration and the split --------------------------------------------------------------------------------------


def test_configuration_refuses_less_than_one_block() -> None:
    assert "tokens is 15, less than one block of seq_len 16" in refusal(
        lambda: DataConfig(tokens=15, seq_len=16), ConfigError
    )
    assert "eval_tokens is 15" in refusal(lambda: DataConfig(eval_tokens=15, seq_len=16), ConfigError)
    assert "seq_len is 1;" in refusal(lambda: DataConfig(seq_len=1), ConfigError)


def test_the_split_is_fixed_for_ever() -> None:
    """These values are on users' disks and in published results: a change of the hash is a change of what was held
    out."""
    assert [i for i in range(300) if is_held_out(f"document {i}")] == [138, 150, 157, 177, 245]
    share = np.mean([is_held_out(str(i)) for i in range(20_000)])
    assert abs(share - 1 / 50) < 0.003
    assert is_held_out("half a pair \ud800") in (True, False)


def test_the_two_halves_share_nothing_and_lose_nothing(jsonl: Path) -> None:
    source = FileSource(jsonl)
    fit, held = texts_of(source, "fit"), texts_of(source, "eval")
    assert fit == FITTED
    assert held == HELD_OUT
    assert len(held) > 1


# --- python-stdlib ----------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    for i in range(120):
        path = root / ("package" if i % 2 else ".") / f"module_{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {i}\n")
    for name in (
        "test/a.py",
        "package/tests/b.py",
        "idlelib/idle_test/c.py",
        "site-packages/d.py",
        "package/__pycache__/e.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("excluded\n")
    (root / "notes.txt").write_text("excluded\n")
    (root / "package" / "__init__.py").write_text("")
    return root


def test_stdlib_leaves_out_tests_and_splits_by_name(library: Path) -> None:
    source = StdlibSource(library)
    fit, held = list(source.documents("fit")), list(source.documents("eval"))
    assert len(fit) + len(held) == 120
    assert held
    assert all(is_held_out(document.key) for document in held)
    assert not any(is_held_out(document.key) for document in fit)
    assert not any("excluded" in text for text in (*texts_of(source, "fit"), *texts_of(source, "eval")))
    for path in library.rglob("module_*.py"):
        path.write_text(path.read_text() + "# edited\n")
    assert [document.key for document in StdlibSource(library).documents("eval")] == [document.key for document in held]


def test_stdlib_identity_follows_names_and_contents(library: Path) -> None:
    before = StdlibSource(library).identity("fit")
    assert StdlibSource(library).identity("fit") == before
    (library / "module_0.py").write_text("# changed\n")
    changed = StdlibSource(library).identity("fit")
    (library / "module_0.py").rename(library / "module_00.py")  # first in order, as before
    renamed = StdlibSource(library).identity("fit")
    assert len({before["sha256"], changed["sha256"], renamed["sha256"]}) == 3
    assert before["python"] == platform.python_version()


def test_stdlib_of_this_python() -> None:
    source = open_source(DataConfig())
    assert source.name == "python-stdlib"
    assert "json/decoder.py" in source.paths
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(path.split("/")) for path in source.paths)


def test_stdlib_without_sources(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.py").write_text("x")
    assert "no Python sources in" in refusal(lambda: StdlibSource(tmp_path))


def test_a_module_that_is_not_utf8_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"))
    source = StdlibSource(tmp_path)
    assert [*texts_of(source, "fit"), *texts_of(source, "eval")] == ["# -*- coding: latin-1 -*-\n# \ufffd\n"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_compressed_lines_are_the_plain_ones(jsonl: Path, tmp_path: Path) -> None:
    content = jsonl.read_bytes()
    one = tmp_path / "one.jsonl.zst"
    one.write_bytes(zstandard.compress(content))
    several = tmp_path / "several.jsonl.zst"  # frames end in the middle of a line
    several.write_bytes(b"".join(zstandard.compress(content[i : i + 1000]) for i in range(0, len(content), 1000)))
    for path in (one, several):
        assert texts_of(FileSource(path), "fit") == FITTED


def test_compressed_lines_across_chunks(jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CHUNK", 7)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl.read_bytes().removesuffix(b"\n")))
    assert texts_of(FileSource(path), "fit") == FITTED


def test_txt_is_cut_at_line_ends(tmp_path: Path) -> None:
    lines = [f"line {i} of a long book\n" for i in range(20_000)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines))
    source = FileSource(path)
    pieces = [*texts_of(source, "fit"), *texts_of(source, "eval")]
    assert len(pieces) > 10
    assert all(piece.endswith("book\n") for piece in pieces)
    assert sorted("".join(pieces).splitlines(keepends=True)) == sorted(lines)


def test_a_folder_is_read_in_order_of_names_with_subfolders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.jsonl").mkdir()  # a folder of that name is no file
    write_jsonl(tmp_path / "b" / "two.jsonl", ["two"])
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "readme.md").write_text("left out")
    source = open_source(config(tmp_path))
    assert texts_of(source, "fit") == ["one", "two", "three"]


def test_blank_lines_and_empty_documents_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": ""}\n  \n{"text": "saved"}\r\n')
    assert texts_of(FileSource(path), "fit") == ["saved"]


def test_another_field(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one"], field="content")
    assert texts_of(open_source(config(path, text_field="content")), "fit") == ["one"]
    assert f"{path}, line 1: no text in the field 'text'" in refusal(lambda: texts_of(FileSource(path), "fit"))


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere/", "./nowhere", "~/no-such-file.txt"])
def test_missing_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such data file or folder: " in refusal(lambda: open_source(config(name)))


def test_wrong_suffix_and_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    assert "holds no .jsonl, .jsonl.zst, .txt file" in refusal(lambda: open_source(config(tmp_path)))
    path.write_text("a,b\n")
    assert f"cannot read {path}: its name must end in .jsonl, .jsonl.zst, .txt" in refusal(
        lambda: open_source(config(path))
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"meta": 1}', "line 3: no text in the field 'text'"),
        (b'{"text": 5}', "line 3: no text in the field 'text'"),
        (b'["text"]', "line 3: no text in the field 'text'"),
        (b'{"text": "unfinished', "line 3: not JSON"),
        (b"plain prose", "line 3: not JSON"),
        (b'{"text": "\xff"}', "line 3: not UTF-8"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_bad_line_is_named(line: bytes, complaint: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    content = b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n'
    path.write_bytes(zstandard.compress(content) if suffix.endswith(".zst") else content)
    message = refusal(lambda: texts_of(FileSource(path), "fit"))
    assert message.startswith(f"{path}, {complaint}")


def test_txt_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n")
    assert f"{path}: not UTF-8" in refusal(lambda: texts_of(FileSource(path), "fit"))


@pytest.mark.parametrize(
    "damage", ["cut early", "cut late", "second frame cut", "overwritten", "not zstd", "followed by something else"]
)
def test_damaged_compressed_data(damage: str, jsonl: Path, tmp_path: Path) -> None:
    """A truncated download must not pass for a shorter text."""
    content = jsonl.read_bytes()
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    middle = len(whole) // 2
    damaged = {
        "cut early": whole[:3],
        "cut late": whole[:-1],
        "second frame cut": whole + whole[:middle],
        "overwritten": whole[:middle] + bytes(20) + whole[middle + 20 :],
        "not zstd": content,
        "followed by something else": whole + b"something else",
    }
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(damaged[damage])
    message = refusal(lambda: texts_of(FileSource(path), "fit"))
    assert str(path) in message
    assert "damaged zstd data" in message


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["fit", "eval"])
def test_blocks_and_counts_equal_a_naive_recomputation(
    role: Role, jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    blocks = load_blocks(config(jsonl), role, byte_tokenizer)
    texts = FITTED if role == "fit" else HELD_OUT
    ids = expected_tokens(texts, byte_tokenizer)
    assert blocks.tokens.shape == (len(ids) // 16, 16)
    assert blocks.tokens.ravel().tolist() == ids[: len(ids) // 16 * 16]
    assert (blocks.n_tokens, blocks.n_documents) == (len(ids), len(texts))
    assert blocks.n_bytes == sum(len(text.encode()) for text in texts)
    assert blocks.bits_per_byte == pytest.approx(len(ids) / blocks.n_bytes / math.log(2))
    assert (len(blocks), blocks.seq_len, blocks.source) == (len(ids) // 16, 16, str(jsonl))


@pytest.mark.usefixtures("large_sources")
def test_only_what_is_asked_for_is_packed_and_counted(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """79 tokens are four blocks of 16. The document in which those end counts whole, in bytes and in tokens, and it is
    the last."""
    blocks = load_blocks(config(jsonl, tokens=79), "fit", byte_tokenizer)
    ids = expected_tokens(FITTED, byte_tokenizer)
    assert blocks.tokens.ravel().tolist() == ids[:64]
    ends = np.cumsum([len(text.encode()) + 1 for text in FITTED])
    used = int(np.searchsorted(ends, 64)) + 1
    assert ends[used - 1] < 79  # one more document would be needed for the 79 themselves
    assert blocks.n_documents == used
    assert blocks.n_tokens == ends[used - 1]
    assert blocks.n_bytes == sum(len(text.encode()) for text in FITTED[:used])


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
    assert blocks.n_tokens == blocks.tokens.size == wanted
    assert blocks.n_documents == wanted // 16
    assert (blocks.tokens[:, -1] == byte_tokenizer.eos_token_id).all()


@pytest.mark.usefixtures("large_sources")
def test_groups_do_not_change_the_tokens(
    jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_GROUP", 100)
    blocks = load_blocks(config(jsonl, seq_len=17, tokens=1000), "fit", byte_tokenizer)
    assert blocks.tokens.ravel().tolist() == expected_tokens(FITTED, byte_tokenizer)[: 1000 // 17 * 17]


def test_everything_overrides_what_was_asked_for(jsonl: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    blocks = load_blocks(config(jsonl, eval_tokens=16), "eval", byte_tokenizer, everything=True)
    assert blocks.n_documents == len(HELD_OUT)
    assert len(load_blocks(config(jsonl, eval_tokens=16), "eval", byte_tokenizer)) == 1


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """JSON can hold one, UTF-8 cannot."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "smile \\ud83d\\ude00, half \\ud83d of it!"}\n')
    blocks = load_blocks(config(path), "fit", byte_tokenizer)
    assert blocks.n_bytes == len("smile 😀, half ? of it!".encode())
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
    assert f"{path} has {int('short' in content)} documents with {6 * ('short' in content)} tokens" in message
    assert "less than one block of 16; give more text" in message


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
    assert (second.n_bytes, second.n_tokens, second.n_documents) == (first.n_bytes, first.n_tokens, first.n_documents)
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
    load(seq_len=8)
    load(tokenizer=word_tokenizer({"end": 0, "a": 1}))
    assert reads(jsonl) == 5
    before = load()
    write_jsonl(jsonl, [text.upper() for text in TEXTS])
    os.utime(jsonl, ns=(0, 0))  # a file system may be too coarse to see two writes in a row
    assert load().sha256 != before.sha256
    assert reads(jsonl) == 6


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
    assert reads(jsonl) == 1


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
        assert (blocks.n_bytes, blocks.n_tokens) == (sum(len(text.encode()) for text in texts), len(ids))


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
    assert blocks.bits_per_byte == pytest.approx(len(ids) / sum(len(text.encode()) for text in texts) / math.log(2))


# --- the Hub ----------------------------------------------------------------------------------------------------------

_HUB_CLIENT = """
import json
from lens_rnn.data import HubSource
from lens_rnn.errors import DataError

def attempt(name, **settings):
    try:
        source = HubSource(name, **settings)
        texts = {role: [document.text for document in source.documents(role)] for role in ("fit", "eval")}
        return {"identity": {role: source.identity(role) for role in texts}, **texts}
    except DataError as error:
        return {"error": str(error)}

print(json.dumps({
    "one split": attempt("tiny/one-split"),
    "own validation": attempt("tiny/validation"),
    "no such split": attempt("tiny/validation", split="test"),
    "no such data set": attempt("tiny/nothing"),
    "no such field": attempt("tiny/validation", text_field="content"),
    "damaged": attempt("tiny/damaged"),
}))
"""


def _jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


HUB = {
    "tiny/one-split": {"README.md": b"---\nlicense: mit\n---\nTexts.\n", "train.jsonl": _jsonl(TEXTS)},
    "tiny/validation": {"train.jsonl": _jsonl(TEXTS), "validation.jsonl": _jsonl(["held out one", "held out two"])},
    "tiny/damaged": {"train.jsonl": _jsonl(TEXTS) + b'{"text": "unfinished\n'},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What HubSource makes of a Hub on loopback, in a process of its own because the address is read at import."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and key != "HF_HUB_OFFLINE"
    }
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "PYTHONPATH": str(Path(__file__).parents[1])}
    with hub_server.serve(HUB) as address:
        environment["HF_ENDPOINT"] = address
        command = [sys.executable, "-c", _HUB_CLIENT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_identity_names_the_commit_and_the_split(hub: dict[str, dict[str, Any]]) -> None:
    for name, key, held in (
        ("tiny/one-split", "one split", "train"),
        ("tiny/validation", "own validation", "validation"),
    ):
        identity = hub[key]["identity"]
        assert identity["fit"]["commit"] == hub_server.commit(HUB[name])
        assert (identity["fit"]["split"], identity["eval"]["split"]) == ("train", held)
        assert identity["fit"]["dataset"] == name


def test_hub_data_without_a_validation_split_is_split_by_hash(hub: dict[str, dict[str, Any]]) -> None:
    assert hub["one split"]["fit"] == FITTED
    assert hub["one split"]["eval"] == HELD_OUT


def test_hub_data_with_a_validation_split_is_used_as_split(hub: dict[str, dict[str, Any]]) -> None:
    assert hub["own validation"]["fit"] == TEXTS
    assert hub["own validation"]["eval"] == ["held out one", "held out two"]


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("no such split", "the data set tiny/validation has no split 'test'; it has train, validation"),
        (
            "no such data set",
            "there is no file or folder 'tiny/nothing' here, and the Hub gives no data set of that name",
        ),
        ("no such field", "tiny/validation, record 1: no text in the field 'content'; it has text"),
        ("damaged", "tiny/damaged: the Hub's data cannot be read after record"),
    ],
)
def test_hub_errors_are_one_line(key: str, complaint: str, hub: dict[str, dict[str, Any]]) -> None:
    assert hub[key]["error"].startswith(complaint)
    assert "\n" not in hub[key]["error"]


def test_hub_offline() -> None:
    assert "'tiny/one-split' here, and the Hub gives no data set of that name" in refusal(
        lambda: open_source(config("tiny/one-split"))
    )

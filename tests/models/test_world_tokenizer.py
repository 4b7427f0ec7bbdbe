"""The World tokenizer against the `rwkv` package, stored ids and a naive matcher; its files, and each way in which one
is refused."""

import json
import pickle
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lens_rnn.data import DataConfig, load_blocks
from lens_rnn.errors import ModelError
from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.models import world_tokenizer, wrap_model
from lens_rnn.models.world_tokenizer import WorldTokenizer, read_world_tokenizer
from tests.conftest import make_model

import pytest

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b"ab", b"abcab", b"abcabcab", b"the", b" the", " の".encode(), "é".encode(), b"<|end", b"    ", b"\n\n"]
SCRIPTS = [
    (0x20, 0x7E),
    (0xA1, 0x24F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0x3041, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
]
EMOJI = ["🙂👍🏽", "👩‍👩‍👧‍👦🏳️‍🌈", "🇫🇷🇯🇵", "\U0010ffff\ufeff\u200b"]


def write_vocabulary(path: Path, entries: Sequence[bytes], first: int = 1) -> Path:
    path.write_text(
        "".join(f"{i} {entry!r} {len(entry)}\n" for i, entry in enumerate(entries, first)), encoding="utf-8"
    )
    return path


def encode(tokenizer: WorldTokenizer, texts: Iterable[str]) -> list[list[int]]:
    """As packing calls it."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def random_texts(entries: Sequence[bytes], count: int) -> list[str]:
    """Texts of several scripts, of joined vocabulary entries, of runs of whitespace and controls, of any characters,
    and of all mixed."""
    rng = random.Random(0)
    words = [entry.decode("utf-8", "ignore") for entry in entries]
    kinds = [
        lambda: "".join(chr(rng.randint(*script)) for script in [rng.choice(SCRIPTS)] for _ in range(40)),
        lambda: "".join(rng.choice(words) for _ in range(20)),
        lambda: "".join(rng.choice(" \t\n\r") * rng.randint(1, 150) for _ in range(5)),
        lambda: "".join(chr(rng.randint(0, 0x9F)) for _ in range(40)),
        lambda: bytes(rng.choices([*range(256)], k=400)).decode("utf-8", "ignore"),
        lambda: "".join(chr(rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])) for _ in range(40)),
        lambda: rng.choice(EMOJI),
    ]
    return ["", *("".join(rng.choice(kinds)() for _ in range(1 + i % 3)) for i in range(count))]


@pytest.fixture
def small(tmp_path: Path) -> WorldTokenizer:
    """All bytes as ids 1 to 256, then a few words."""
    return read_world_tokenizer(write_vocabulary(tmp_path / "rwkv_vocab_small.txt", BYTES + WORDS))


@pytest.fixture(scope="module")
def official(test_data: Path) -> WorldTokenizer:
    return read_world_tokenizer(test_data / "tokenizers")


# --- ids --------------------------------------------------------------------------------------------------------------


def test_stored_ids(official: WorldTokenizer, test_data: Path) -> None:
    pairs = json.loads((test_data / "tokenizers/rwkv_world_golden.json").read_text())["pairs"]
    texts = [pair["text"] for pair in pairs]
    assert len(pairs) == 9
    assert encode(official, texts) == [pair["ids"] for pair in pairs]
    assert official.batch_decode([pair["ids"] for pair in pairs]) == texts


def test_the_official_vocabulary(official: WorldTokenizer) -> None:
    vocabulary = official.get_vocab()
    assert len(official) == len(vocabulary) == official.vocab_size + 1 == 65_530
    assert sorted(vocabulary.values()) == list(range(65_530))  # a model with 65,536 rows holds them all
    texts = {i: text for i in range(1, 65_530) if "\ufffd" not in (text := official.decode([i]))}
    assert len(texts) > 64_000
    assert encode(official, texts.values()) == [
        [i] for i in texts
    ]  # of an entry that is text, none is longer than itself
    assert official.decode([65_530, 33155, 65_535]) == "Hello"  # outputs of the model that are no entry


def test_as_the_rwkv_package() -> None:
    reference = pytest.importorskip("rwkv.rwkv_tokenizer", reason="pip install 'lens-rnn[rwkv]'")
    ours = read_world_tokenizer(None)
    theirs = reference.TRIE_TOKENIZER(ours.name_or_path)
    texts = random_texts(list(theirs.idx2token.values()), 600)
    ids = encode(ours, texts)
    assert ids == [theirs.encode(text) for text in texts]
    assert len({i for row in ids for i in row}) > 5_000
    assert max(len(theirs.idx2token[i]) for row in ids for i in row) == 128
    assert ours.batch_decode(ids) == texts
    rng = random.Random(1)
    cut = [rng.choices(list(theirs.idx2token), k=10) for _ in range(200)]  # ends inside characters
    assert ours.batch_decode(cut) == [theirs.decodeBytes(row).decode("utf-8", "replace") for row in cut]


def longest_match(data: bytes, ids: dict[bytes, int]) -> list[int]:
    """The definition, word for word: at each byte the longest entry that the data goes on with."""
    matches: list[bytes] = []
    while data:
        matches.append(max((entry for entry in ids if data.startswith(entry)), key=len))
        data = data[len(matches[-1]) :]
    return [ids[entry] for entry in matches]


@pytest.mark.parametrize("seed", range(5))
def test_as_the_definition_on_vocabularies_full_of_near_misses(tmp_path: Path, seed: int) -> None:
    """Two letters and entries of 1 to 12 bytes, some of them missing among others with the same beginning."""
    rng = random.Random(seed)
    entries = sorted({b"a", b"b", *(bytes(rng.choices(b"ab", k=rng.randint(2, 12))) for _ in range(40))})
    ids = {entry: 7 + 3 * i for i, entry in enumerate(rng.sample(entries, len(entries)))}
    path = tmp_path / "rwkv_vocab_ab.txt"
    path.write_text("".join(f"{i} {entry!r} {len(entry)}\n" for entry, i in ids.items()))
    texts = ["".join(rng.choices("ab", k=length)) for length in range(60)]
    assert encode(read_world_tokenizer(path), texts) == [longest_match(text.encode(), ids) for text in texts]


# --- ids that the file leaves out -------------------------------------------------------------------------------------


@pytest.fixture
def gappy(tmp_path: Path) -> WorldTokenizer:
    """The entries of `small`, with no id 10 to 19 and none from 276 to 999."""
    path = tmp_path / "rwkv_vocab_gappy.txt"
    ids = [*range(1, 10), *range(20, 276), *range(1000, 1001)]
    path.write_text("".join(f"{i} {entry!r} {len(entry)}\n" for i, entry in zip(ids, BYTES + WORDS, strict=True)))
    return read_world_tokenizer(path)


def test_ids_that_the_file_leaves_out_stand_for_nothing(gappy: WorldTokenizer) -> None:
    """As in transformers' fast tokenizers: no token, no text."""
    left_out = [10, 19, 276, 999, 1001, 65_535]
    (a,) = gappy.encode("a")
    assert gappy.convert_ids_to_tokens([9, *left_out, a]) == ["\x08", *[None] * 6, "a"]
    assert gappy.convert_ids_to_tokens(10) is None
    assert gappy.decode([a, *left_out, a]) == gappy.decode([a, *left_out, a], skip_special_tokens=True) == "aa"
    assert [gappy.decode(i) for i in left_out] == [gappy.decode([i]) for i in left_out] == [""] * 6
    assert gappy.batch_decode([[10], [a]]) == ["", "a"]
    read = token_reader(gappy)
    assert [read(i) for i in (0, 10, 65_535, a)] == ["<|endoftext|>", "⟨10⟩", "⟨65535⟩", "a"]


def test_ids_that_the_file_leaves_out_are_never_given(gappy: WorldTokenizer, small: WorldTokenizer) -> None:
    known = set(gappy.get_vocab().values())
    assert (len(known), max(known), len(gappy)) == (267, 1000, 267)
    texts = random_texts(BYTES + WORDS, 60)
    ids = encode(gappy, texts)
    assert {i for row in ids for i in row} <= known
    assert gappy.batch_decode(ids) == texts == small.batch_decode(encode(small, texts))


def test_a_vocabulary_with_gaps_is_saved_packed_and_used(
    gappy: WorldTokenizer, tmp_path: Path, token_cache: Path
) -> None:
    gappy.save_pretrained(tmp_path / "saved")
    assert read_world_tokenizer(tmp_path / "saved").get_vocab() == gappy.get_vocab()
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"the {i} é"}) + "\n" for i in range(60)))
    blocks = load_blocks(DataConfig(data=str(tmp_path / "texts.jsonl"), seq_len=8), "fit", gappy)
    assert blocks.tokens.max() <= 1000
    assert "the 1 é<|endoftext|>" in gappy.decode(blocks.tokens.ravel().tolist())
    assert wrap_model(make_model("mamba", 1024), gappy).tokenizer is gappy
    small = wrap_model(make_model("mamba", 1000), gappy)
    assert "has ids up to 1,000, and" in refusal(lambda: small.tokenizer)


# --- what transformers makes of it ------------------------------------------------------------------------------------


def test_what_looks_like_a_special_token_is_text(small: WorldTokenizer) -> None:
    text = "ab<|endoftext|>"
    (ids,) = encode(small, [text])
    assert ids == [257, 264, *(1 + byte for byte in b"oftext|>")]
    assert small(text)["input_ids"] == small.encode(text) == small.convert_tokens_to_ids(small.tokenize(text)) == ids
    assert small.decode(ids, skip_special_tokens=True) == text


def test_end_of_text(small: WorldTokenizer) -> None:
    assert (small.eos_token, small.eos_token_id, small.pad_token_id, small.all_special_ids) == (
        "<|endoftext|>",
        0,
        0,
        [0],
    )
    assert small.get_vocab()["<|endoftext|>"] == 0
    assert small.decode([257, 0, 257]) == "ab<|endoftext|>ab"
    assert small.decode([257, 0, 257], skip_special_tokens=True) == "abab"


def test_tokens_are_latin_1_strings(small: WorldTokenizer) -> None:
    ids = small.encode("é\xff")
    assert ids == [263, 1 + 0xC3, 1 + 0xBF]
    assert small.convert_ids_to_tokens(ids) == ["Ã©", "Ã", "¿"]
    assert small.convert_tokens_to_ids(["Ã©", "Ã", "¿", "none"]) == [*ids, None]
    assert small.decode(ids[:2]) == "é\ufffd"
    assert all(small.get_vocab()[small.convert_ids_to_tokens(i)] == i for i in range(len(small)))


def test_padding_and_truncation(small: WorldTokenizer) -> None:
    batch = small(["abc", "", "ab ab ab"], padding=True, truncation=True, max_length=3, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[257, 100, 0], [0, 0, 0], [257, 33, 257]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]


def test_it_packs_text_in_several_processes(small: WorldTokenizer, tmp_path: Path, token_cache: Path) -> None:
    assert not small.is_fast  # hence the processes, which pickle it
    copy = pickle.loads(pickle.dumps(small))
    assert (copy.get_vocab(), copy.name_or_path, copy.encode("the é")) == (
        small.get_vocab(),
        small.name_or_path,
        [260, 33, 263],
    )
    texts = [f"the {i} é\n" for i in range(100)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    blocks = load_blocks(DataConfig(data=str(tmp_path / "texts.jsonl"), seq_len=8), "fit", small)
    decoded = small.decode(blocks.tokens.ravel().tolist())
    assert len(blocks) > 80
    assert set(decoded.split("<|endoftext|>")[:-1]) < set(texts)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "saved"), [("rwkv_vocab_mine.txt", "rwkv_vocab_mine.txt"), ("mine.vocab", "rwkv_vocab_mine.txt")]
)
def test_a_saved_tokenizer_reads_back(tmp_path: Path, name: str, saved: str) -> None:
    path = write_vocabulary(tmp_path / name, [*BYTES, *WORDS, b"'\"\\", "\u2028\x85🙂".encode()], first=5)
    tokenizer = read_world_tokenizer(path)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = read_world_tokenizer(tmp_path / "saved")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert tokenizer.name_or_path == str(path)
    assert again.name_or_path == str(tmp_path / "saved" / saved)
    again.save_pretrained(tmp_path / "saved")  # over itself
    assert read_world_tokenizer(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_the_official_file_is_saved_as_it_was(official: WorldTokenizer, tmp_path: Path) -> None:
    official.save_pretrained(tmp_path)
    assert read_world_tokenizer(tmp_path).get_vocab() == official.get_vocab()
    ours, theirs = (
        Path(path).read_text(encoding="utf-8")
        for path in (tmp_path / "rwkv_vocab_v20230424.txt", official.name_or_path)
    )
    different = [pair for pair in zip(ours.split("\n"), theirs.split("\n"), strict=True) if pair[0] != pair[1]]
    assert len(different) < 100  # which characters Python prints as they are differs between its versions


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "rwkv_vocab_w.txt").write_bytes(b"1 'a' 1\r\n2 \"\xc3\xa9\" 2\r\n")
    assert read_world_tokenizer(tmp_path).encode("éa") == [2, 1]


def test_the_packages_file_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "rwkv"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    path = write_vocabulary(package / "rwkv_vocab_v20230424.txt", BYTES)
    monkeypatch.delitem(sys.modules, "rwkv", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_world_tokenizer(None).name_or_path == str(path)


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x 'b' 1", "'x' is no id from 1 (0 is the end of text)"),
        ("-3 'b' 1", "'-3' is no id"),
        ("0 'b' 1", "'0' is no id"),
        (f"{'9' * 5000} 'b' 1", "is no id"),
        ("", "'' is no id"),
        ("version https://example.org/spec/v1", "'version' is no id"),
        ("2", "'' is no string or bytes literal of Python"),
        ("2 'b'", "'' is no string or bytes literal"),
        ("2 b 1", "'b' is no string or bytes literal"),
        ("2 ['b'] 1", "is no string or bytes literal"),
        ("2 'b 1", "is no string or bytes literal"),
        (r"2 '\ud800' 3", "is no string or bytes literal"),
        ("2 " + "(" * 1000 + " 1", "is no string or bytes literal"),
        ("2 'é' 1", "the length '1' is given for 2 bytes"),
        ("2 'b' one", "the length 'one' is given for 1 bytes"),
        ("2 '' 0", "the entry is empty"),
        ("1 'b' 1", "id 1 occurs a second time"),
        ("2 b'a' 1", "the entry 'a' occurs a second time"),
        ("2 '<|endoftext|>' 13", "<|endoftext|> is what id 0 is called"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text(f"1 'a' 1\n{line}\n3 'c' 1\n", encoding="utf-8")
    message = refusal(read_world_tokenizer, path)
    assert message.startswith(f"{path}, line 2: ")
    assert problem in message
    assert len(message) < 300 + len(str(path))


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text(f"1 open({str(tmp_path / 'made')!r},'w').name 1\n")
    assert "line 1:" in refusal(read_world_tokenizer, path)
    assert not (tmp_path / "made").exists()


def test_a_file_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(read_world_tokenizer, tmp_path / "absent.txt")
    assert "holds no file named rwkv_vocab_*.txt" in refusal(read_world_tokenizer, tmp_path)
    write_vocabulary(tmp_path / "rwkv_vocab_a.txt", BYTES)
    (tmp_path / "rwkv_vocab_b.txt").write_bytes(b"1 'a' 1\n2 '\xff' 1\n")
    assert "holds 2 files named rwkv_vocab_*.txt" in refusal(read_world_tokenizer, tmp_path)
    assert "is not UTF-8 text" in refusal(read_world_tokenizer, tmp_path / "rwkv_vocab_b.txt")
    (tmp_path / "empty.txt").touch()
    assert "is empty" in refusal(read_world_tokenizer, tmp_path / "empty.txt")
    monkeypatch.setattr(world_tokenizer, "find_spec", lambda name: None)
    message = refusal(read_world_tokenizer, None)
    assert "pip install 'lens-rnn[rwkv]'" in message
    assert "rwkv_vocab_v20230424.txt with --tokenizer" in message


def test_a_byte_without_an_entry_is_named(tmp_path: Path) -> None:
    tokenizer = read_world_tokenizer(write_vocabulary(tmp_path / "v.txt", [b"a", b"bcdefg", b"\xc3\xa9"]))
    assert encode(tokenizer, ["abcdefgéa"]) == [[1, 2, 3, 1]]
    for text, byte in (("az", "0x7A"), ("abcdef", "0x62"), ("ã", "0xC3")):
        message = refusal(tokenizer.encode, text)
        assert f"{tmp_path / 'v.txt'} has no entry for byte {byte} of a text" in message

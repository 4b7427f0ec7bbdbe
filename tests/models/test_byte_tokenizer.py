"""The byte tokenizer: ids, texts, what ends one, models of each size; and the tokenizer that an error names, by
size."""

import json
import logging
import random
from pathlib import Path
from typing import Any

from lens_rnn.data import DataConfig, load_blocks, tokenizer_sha256
from lens_rnn.errors import ModelError
from lens_rnn.evaluation.tokens import token_reader
from lens_rnn.models import load_model, tokenizers
from lens_rnn.models.byte_tokenizer import byte_tokenizer
from lens_rnn.models.tokenizers import own_tokenizer, tokenizer_beside
from lens_rnn.models.vocabularies import hint
from tests.conftest import make_model, save_model
from tests.rwkv_weights import official_weights

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

SIZES = (256, 257, 258, 259, 260)
ODD = [
    "",
    " ",
    "  Ā the first letter of the alphabet of pieces, Ġ and Ċ  \r\n\t\n",
    "<|endoftext|>",
    "a\x00b\x7f\x85\u2028\ufeff\ufffd",
    "don't , stop .",
    "e\u0301 é \U0010ffff 👩\u200d👩\u200d👧 漢字 שלום",
]


def texts() -> list[str]:
    """ODD, and any characters."""
    rng = random.Random(0)
    some = [
        "".join(chr(rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])) for _ in range(99))
        for _ in range(50)
    ]
    return [*ODD, *some, bytes(rng.choices(range(256), k=2000)).decode("utf-8", "replace")]


def encode(tokenizer: PreTrainedTokenizerBase, some: list[str]) -> list[list[int]]:
    """As packing calls it."""
    return tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("lens_rnn")]


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return request.param


# --- ids and texts ----------------------------------------------------------------------------------------------------


def test_ids_are_the_bytes_of_the_text(size: int) -> None:
    tokenizer = byte_tokenizer(size)
    expected = [list(text.encode()) for text in texts()]
    assert tokenizer.is_fast
    assert encode(tokenizer, texts()) == expected
    assert (
        [tokenizer(text)["input_ids"] for text in ODD]
        == [tokenizer.encode(text) for text in ODD]
        == expected[: len(ODD)]
    )
    assert tokenizer.batch_decode(expected) == texts()


def test_bytes_that_are_no_text(size: int) -> None:
    """Where a character is cut, or bytes are none, each longest part that could begin a character is one U+FFFD, as in
    Python."""
    tokenizer = byte_tokenizer(size)
    rng = random.Random(1)
    some = [bytes(rng.choices(range(256), k=30)) for _ in range(200)] + [
        "漢字👩".encode()[i:j] for i in range(10) for j in range(11)
    ]
    assert tokenizer.batch_decode([list(data) for data in some]) == [data.decode("utf-8", "replace") for data in some]
    read = token_reader(tokenizer)
    assert [read(i) for i in (0x61, 0xE6, 0, 0x0A)] == ["a", "\\xe6", "\x00", "\n"]


def test_what_ends_a_text(size: int) -> None:
    tokenizer = byte_tokenizer(size)
    end = 0 if size == 256 else 256
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.all_special_ids) == (end, end, [end])
    assert (len(tokenizer), max(tokenizer.get_vocab().values())) == ((256, 255) if size == 256 else (257, 256))
    assert tokenizer.decode([97, end, 98]) == ("a\x00b" if size == 256 else "a<|endoftext|>b")
    assert tokenizer.decode([97, end, 98], skip_special_tokens=True) == "ab"
    batch = tokenizer(["abc", ""], padding=True)
    assert batch["input_ids"] == [[97, 98, 99], [end] * 3]
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 0]]


def test_ids_beyond_the_end_of_text_stand_for_nothing() -> None:
    tokenizer = byte_tokenizer(260)
    assert tokenizer.decode([97, 257, 258, 259, 98]) == "ab"
    assert tokenizer.decode(257) == ""
    assert tokenizer.convert_ids_to_tokens([97, 257]) == ["a", None]
    assert [token_reader(tokenizer)(i) for i in (256, 257)] == ["<|endoftext|>", "⟨257⟩"]


def test_it_is_saved_and_read_back_like_any_other(size: int, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(size)
    tokenizer.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), own_tokenizer(str(tmp_path), {})[0]):
        assert again is not None
        assert encode(again, texts()) == encode(tokenizer, texts())
        assert (again.eos_token_id, again.get_vocab()) == (tokenizer.eos_token_id, tokenizer.get_vocab())
        assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer)


def test_it_packs_text(size: int, tmp_path: Path, token_cache: Path) -> None:
    tokenizer = byte_tokenizer(size)
    end = 0 if size == 256 else 256
    held = [f"{i}: é, <|endoftext|> and Ā\n" for i in range(100)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    blocks = load_blocks(DataConfig(data=str(tmp_path / "texts.jsonl"), seq_len=8), "fit", tokenizer)
    assert (
        blocks.tokens.size == blocks.n_bytes + (blocks.tokens == end).sum()
    )  # hence bits per byte are those of nats per token, nearly
    documents = bytes(min(i, 255) for i in blocks.tokens.ravel()).split(bytes([min(end, 255)]))
    assert [data.decode() for data in documents[:-1]] == [text for text in held if text.encode() in documents]
    assert len(documents) > 85
    assert int((blocks.tokens == end).sum()) == len(documents) - 1


def test_packed_text_is_kept_apart_by_what_ends_it() -> None:
    hashes = {size: tokenizer_sha256(byte_tokenizer(size)) for size in SIZES}
    assert len(set(hashes.values())) == 2
    assert hashes[257] == hashes[260] != hashes[256]


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 256 ids with nothing beside it."""
    return save_model(make_model("mamba", 256), tmp_path_factory.mktemp("bytes") / "mamba")


def test_a_model_reads_bytes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lens_rnn")
    model = load_model(folder, tokenizer="bytes")
    assert messages(caplog) == ["tokenizer bytes: id i is byte i, and id 0, the byte NUL, stands between documents"]
    ids = model.tokenizer("é", return_tensors="pt").input_ids
    assert ids.tolist() == [[0xC3, 0xA9]]
    assert model.forward(ids).final.isfinite().all()
    assert model.tokenizer.name_or_path == "bytes"


def test_a_model_with_an_id_to_spare(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lens_rnn")
    torch.save(official_weights("7", vocab_size=260), tmp_path / "a.pth")
    assert load_model(tmp_path / "a.pth", tokenizer="bytes").tokenizer.eos_token_id == 256
    assert messages(caplog) == ["tokenizer bytes: id i is byte i, and id 256 stands between documents"]


@pytest.mark.parametrize("n", [96, 255, 261, 50_280])
def test_a_model_of_another_size_is_refused(n: int) -> None:
    assert f"--tokenizer bytes is for models of 256 to 260 ids, and this one has {n:,}; " in refusal(byte_tokenizer, n)
    assert refusal(byte_tokenizer, n).endswith(hint(n))


def test_a_loaded_model_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = save_model(make_model("mamba"), tmp_path / "small")
    assert "of 256 to 260 ids, and this one has 96" in refusal(load_model, folder, tokenizer="bytes")


def test_a_folder_of_that_name_is_named_as_a_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    byte_tokenizer(257).save_pretrained("bytes")
    caplog.set_level(logging.INFO, "lens_rnn")
    assert load_model(folder, tokenizer="bytes").tokenizer.eos_token_id == 0
    assert messages(caplog)[1:] == ["the folder bytes here is not read: --tokenizer ./bytes would name it"]
    for name in ("./bytes", Path("bytes")):
        assert "ids up to 256" in refusal(lambda name=name: load_model(folder, tokenizer=name).tokenizer)


def test_the_trained_byte_models(test_data: Path) -> None:
    """RWKV-5.2 of rwkv.cpp, trained on English bytes: it beats a byte's 8 bits by far, so ids are the bytes that it
    knows."""
    model = load_model(test_data / "rwkv_tiny/tiny-rwkv-5v2-730K.pth", tokenizer="bytes")
    text = "In the beginning God created the heaven and the earth. And the earth was without form, and void;"
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    log_p = model.logits(model.forward(ids).final)[0, :-1].log_softmax(-1)
    assert -log_p.gather(-1, ids[0, 1:, None]).mean() / torch.log(torch.tensor(2.0)) < 4


# --- the tokenizer that an error names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "named"),
    [
        *[(n, "--tokenizer bytes") for n in SIZES],
        *[(n, "--tokenizer openai-community/gpt2") for n in (50_257, 50_260, 50_264)],
        *[(n, "--tokenizer EleutherAI/gpt-neox-20b") for n in (50_277, 50_280, 50_288, 50_304, 50_432, 50_688)],
        *[(n, "rwkv_vocab_v20230424.txt with --tokenizer") for n in (65_530, 65_536)],
        *[
            (n, "name one with --tokenizer")
            for n in (1, 96, 255, 261, 384, 32_000, 50_256, 50_265, 50_276, 50_689, 65_529, 65_537)
        ],
    ],
)
def test_hints_go_by_the_size_of_the_vocabulary(n: int, named: str) -> None:
    others = {"bytes", "gpt2", "gpt-neox", "rwkv_vocab"} - {
        part for part in ("bytes", "gpt2", "gpt-neox", "rwkv_vocab") if part in named
    }
    assert named in hint(n)
    assert not any(other in hint(n) for other in others)
    assert named.startswith("name one") or f"{n:,} ids" in hint(n)


def test_the_tokenizer_that_is_named_fits(test_data: Path) -> None:
    """Its highest id is within the smallest vocabulary that it is named for."""
    for n in SIZES:
        assert max(byte_tokenizer(n).get_vocab().values()) < n
    neox = json.loads((test_data / "tokenizers/20B_tokenizer.json").read_text())
    ids = [*neox["model"]["vocab"].values(), *(token["id"] for token in neox["added_tokens"])]
    assert (max(ids), "gpt-neox" in hint(max(ids) + 1), "gpt-neox" in hint(max(ids))) == (50_276, True, False)
    world = [
        int(line.split(" ", 1)[0])
        for line in (test_data / "tokenizers/rwkv_vocab_v20230424.txt").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert (max(world), "World" in hint(max(world) + 1), "World" in hint(max(world))) == (65_529, True, False)


def test_the_error_of_a_model_names_one(folder: Path, tmp_path: Path) -> None:
    assert (
        refusal(lambda: load_model(folder).tokenizer)
        == f"{folder} has no tokenizer beside it; --tokenizer bytes fits its 256 ids"
    )
    byte_tokenizer(257).save_pretrained(tmp_path / "larger")
    message = refusal(lambda: load_model(folder, tokenizer=tmp_path / "larger").tokenizer)
    assert message.endswith(f"has ids up to 256, and {folder} a vocabulary of 256; --tokenizer bytes fits its 256 ids")
    torch.save(official_weights("7", vocab_size=50_277, blocks=1), tmp_path / "pile.pth")
    message = refusal(lambda: load_model(tmp_path / "pile.pth").tokenizer)
    assert message.endswith(
        "pile.pth has no tokenizer beside it; --tokenizer EleutherAI/gpt-neox-20b fits its 50,277 ids"
    )


def test_no_tokenizer_beside_a_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "official_file", lambda: None)
    assert own_tokenizer(str(folder), {}) == (None, "has no tokenizer beside it")
    for n in (256, 50_277, 65_536):
        assert tokenizer_beside(tmp_path / "a.pth", n) == (None, "has no tokenizer beside it")


def test_the_installed_world_vocabulary_goes_with_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = tmp_path / "installed" / "rwkv_vocab_v20230424.txt"
    vocabulary.parent.mkdir()
    vocabulary.write_text("7 'a' 1\n")
    monkeypatch.setattr(tokenizers, "official_file", lambda: vocabulary)
    for n in (65_530, 65_536):
        tokenizer, trouble = tokenizer_beside(tmp_path / "a.pth", n)
        assert tokenizer is not None
        assert (tokenizer.encode("a"), trouble) == ([7], "")
    assert tokenizer_beside(tmp_path / "a.pth", 65_529)[0] is None
    vocabulary.write_text("7 a 1\n")
    tokenizer, trouble = tokenizer_beside(tmp_path / "a.pth", 65_536)
    assert tokenizer is None
    assert "has no usable tokenizer beside it (" in trouble
    assert "line 1: " in trouble

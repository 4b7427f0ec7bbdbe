"""Text sources, the fixed split, and every refusal in one line."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lens_rnn.data import DataConfig, FileSource, StdlibSource, is_held_out, open_source, texts
from lens_rnn.errors import ConfigError
from tests import hub_server
from tests.data.texts import FITTED, HELD_OUT, TEXTS, config, refusal, texts_of, write_jsonl

import numpy as np
import pytest
import zstandard

pytestmark = pytest.mark.usefixtures("by_hash")

# --- configuration and the split --------------------------------------------------------------------------------------


def test_configuration_refuses_less_than_one_block() -> None:
    assert "tokens is 15, less than one block of seq_len 16" in refusal(
        lambda: DataConfig(tokens=15, seq_len=16), kind=ConfigError
    )
    assert "eval_tokens is 15" in refusal(lambda: DataConfig(eval_tokens=15, seq_len=16), kind=ConfigError)
    assert "seq_len is 1;" in refusal(lambda: DataConfig(seq_len=1), kind=ConfigError)


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
    single = tmp_path / "one.jsonl.zst"
    single.write_bytes(zstandard.compress(content))
    several = tmp_path / "several.jsonl.zst"  # frames end in the middle of a line
    several.write_bytes(b"".join(zstandard.compress(content[i : i + 1000]) for i in range(0, len(content), 1000)))
    for path in (single, several):
        assert texts_of(FileSource(path), "fit") == FITTED


def test_compressed_lines_across_chunks(jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_CHUNK", 7)
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
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "PYTHONPATH": str(Path(__file__).parents[2])}
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

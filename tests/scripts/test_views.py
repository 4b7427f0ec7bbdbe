"""eval/views.py as a user runs it."""

import json
from pathlib import Path

from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model
from lens_rnn.views.attention import hidden_attention
from lens_rnn.views.relevance import Explained, relevance
from tests.scripts.launch import run_in_process

import numpy as np
import pytest

ATTENTION = ["attention.html", "attention.png"]
RELEVANCE = ["relevance.html", "relevance.png"]


def test_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """Only the folder is named: the demo model, its own text, the likeliest token."""
    assert run_in_process("eval/views.py", monkeypatch, "--device", "cpu", "--output", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *ATTENTION,
        *RELEVANCE,
        "run.yaml",
        "views.json",
    ]
    result = json.loads((tmp_path / "out" / "views.json").read_text())
    assert result["format"] == 1
    assert np.array(result["attention"]["matrices"]).shape == (8, len(result["tokens"]), len(result["tokens"]))
    printed = capfd.readouterr().out.splitlines()
    assert printed[:2] == ["model      checkpoints/tiny-mamba", "lens       none: the model's own logit is explained"]
    assert printed[2].startswith("text       ")
    assert printed[3].startswith("Where the logit of “")
    assert printed[-1] == f"saved to {tmp_path / 'out'}"


def test_what_is_written_is_what_the_library_says(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    adapter = load_model(model_folders["mamba"], device="cpu")
    lens = TunedLens.from_adapter(adapter)
    lens.save(tmp_path / "lens")
    words = (
        "--model",
        model_folders["mamba"],
        "--device",
        "cpu",
        "--output",
        tmp_path / "out",
        "--text",
        "a <b> $x$\n",
    )
    more = (
        "--token",
        "<",
        "--against",
        "x",
        "--position",
        -3,
        "--layer",
        1,
        "--lens",
        tmp_path / "lens",
        "--layers",
        0,
        2,
        "--units",
        4,
    )
    assert run_in_process("eval/views.py", monkeypatch, *words, *more) == 0
    assert "Where the logit of “<” − “x” at layer 1 comes from (mamba, lrp)" in capfd.readouterr().out
    result = json.loads((tmp_path / "out" / "views.json").read_text())
    ids = [token["id"] for token in result["tokens"]]
    assert "".join(token["text"] for token in result["tokens"]) == "a <b> $x$\n"
    attention = hidden_attention(adapter, ids, [0, 2], [4])
    np.testing.assert_allclose(result["attention"]["matrices"], attention.matrices, atol=1e-6)
    token, against = adapter.tokenizer("<x")["input_ids"]
    expected = relevance(adapter, ids, Explained(token=token, against=against, position=-3, layer=1), lens=lens)
    assert result["relevance"]["value"] == pytest.approx(expected.value)
    np.testing.assert_allclose(result["relevance"]["tokens"], expected.tokens, rtol=1e-4, atol=1e-6)
    page = (tmp_path / "out" / "relevance.html").read_text()
    assert "&lt;" in page
    assert "<b> $x$" not in page


def test_a_model_with_hidden_attention_only(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--model", model_folders["rwkv4"], "--device", "cpu", "--output", tmp_path / "out", "--text", "abc")
    assert run_in_process("eval/views.py", monkeypatch, *words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*ATTENTION, "run.yaml", "views.json"]


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("neox", ("--token", "a"), "has no relevance, so --token, --against and --layer mean nothing"),
        ("rwkv4", ("--token", "a"), "has no relevance, so --token, --against and --layer mean nothing"),
        ("mamba", ("--text", ""), "--text is empty"),
        ("mamba", ("--token", "ab"), "'ab' is 2 tokens ('a', 'b'); give the text of one"),
        ("mamba", ("--position", 1000), "position 1000 is not in a text of"),
        ("mamba", ("--layers", 9), "no layer 9"),
        ("mamba", ("--layer", 9), "no layer 9"),
        ("mamba", ("--layer", 1, "--lens", "/nowhere/lens"), "no such lens folder"),
    ],
)
def test_bad_input_is_one_line(
    family: str,
    arguments: tuple,
    words: str,
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    fixed = ("--model", model_folders[family], "--device", "cpu", "--output", tmp_path / "result")
    assert run_in_process("eval/views.py", monkeypatch, *fixed, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "result").exists()

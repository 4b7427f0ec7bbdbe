"""eval/patch.py as a user runs it."""

import json
from pathlib import Path

from tests.scripts.launch import run_in_process

import pytest
from matplotlib import image


def test_the_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--demonstration", "bracket", "--device", "cpu", "--output", tmp_path)
    assert run_in_process("eval/patch.py", monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert all(f"{kind:<12} most at" in said for kind in ("residual", "convolution", "recurrent", "knocked out"))
    report = json.loads((tmp_path / "patching.json").read_text())
    assert report["format"] == 1
    assert len(report["pairs"]) == len(report["clean"]) == 8
    (row,) = {len(row) for row in report["shares"]["recurrent"].values()}
    assert row == len(report["tokens"])
    estimate = report["shares"]["residual"]["7"][-1]
    assert estimate["value"] == pytest.approx(1, abs=1e-3)
    assert image.imread(tmp_path / "patching.png").shape[1] > 600
    assert "Plotly.newPlot" in (tmp_path / "patching.html").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--clean", "x = (1"), "give --clean, --corrupted"),
        (("--clean", "x = (1", "--corrupted", "x", "--answer", ")", "--foil", "]"), "tokens and the corrupted one"),
        (("--clean", "x = (1", "--corrupted", "x = [1", "--answer", ") and more", "--foil", "]"), "one token each"),
        (("--clean", "x = (1", "--corrupted", "x = (1", "--answer", ")", "--foil", "]"), "nothing to recover"),
        (("--pairs", "/nowhere"), "cannot be read"),
        (("--kinds", "attention"), "no attention state to patch"),
        (("--clean", "a", "--pairs", "b"), "or --pairs"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process("eval/patch.py", monkeypatch, *words, "--device", "cpu", "--output", tmp_path / "out") != 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert reason in line
    assert not (tmp_path / "out").exists()

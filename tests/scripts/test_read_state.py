"""eval/read_state.py as a user runs it: the experiment, and texts of one's own."""

import json
from pathlib import Path

from lens_rnn.views.state_reading_demos import DEMONSTRATIONS
from tests.scripts.launch import run_in_process

import pytest
from matplotlib import image


@pytest.mark.parametrize("model", ["tiny-mamba", "tiny-rwkv4"])
def test_a_memory_names_what_its_source_was_about(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the states of other sources, with intervals above 0, for all that is asked."""
    words = ("--model", f"checkpoints/{model}", "--device", "cpu", "--output", tmp_path)
    monkeypatch.chdir(Path(__file__).parents[2])
    assert run_in_process("eval/read_state.py", monkeypatch, *words) == 0
    report = json.loads((tmp_path / "state_reading.json").read_text())
    assert set(report["experiment"]) == set(DEMONSTRATIONS)
    for name in ("identifier", "indentation"):
        assert report["experiment"][name]["others"]["low"] > 0.3, name
    assert image.imread(tmp_path / "state_reading.png").shape[1] > 600
    assert "which parameter the source named (10 sources)" in capsys.readouterr().out


def test_texts_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--source", "def check(self, path):\n    if", "--eliciting", "    return", "--tokens", 4)
    assert run_in_process("eval/read_state.py", monkeypatch, *words, "--device", "cpu", "--output", tmp_path) == 0
    assert "with the state" in capsys.readouterr().out
    report = json.loads((tmp_path / "state_reading.json").read_text())
    assert " path" in report["risen"]
    assert report["kl"] > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--source", "a b"), "--eliciting together"),
        (("--source", "a b", "--eliciting", "a"), "one token"),
        (("--source", "", "--eliciting", "a b"), "no tokens"),
        (("--blocks", 99), "no layer 99"),
        (("--multiplier", "nan"), "multiplier"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_in_process("eval/read_state.py", monkeypatch, *words, "--device", "cpu", "--output", out) != 0
    assert reason in capsys.readouterr().err
    assert not out.exists()

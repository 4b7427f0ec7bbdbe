"""eval/live.py as a user runs it: plain where the output is no terminal, a table of layers where it is one."""

import io

from tests.scripts.launch import config_of, run_in_process

import pytest
from rich.console import Console

WORDS = ("--tokens", 12, "--device", "cpu", "--text", "def f(")


def test_without_a_terminal_the_text_comes_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process("eval/live.py", monkeypatch, *WORDS) == 0
    printed = capsys.readouterr()
    assert "def f(" in printed.out
    assert "12 tokens in" in printed.err
    assert "\x1b" not in printed.out


@pytest.mark.parametrize("colour", ["entropy", "kl"])
def test_in_a_terminal_layers_stand_above_one_another(
    colour: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, made = io.StringIO(), Console

    def console() -> Console:
        return made(file=screen, force_terminal=True, width=100, color_system="truecolor")

    monkeypatch.setattr("rich.console.Console", console)
    assert run_in_process("eval/live.py", monkeypatch, *WORDS, "--colour", colour) == 0
    frame = screen.getvalue()
    assert all(f"layer {i}" in frame for i in range(7))
    assert frame.rindex("model") < frame.rindex("layer 0"), "the model is on top"
    assert "48;2;" in frame, "cells are coloured"
    assert "a second" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--text", ""), "is empty"),
        (("--top-p", 0), "top_p"),
        (("--temperature", -1), "temperature"),
        (("--lens", "/nowhere"), "nowhere"),
        (("--colour", "loud"), "loud"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process("eval/live.py", monkeypatch, *words, "--device", "cpu") != 0
    assert reason in capsys.readouterr().err
    assert config_of("eval/live.py")

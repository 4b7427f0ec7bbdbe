"""eval/figures.py as a user runs it."""

import csv
from pathlib import Path

from lens_rnn.evaluation.results import FILE_NAME
from tests.evaluation.test_plots import ours, published, rows, write
from tests.scripts.launch import run_in_process

import pytest
from matplotlib import image

SCRIPT = "eval/figures.py"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A result of ours with all that a figure can need, a published one, and a broken one, in folders."""
    content = ours([8.0, 4.0], [3.0, 1.5], 1.0, [0.5, 1.0], uniform_ce=4.5, bits_per_byte_per_nat=0.4)
    matrix = {"layer_0": rows([3.0, 2.0]), "layer_1": rows([5.0, 1.5])}
    content["tuned"]["layer_transfer"] = {"ce": matrix, "kl": matrix}
    write(tmp_path / "results" / "tiny" / FILE_NAME, content)
    write(tmp_path / "results" / "rwkv" / "169m" / FILE_NAME, published([8.0, 4.0], [3.0, 1.5], 1.0))
    write(tmp_path / "results" / "rwkv" / "430m" / FILE_NAME, published([8.0, 4.0], [6.0, 5.0], 5.0))
    return tmp_path / "results"


def test_one_command_draws_everything(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(results.parent)
    assert run_in_process(SCRIPT, monkeypatch) == 0
    folder = results.parent / "figures"
    pictures = ["families", "lenses-mamba", "lenses-rwkv", "perplexity", "sizes-rwkv", "transfer-tiny-mamba"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.png" for name in pictures), "figures.html", "summary.csv"]
    )
    for name in pictures:
        assert image.imread(folder / f"{name}.png").shape[1] > 800
        assert f'<figure id="{name}">' in (folder / "figures.html").read_text()
    table = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [row["result"] for row in table] == ["RWKV 169m", "RWKV 430m", "tiny-mamba"]
    assert [row["broken"] for row in table] == ["", "model 5.00 > uniform 3.63", ""]
    printed = capsys.readouterr().out
    assert "tiny-mamba" in printed
    assert "wrote figures/figures.html" in printed
    assert "RWKV 430m is a broken run" in caplog.text
    assert "not known of RWKV 169m, RWKV 430m" in caplog.text


def test_what_is_missing_is_a_warning_unless_it_was_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = (results / "rwkv", "--output", results.parent / "out")
    assert run_in_process(SCRIPT, monkeypatch, *arguments) == 0
    assert "transfer: no result holds tuned.layer_transfer" in caplog.text
    assert sorted(path.stem for path in (results.parent / "out").glob("*.png")) == ["lenses-rwkv", "sizes-rwkv"]
    capsys.readouterr()
    assert run_in_process(SCRIPT, monkeypatch, *arguments, "--figures", "sizes", "transfer") == 2
    assert capsys.readouterr().err.startswith("error: transfer: no result holds tuned.layer_transfer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{results}/absent"], "no result at"),
        (["{results}/empty"], "no result in"),
        (["{results}", "--figures", "pie"], "perplexity"),
        (["{results}", "--size", "big"], "write it like 160m, 1.4b or 1b5"),
        (["{results}", "--output", "{results}/tiny/aggregate_metrics.json"], "is a file; name a folder"),
        ([], "no result at results"),
    ],
)
def test_bad_input_is_one_line(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (results / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_in_process(SCRIPT, monkeypatch, *(argument.format(results=results) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert list((tmp_path / "elsewhere").iterdir()) == []

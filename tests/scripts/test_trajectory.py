"""eval/trajectory.py, and the further metrics of eval/perplexity.py, as a user runs them."""

import json
from pathlib import Path

from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model
from tests.scripts.launch import run_in_process, run_script

import pytest


@pytest.fixture(scope="session")
def lens_folder(model_folders: dict[str, Path]) -> Path:
    """A lens of zeros for the Mamba folder, where no script finds it by itself."""
    folder = model_folders["mamba"].parent / "zeros"
    TunedLens.from_adapter(load_model(model_folders["mamba"], device="cpu")).save(folder)
    return folder


def test_a_trajectory(lens_folder: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ("--model", model_folders["mamba"], "--lens", lens_folder, "--device", "cpu", "--output", output)
    done = run_script("eval/trajectory.py", *words, "--text", "a <b> $x$\n", "--statistic", "rank", "--top-k", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"model      {model_folders['mamba']}",
        f"lens       {lens_folder}",
        "text       'a <b> $x$\\n'",
        f"saved to {output}",
    ]
    assert sorted(path.name for path in output.iterdir()) == [
        "run.yaml",
        "trajectory.html",
        "trajectory.json",
        "trajectory.png",
    ]
    result = json.loads((output / "trajectory.json").read_text())
    assert "".join(token["text"] for token in result["tokens"]) == result["text"] == "a <b> $x$\n"
    assert result["format"] == 1
    assert result["lens"] == str(lens_folder)
    assert [row["name"] for row in result["rows"]] == ["layer 0", "layer 1", "model"]
    assert len(result["top"]["ids"][0][0]) == 4
    assert "mamba, tuned lens" in (output / "trajectory.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--text", ""), "--text is empty"),
        (("--text", "caf\udce9"), "--text is 'caf\\udce9', which is not UTF-8"),
        (("--statistic", "loss"), "choose from entropy, ce, kl, rank, probability"),
        (("--stride", 0), "stride is 0; it must be at least 1"),
        (("--lens", "/nowhere/lens"), "no such lens folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple,
    words: str,
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    fixed = ("--model", model_folders["mamba"], "--device", "cpu", "--output", tmp_path / "result")
    assert run_in_process("eval/trajectory.py", monkeypatch, *fixed, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "result").exists()


def test_perplexity_with_transfer_and_statistics(
    lens_folder: Path, model_folders: dict[str, Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = (
        "--model",
        model_folders["mamba"],
        "--data",
        text_file,
        "--eval-tokens",
        2_048,
        "--seq-len",
        64,
        "--device",
        "cpu",
    )
    more = ("--lens", lens_folder, "--transfer", "--statistics", "--output", tmp_path / "r")
    assert run_in_process("eval/perplexity.py", monkeypatch, *fixed, *more) == 0
    metrics = json.loads((tmp_path / "r" / "aggregate_metrics.json").read_text())
    layers = [f"layer_{i}" for i in range(3)]
    transfer = metrics["tuned"]["layer_transfer"]
    assert {kind: {t: list(row) for t, row in matrix.items()} for kind, matrix in transfer.items()} == {
        kind: dict.fromkeys(layers, layers) for kind in ("ce", "kl")
    }
    for layer in layers:  # a lens of zeros reads every layer as the logit lens does
        assert transfer["ce"]["layer_0"][layer] == pytest.approx(metrics["logit"]["ce"][layer], rel=1e-5)
    assert metrics["lens_rnn"]["marginal"]["logit"] == metrics["lens_rnn"]["marginal"]["tuned"]
    assert metrics["lens_rnn"]["js_nats"] == pytest.approx([0, 0, 0], abs=1e-6)


def test_transfer_needs_a_lens(
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    words = (
        "--model",
        model_folders["neox"],
        "--data",
        text_file,
        "--device",
        "cpu",
        "--output",
        tmp_path / "r",
        "--transfer",
    )
    assert run_in_process("eval/perplexity.py", monkeypatch, *words) == 2
    assert "--transfer needs a tuned lens" in capfd.readouterr().err

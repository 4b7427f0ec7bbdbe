"""eval/perplexity.py and eval/plot_curves.py as a user runs them."""

import csv
import json
from pathlib import Path

from lens_rnn.fitting import FitConfig, fit
from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model
from tests.data.blocks import make_blocks
from tests.scripts.launch import run_in_process, run_script

import numpy as np
import pytest
from matplotlib import image

SMALL = ("--eval-tokens", 4_096, "--seq-len", 64, "--device", "cpu")


@pytest.fixture(scope="session")
def lens_folder(model_folders: dict[str, Path]) -> Path:
    """A fitted lens beside the Mamba folder, where the script looks for one by itself."""
    folder = model_folders["mamba"].parent / "mamba-lens"
    result = fit(
        load_model(model_folders["mamba"], device="cpu"), make_blocks(200, vocab_size=257), FitConfig(batch_size=8)
    )
    result.lens.save(folder)
    return folder


def test_results_curves_and_overlay(
    lens_folder: Path, model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "result"
    done = run_script(
        "eval/perplexity.py", "--model", model_folders["mamba"], "--data", text_file, "--output", output, *SMALL
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((output / "aggregate_metrics.json").read_text())
    assert set(metrics) == {"logit", "tuned", "baseline", "lens_rnn"}
    assert metrics["lens_rnn"]["format"] == 1
    assert metrics["lens_rnn"]["lens"] == str(lens_folder)
    for lens in ("logit", "tuned"):
        assert set(metrics[lens]) == {"ce", "kl", "entropy"}
        assert list(metrics[lens]["ce"]) == ["layer_0", "layer_1", "layer_2"]
        assert metrics[lens]["kl"]["layer_2"] == 0
        assert metrics[lens]["ce"]["layer_2"] == metrics["baseline"]["ce"]["final"]
    rows = list(csv.DictReader((output / "per_layer.csv").read_text().splitlines()))
    assert len(rows) == 7
    factor = metrics["lens_rnn"]["bits_per_byte_per_nat"]
    assert float(rows[0]["ce_nats_per_token"]) * factor == pytest.approx(metrics["logit"]["ce"]["layer_0"])
    assert image.imread(output / "perplexity.png").shape[0] > 300
    assert "Plotly.newPlot" in (output / "perplexity.html").read_text()

    overlay = run_script("eval/plot_curves.py", output, output, "--output", tmp_path / "both.png")
    assert overlay.returncode == 0, overlay.stderr
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_a_model_without_a_lens_gets_the_logit_lens_only(
    model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    done = run_script(
        "eval/perplexity.py", "--model", model_folders["neox"], "--data", text_file, "--output", tmp_path / "r", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "r" / "aggregate_metrics.json").read_text())) == {"logit", "baseline", "lens_rnn"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lens", "/nowhere/lens"), "no such lens folder"),
        (("--lens", "RWKV"), "number of translators is 8"),
        (("--data", "/nowhere/text"), "no such data file"),
        (("--eval-tokens", 10**9), "ask for fewer"),
        (("--micro-batch-size", 0), "micro_batch_size is 0"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple,
    words: str,
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    if "RWKV" in arguments:
        TunedLens.from_adapter(load_model(model_folders["rwkv4"], device="cpu")).save(tmp_path / "rwkv")
        arguments = ("--lens", tmp_path / "rwkv")
    fixed = ("--model", model_folders["mamba"], "--data", text_file, "--output", tmp_path / "result", *SMALL)
    assert run_in_process("eval/perplexity.py", monkeypatch, *fixed, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "result").exists()


def test_a_fit_and_then_its_figures_without_naming_the_lens(
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The default lens is the one just fitted, and the table the one that the fit printed; on a text of 2 kB, with the
    default batch and blocks."""
    random = np.random.default_rng(0)
    text = " ".join(random.choice(["state", "layer", "läuft", "token", "reads"], size=2_000))[:2_000]
    (tmp_path / "mine.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    fixed = ("--model", model_folders["mamba"], "--data", "mine.txt", "--device", "cpu")
    assert run_in_process("train/fit_lens.py", monkeypatch, *fixed) == 0
    fitted = capsys.readouterr()
    assert "mine.txt is short: blocks have 128 tokens in place of 256" in caplog.messages
    assert "held out   the last tenth of the text" in fitted.out
    assert "all there are, in place of 16" in fitted.out
    report = json.loads((tmp_path / "lenses" / "mamba" / "fit.json").read_text())
    measured = report["data"]["eval"]
    assert "the last tenth" in measured["held_out"]
    assert report["settings"]["batch_size"] == len(text.encode()) * 9 // 10 // 128 - 1 - 3, "three are kept apart"
    assert (measured["tokens"], measured["bytes"]) == (128, 128)

    assert run_in_process("eval/perplexity.py", monkeypatch, *fixed) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [
        f"model      {model_folders['mamba']}",
        f"lens       {Path('lenses') / 'mamba'}",
        "text       mine.txt, what is held out",
    ]
    rows = {line.split()[0]: line.split() for line in fitted.out.splitlines() if line[:5].strip().isdigit()}
    again = {line.split()[0]: line.split() for line in shown if line[:5].strip().isdigit()}
    assert rows.keys() == again.keys() == {"0", "1", "2"}
    for layer in ("0", "1"):  # without the column of the start, which a fit alone knows
        depth, kl_logit, _, *rest = rows[layer][1:]
        assert again[layer][1:] == [depth, kl_logit, *rest]
    assert [line for line in shown if line.startswith("baselines")] == [
        line for line in fitted.out.splitlines() if line.startswith("baselines")
    ]

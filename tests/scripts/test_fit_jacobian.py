"""train/fit_jacobian.py as a user runs it, and what eval/perplexity.py makes of it."""

import json
from pathlib import Path

from lens_rnn.lens import JacobianLens
from lens_rnn.models import load_model
from tests.scripts.launch import run_in_process, run_script

import pytest
import torch

SMALL = ("--texts", 6, "--seq-len", 24, "--checkpoint-every", 2)


def test_a_fit_is_the_same_in_two_processes_and_when_resumed(
    model_folders: dict[str, Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = ("--model", model_folders["rwkv4"], "--data", text_file, *SMALL, "--device", "cpu")
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_in_process("train/fit_jacobian.py", monkeypatch, *fixed, "--output", one) == 0
    done = run_script("train/fit_jacobian.py", *fixed, "--output", two, processes=2, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    adapter = load_model(model_folders["rwkv4"], device="cpu")
    expected, got = (JacobianLens.load(adapter, folder) for folder in (one, two))
    assert expected.texts == 6
    for layer, j in expected.jacobians.items():
        torch.testing.assert_close(got.jacobians[layer], j, rtol=1e-3, atol=1e-3)
    about = json.loads((one / "jacobian.json").read_text())
    assert (about["texts"], about["tokens_a_text"], about["data"]["tokens"]) == (6, 24, 6 * 24)

    (one / "checkpoints" / "step-00000006.pt").unlink()
    before = (one / "jacobian.pt").read_bytes()
    (one / "jacobian.pt").unlink()
    assert run_in_process("train/fit_jacobian.py", monkeypatch, *fixed, "--output", one, "--resume") == 0
    assert torch.load(one / "jacobian.pt", weights_only=True)["J"].keys() == expected.jacobians.keys()
    again = JacobianLens.load(adapter, one)
    for layer, j in expected.jacobians.items():
        torch.testing.assert_close(again.jacobians[layer], j, rtol=1e-3, atol=1e-3)
    assert len(before) == (one / "jacobian.pt").stat().st_size


def test_it_stands_beside_the_others_in_an_evaluation(
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ("--model", model_folders["mamba"], "--data", text_file, "--device", "cpu")
    lens, result = tmp_path / "lens", tmp_path / "result"
    assert run_in_process("train/fit_jacobian.py", monkeypatch, *model, *SMALL, "--output", lens) == 0
    words = (*model, "--eval-tokens", 2_048, "--seq-len", 64, "--output", result)
    again = tmp_path / "again" / "jacobian.pt"
    again.parent.mkdir()
    again.write_bytes((lens / "jacobian.pt").read_bytes())
    assert run_in_process("eval/perplexity.py", monkeypatch, *words, "--also", lens / "jacobian.pt", again) == 0
    assert "KL of other lenses" in capsys.readouterr().out
    others = json.loads((result / "aggregate_metrics.json").read_text())["lens_rnn"]["others"]
    assert set(others) == {"jacobian", "jacobian.pt"}, "none takes the other's place"
    assert set(others["jacobian"]["kl"]) == {"layer_0", "layer_1", "layer_2"}
    assert others["jacobian"]["kl"]["layer_2"] == 0
    assert "jacobian,0," in (result / "per_layer.csv").read_text()
    assert "Jacobian lens" in (result / "perplexity.html").read_text()

    assert run_in_process("eval/perplexity.py", monkeypatch, *words, "--overwrite", "--lens", lens) != 0
    assert "a tuned one is meant; give it with --also" in capsys.readouterr().err

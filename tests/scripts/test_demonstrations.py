"""Long demonstrations, run on request with `pytest -m slow`: the README's main command, and real text."""

import json
from pathlib import Path

from tests.scripts.launch import ROOT, run_script

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-mamba", "tiny-rwkv4"])
def test_the_main_command_is_good_at_every_layer(model: str, tmp_path: Path) -> None:
    output = tmp_path / "lens"
    done = run_script("train/fit_lens.py", "--model", ROOT / "checkpoints" / model, "--output", output, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    report = json.loads((output / "fit.json").read_text())
    rows = [row for row in report["layers"].values() if row["fitted"]]
    assert len(rows) == 7
    for row in rows:
        assert row["kl_tuned"] < row["kl_start"]
        assert row["kl_tuned"] < row["kl_logit"]
        assert row["ce_tuned"] < report["baselines"]["unigram_ce"]
    if report["distance_to_reference"] is not None:  # another Python has other text
        assert report["distance_to_reference"] < 0.05


@pytest.mark.slow
def test_the_same_fit_on_english_text(test_data: Path, tmp_path: Path) -> None:
    text = test_data / "text" / "demo_pile_format.train.jsonl"
    model = ROOT / "checkpoints" / "tiny-rwkv4"
    done = run_script("train/fit_lens.py", "--model", model, "--data", text, "--output", tmp_path / "lens", timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "lens" / "fit.json").read_text())
    assert all(row["kl_tuned"] < row["kl_logit"] for row in report["layers"].values() if row["fitted"])

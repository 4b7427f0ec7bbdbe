"""train/fit_lens.py --push-to-hub, against a Hub on loopback."""

import json
import os
from pathlib import Path

from lens_rnn import artifacts
from tests import hub_server
from tests.scripts.launch import run_in_process, run_script

import pytest

SMALL = (
    "--tokens",
    2_048,
    "--eval-tokens",
    1_024,
    "--seq-len",
    64,
    "--batch-size",
    8,
    "--start-tokens",
    1_024,
    "--device",
    "cpu",
)
FILES = ["README.md", "config.json", "fit.json", "params.pt", "perplexity.png"]


@pytest.mark.parametrize("full", [False, True])
def test_a_lens_is_pushed_after_the_fit(
    full: bool, model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """And where the Hub refuses it only then, it is on disk, with the command that pushes it."""
    models: dict[str, hub_server.Files] = {}
    accounts = {"hf_writes": {"name": "me", "orgs": []}}
    output = tmp_path / "lens"
    arguments = (
        "--model",
        model_folders["neox"],
        "--data",
        text_file,
        *SMALL,
        "--output",
        output,
        "--push-to-hub",
        "lens",
    )
    with hub_server.serve(models=models, accounts=accounts, full=["me/lens"] if full else []) as address:
        variables = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_writes", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        done = run_script("train/fit_lens.py", *arguments, **variables)
    assert "push       to the model repository me/lens on the Hub, after the fit" in done.stdout, done.stderr
    assert f"saved to {output}" in done.stdout
    on_disk = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert sorted(on_disk) == [*FILES, "run.yaml"]
    assert 'TunedLens.load(adapter, "me/lens")' in on_disk["README.md"].decode()
    assert len(artifacts.load(output).translators) == 6
    assert "push_to_hub" not in json.loads(on_disk["fit.json"])["settings"], "a run can be resumed with or without it"
    if full:
        assert done.returncode == 2
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert error.endswith(
            f"""to try again: python -c 'from lens_rnn import artifacts; artifacts.push("{output}", "me/lens")'"""
        )
        assert models == {"me/lens": {}}
    else:
        assert done.returncode == 0, done.stderr
        assert "pushed to me/lens" in done.stdout
        assert models == {"me/lens": {name: on_disk[name] for name in FILES}}


@pytest.mark.parametrize(("token", "word"), [(None, "hf auth login"), ("hf_any", "offline")])
def test_a_push_that_cannot_be_is_refused_before_anything_is_done(
    token: str | None, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The model is not even looked for."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    arguments = ("--model", "/nowhere/model", *SMALL, "--output", tmp_path / "lens", "--push-to-hub", "me/lens")
    assert run_in_process("train/fit_lens.py", monkeypatch, *arguments) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert word in line
    assert not (tmp_path / "lens").exists()


def test_a_dry_run_mentions_the_push_and_asks_for_no_token(
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    assert "HF_TOKEN" not in os.environ
    arguments = (
        "--model",
        model_folders["mamba"],
        "--data",
        text_file,
        *SMALL,
        "--output",
        tmp_path / "lens",
        "--push-to-hub",
        "me/lens",
    )
    assert run_in_process("train/fit_lens.py", monkeypatch, *arguments, "--dry-run") == 0
    assert "push       to the model repository me/lens on the Hub, after the fit" in capfd.readouterr().out
    assert not (tmp_path / "lens").exists()

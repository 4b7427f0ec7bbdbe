"""train/fit_lens.py as a user runs it: what it writes, that it resumes after SIGKILL, and what bad input gets."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from lens_rnn import artifacts
from lens_rnn.data import DataConfig, load_blocks
from lens_rnn.fitting import FitConfig
from lens_rnn.fitting.plan import product_dtype
from lens_rnn.fitting.reference import save_reference
from lens_rnn.fitting.report import describe_model
from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model
from tests.scripts.launch import run_in_process, run_script, start_script

import pytest
import torch
from transformers import cache_utils
from tuned_lens.nn.lenses import TunedLensConfig

DATA = ("--tokens", 20_480, "--eval-tokens", 2_048, "--seq-len", 64)
SMALL = (*DATA, "--batch-size", 8, "--passes", 1, "--start-tokens", 8_192, "--device", "cpu")


def translators(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "params.pt", weights_only=True)


def one_error_line(done: CompletedProcess, *words: str) -> None:
    """Exit code 2 and a single line that says what is wrong."""
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in errors[0]] == [], errors[0]


@pytest.mark.parametrize("family", ["mamba", "rwkv4"])
def test_a_fit_makes_no_cache_of_transformers(
    family: str, model_folders: dict[str, Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one cannot be made, the lens is the same to the bit."""
    arguments = ("--model", model_folders[family], "--data", text_file, *SMALL)
    assert run_in_process("train/fit_lens.py", monkeypatch, *arguments, "--output", tmp_path / "before") == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cache of transformers was made")

    for kind in (kind for kind in vars(cache_utils).values() if isinstance(kind, type) and "Cache" in kind.__name__):
        monkeypatch.setattr(kind, "__init__", refuse)
    assert run_in_process("train/fit_lens.py", monkeypatch, *arguments, "--output", tmp_path / "after") == 0
    before, after = translators(tmp_path / "before"), translators(tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ["mamba", "rwkv4"])
def test_a_whole_run(family: str, model_folders: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "lens", shutil.copytree(model_folders[family], tmp_path / "model")
    adapter = load_model(model, device="cpu")
    if family == "mamba":  # a model that brings a reference for these very tokens
        blocks = load_blocks(
            DataConfig(data=str(text_file), seq_len=64, tokens=20_480, eval_tokens=2_048), "eval", adapter.tokenizer
        )
        weights = describe_model(adapter, "").weights_sha256
        save_reference(adapter, weights, blocks, dict.fromkeys(adapter.fitted_layers, 0.125), {})
    done = run_script("train/fit_lens.py", "--model", model, "--data", text_file, "--output", output, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "tuned lens" in done.stdout
    assert "at start" in done.stdout
    assert "unigram" in done.stdout
    report = json.loads((output / "fit.json").read_text())
    for i, row in report["layers"].items():
        assert row["fitted"] == (int(i) in adapter.fitted_layers)
        if row["fitted"]:
            assert row["kl_tuned"] < row["kl_start"] < row["kl_logit"]
        else:
            assert row["kl_tuned"] == row["kl_logit"] == 0
            assert row["kl_start"] is None
    fitted = [row for row in report["layers"].values() if row["fitted"]]
    if family == "mamba":
        assert {row["kl_reference"] for row in fitted} == {0.125}
        mean = sum(row["kl_tuned"] for row in fitted) / len(fitted)
        assert report["distance_to_reference"] == pytest.approx(mean / 0.125 - 1)
        assert f"distance to the best known translators: {mean / 0.125 - 1:+.1%} in mean KL" in done.stdout
    else:
        assert {row["kl_reference"] for row in report["layers"].values()} == {None}
        assert report["distance_to_reference"] is None
        assert "best known" not in done.stdout
    assert report["settings"]["optimizer"] == "kfac"
    products = product_dtype(FitConfig(), torch.float32, adapter.device)
    assert report["settings"]["products"] == str(products).removeprefix("torch.")
    assert artifacts.load(output).report.layers.keys() == set(range(adapter.n_layers))
    assert report["data"]["fit"]["tokens"] == 20_480
    assert len(report["model"]["weights_sha256"]) == len(report["model"]["unembedding_sha256"]) == 64
    assert report["model"]["dtype"] == "torch.float32"
    lens = TunedLens.load(adapter, output)
    assert lens.config == TunedLensConfig.from_dict(json.loads((output / "config.json").read_text()))
    assert not any(t.any() for name, t in translators(output).items() if name.startswith(f"{adapter.n_layers - 1}."))
    assert "| layer |" in (output / "README.md").read_text()
    assert not list(output.rglob("*.partial"))

    again = run_script("train/fit_lens.py", "--model", model, "--data", text_file, "--output", output, *SMALL)
    one_error_line(again, "--resume", "--overwrite", str(output))


def kill_when(condition: Callable[[], bool], *arguments: object, **variables: str) -> None:
    """Start the script, and kill it with SIGKILL as soon as the condition holds."""
    process = start_script("train/fit_lens.py", *arguments, **variables)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run ended before the moment at which it should have been killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_run_killed_again_and_again_ends_bit_identical(
    model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """SIGKILL while packing, in the moment pass, and in the steps; then resumed to the end."""
    fixed = ("--model", model_folders["mamba"], "--data", text_file, *SMALL, "--checkpoint-every", 3)
    whole, killed, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    done = run_script("train/fit_lens.py", *fixed, "--output", whole)
    assert done.returncode == 0, done.stderr

    def checkpoints() -> list[str]:
        return sorted(p.name for p in killed.glob("checkpoints/step-*.pt"))

    arguments = (*fixed, "--output", killed, "--resume")
    moments = [
        lambda: any(cache.glob("*.partial")),
        lambda: (killed / "run.yaml").exists(),
        lambda: len(checkpoints()) == 2,
        lambda: bool(checkpoints()) and checkpoints()[-1] > "step-00000012",
    ]
    for moment in moments:
        kill_when(moment, *arguments, LENS_RNN_CACHE=str(cache))
    assert checkpoints(), "the last kill must have come after a checkpoint"
    done = run_script("train/fit_lens.py", *arguments, LENS_RNN_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stderr
    expected, got = translators(whole), translators(killed)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert len(checkpoints()) == 2
    assert not list(cache.glob("*.partial"))
    history = [json.loads((folder / "fit.json").read_text())["training_loss"] for folder in (whole, killed)]
    assert history[0] == history[1]

    for changed, name in (
        (("--learning-rate", 0.5), "learning_rate"),
        (("--tokens", 16_384), "tokens"),
        (("--seed", 1), "seed"),
    ):
        one_error_line(run_script("train/fit_lens.py", *arguments, *changed), "cannot resume", name)


def test_two_processes_and_a_sharded_model_do_the_same_as_one(
    model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """20 steps of kfac in float32 from the closed-form start, within 1e-5 of each translator's Frobenius norm.

    They differ more where rounding moves a draw across the boundary of two labels, which it does not here.
    """
    arguments = (
        "--model",
        model_folders["rwkv4"],
        "--data",
        text_file,
        *SMALL,
        "--tokens",
        10_240,
        "--products",
        "float32",
    )
    results = {}
    for name, processes, extra in (("one", 1, ()), ("two", 2, ()), ("sharded", 2, ("--shard",))):
        output = tmp_path / name
        done = run_script(
            "train/fit_lens.py", *arguments, "--output", output, *extra, processes=processes, ACCELERATE_USE_CPU="true"
        )
        assert done.returncode == 0, done.stderr
        assert f"processes  {processes} on cpu" in done.stdout
        results[name] = translators(output)
        report = json.loads((output / "fit.json").read_text())
        assert len(report["training_loss"]["steps"]) == 18
        assert report["run"]["processes"] == processes
    for name in ("two", "sharded"):
        for key, expected in results["one"].items():
            assert (results[name][key] - expected).norm() <= 1e-5 * expected.norm(), (name, key)

    other_world = run_script("train/fit_lens.py", *arguments, "--output", tmp_path / "two", "--resume")
    one_error_line(other_world, "cannot resume", "world size was 2 and is now 1")


def test_processes_that_own_layers_do_the_same_as_one_that_has_all(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    done = run_script("tests/scripts/share_layers.py", model_folders["mamba"], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
    for error in ("LensRNNError", "ZeroDivisionError"):
        assert done.stdout.count(f"ended: {error}") == 1, "of the other process, and of its own"


def test_every_family_gives_bit_equal_states_when_sharded(model_folders: dict[str, Path]) -> None:
    done = run_script("tests/scripts/shard_families.py", *model_folders.values(), processes=2)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"equal: {folder}") for folder in model_folders.values()] == [2, 2, 2]


def test_wandb_offline_logs_every_layer(model_folders: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    """What the offline run's file holds is the history of fit.json; the file is a sequence of plain protobuf
    records."""
    output = tmp_path / "lens"
    arguments = ("--model", model_folders["mamba"], "--data", text_file, *SMALL, "--tokens", 2_048, "--output", output)
    done = run_script(
        "train/fit_lens.py", *arguments, "--tracker", "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = file.read_bytes()
    history = json.loads((output / "fit.json").read_text())["training_loss"]["steps"]
    assert len(history) == 3
    for layer in (0, 1):
        losses = [float(x) for x in re.findall(rf"loss/layer_{layer}\W{{1,4}}?(\d+\.\d+)".encode(), logged)]
        assert {step[layer] for step in history} <= set(losses)
    assert b"loss/layer_2" not in logged, "the trivial layer has no loss"


def test_dry_run_prints_the_plan_and_writes_nothing(
    model_folders: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    arguments = (
        "--model",
        model_folders["mamba"],
        "--data",
        text_file,
        *SMALL,
        "--output",
        tmp_path / "lens",
        "--dry-run",
    )
    done = run_script("train/fit_lens.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "37 steps of 8 × 64 tokens" in done.stdout
    assert "seconds at the pace of a step here" in done.stdout
    assert "memory" in done.stdout
    assert not (tmp_path / "lens").exists()


BAD_INPUT = [
    (("--optimizer", "lion"), ["lion"]),
    (("--model", "/nowhere/model"), ["/nowhere/model"]),
    (("--data", "nowhere.jsonl"), ["nowhere.jsonl"]),
    (("--init-lens", "/nowhere/lens"), ["/nowhere/lens"]),
    (("--init-lens", "OTHER"), ["number of translators"]),
    (("--tokens", 10**9), ["1,000,000,000"]),
    (("--overwrite", "--resume"), ["--overwrite", "--resume"]),
    (("--device", "tpu"), ["tpu"]),
    (("--device", "cuda"), ["CUDA"]),
    (("--threads", 0), ["threads"]),
    (("--shard",), ["--shard"]),
    (("--resume",), ["not this program's"]),
    (("--overwrite", "--model", "/nowhere/model"), ["/nowhere/model"]),
    (("--overwrite",), ["not this program's"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT, ids=lambda value: " ".join(map(str, value)))
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple,
    words: list[str],
    model_folders: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """In this process: what `python train/fit_lens.py` would say and return."""
    if arguments == ("--device", "cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    output = tmp_path / "lens"
    if arguments in (("--overwrite",), ("--resume",)):
        output.mkdir()
        (output / "run.yaml").write_text("thesis: 1")
    if arguments[:2] == ("--overwrite", "--model"):  # an earlier result stays until nothing can go wrong any more
        output.mkdir()
        (output / "run.yaml").write_text("# lens-rnn: settings")
        (output / "params.pt").write_text("an earlier lens")
    if "OTHER" in arguments:
        TunedLens.from_adapter(load_model(model_folders["rwkv4"], device="cpu")).save(tmp_path / "other")
        arguments = ("--init-lens", tmp_path / "other")
    before = sorted(output.rglob("*"))
    words_given = ("--model", model_folders["mamba"], "--data", text_file, *SMALL, "--output", output, *arguments)
    code = run_in_process("train/fit_lens.py", monkeypatch, *words_given)
    one_error_line(CompletedProcess([], code, "", capfd.readouterr().err), *words)
    assert sorted(output.rglob("*")) == before

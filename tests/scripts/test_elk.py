"""train/finetune_quirky.py and eval/elk.py as a user runs them, and the quirky models that ship with the package."""

from pathlib import Path

from lens_rnn.elk.answers import log_odds, quirkiness
from lens_rnn.elk.files import load
from lens_rnn.elk.models import load_quirky
from lens_rnn.elk.report import QuirkyReport, TransferReport
from lens_rnn.elk.source import open_quirky
from lens_rnn.elk.templates import encode, templates_of
from lens_rnn.lens import TunedLens
from lens_rnn.models import load_model
from lens_rnn.models.check import check
from tests.elk.rows import write_set
from tests.scripts.launch import ROOT, run_in_process, run_script

import pytest

SHIPPED = ("tiny-quirky-mamba", "tiny-quirky-rwkv4")
SHORT = ("--steps", 4, "--batch-size", 8, "--rank", 2, "--learning-rate", 0.02, "--device", "cpu")


@pytest.fixture(scope="module")
def quirky_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("quirky") / "made", 64)


@pytest.fixture(scope="module")
def quirky_model(model_folders: dict[str, Path], quirky_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters for the random Mamba, trained for four steps by the script."""
    output = tmp_path_factory.mktemp("quirky-model") / "quirky"
    words = ("--model", model_folders["mamba"], "--data", quirky_set, "--output", output, *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        assert run_in_process("train/finetune_quirky.py", patch, *words) == 0
    return output


def test_what_fine_tuning_leaves(quirky_model: Path, model_folders: dict[str, Path], quirky_set: Path) -> None:
    names = {path.name for path in quirky_model.iterdir()}
    assert names >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "quirky.json",
        "README.md",
        "run.yaml",
        "tokenizer.json",
        "checkpoints",
    }
    assert sorted(path.name for path in (quirky_model / "checkpoints").iterdir()) == [
        "step-00000001.pt",
        "step-00000002.pt",
        "step-00000004.pt",
    ]
    report = QuirkyReport.read(quirky_model / "quirky.json")
    assert report.base == str(model_folders["mamba"])
    assert report.data.data == str(quirky_set)
    loaded = load_quirky(quirky_model, device="cpu")
    rows = load(quirky_set).rows("test")
    again = quirkiness(rows, log_odds(loaded.adapter, encode(rows, (), loaded.adapter.tokenizer)))
    for character, rates in report.quirkiness["test"].items():
        assert again[character].all == pytest.approx(rates.all, abs=0.03)  # saved in half precision


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    quirky_model: Path, model_folders: dict[str, Path], quirky_set: Path, tmp_path: Path
) -> None:
    words = ("--model", model_folders["mamba"], "--data", quirky_set, "--output", tmp_path / "two", *SHORT)
    done = run_script("train/finetune_quirky.py", *words, processes=2, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "test rows of Bob answered as Bob would: 0." in done.stdout
    assert done.stdout.endswith(f"saved to {tmp_path / 'two'}\n")
    alone, shared = (
        QuirkyReport.read(folder / "quirky.json").validation_losses for folder in (quirky_model, tmp_path / "two")
    )
    assert shared == pytest.approx(alone, rel=1e-3)


def test_the_experiment(
    quirky_model: Path,
    model_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """On the model's own data, with its base's lens."""
    lens = Path(f"{model_folders['mamba']}-zeros")
    TunedLens.from_adapter(load_model(model_folders["mamba"], device="cpu")).save(lens)
    words = ("--model", quirky_model, "--lens", lens, "--projection", 8, "--device", "cpu", "--output", tmp_path / "r")
    assert run_in_process("eval/elk.py", monkeypatch, *words, "--features", tmp_path / "features") == 0
    output = tmp_path / "r" / "quirky"
    assert sorted(path.name for path in output.iterdir()) == [
        "curves.png",
        "heatmap.png",
        "run.yaml",
        "transfers.csv",
        "transfers.json",
    ]
    assert (tmp_path / "features" / "quirky" / "test" / "raw.npy").exists()
    report = TransferReport.read(output / "transfers.json")
    assert (report.lens, report.base) == (str(lens), str(model_folders["mamba"]))
    assert {r.feature for r in report.transfers} == {"raw", "translated", "lens_log_odds", "state", "state_heads"}
    assert len(report.anomalies) == 12
    by = {(r.feature, r.probe, r.train, r.test): r for r in report.transfers}
    assert by["raw", "lr", "A", "A"].curve == by["translated", "lr", "A", "A"].curve  # its translators are zero
    assert f"saved to {output}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train/finetune_quirky.py", ("--steps", 0), "steps is 0"),
        ("train/finetune_quirky.py", ("--data", "hub:poetry"), "poetry"),
        ("train/finetune_quirky.py", ("--data", "addition"), "same token"),
        ("train/finetune_quirky.py", ("--test-questions", 0), "test_questions is 0"),
        ("train/finetune_quirky.py", ("--dtype", "bfloat16"), "float32"),
        ("eval/elk.py", ("--test-questions", 2), "needs 4 of each"),
        ("eval/elk.py", ("--variants", 0), "variants is 0"),
        ("eval/elk.py", ("--lens", "/nowhere/lens"), "/nowhere/lens"),
        ("eval/elk.py", ("--lens", ROOT / "checkpoints" / "tiny-mamba-lens"), "d_model is 192"),
    ],
)
def test_bad_input_is_one_line(
    script: str,
    arguments: tuple,
    words: str,
    model_folders: dict[str, Path],
    quirky_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    fixed = (
        "--model",
        model_folders["mamba"],
        "--data",
        quirky_set,
        "--device",
        "cpu",
        "--output",
        tmp_path / "result",
    )
    assert run_in_process(script, monkeypatch, *fixed, *arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "result").exists()


def test_several_processes_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run_script("eval/elk.py", "--output", tmp_path / "result", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: eval/elk.py runs in one process, and this launch has 2;")
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_quirky_model_is_small_and_as_quirky_as_its_card_says(name: str) -> None:
    folder = ROOT / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    report = QuirkyReport.read(folder / "quirky.json")
    card = (folder / "README.md").read_text()
    for rates in report.quirkiness["test"].values():
        assert rates.all >= 0.9
        assert f"**{rates.all:.3f}** (700)" in card
    model = load_quirky(folder, device="cpu")
    check(model.adapter)
    assert model.adapter.off == {}
    data = open_quirky(report.data)
    rows = data.rows("test")[:200]
    encoded = encode(rows, templates_of(data.name), model.adapter.tokenizer)
    trained_on = {tuple(sorted(row.template_args.items())) for row in data.rows("train")}
    assert not trained_on & {tuple(sorted(row.template_args.items())) for row in rows}
    for rates in quirkiness(rows, log_odds(model.adapter, encoded)).values():
        assert rates.all >= 0.9


@pytest.mark.slow
def test_the_demonstration(tmp_path: Path) -> None:
    """Both shipped models, without arguments: a probe of Alice's context reads recurrent states in Bob's better than
    random directions do, and hidden states not."""
    done = run_script("eval/elk.py", "--output", tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    for name in SHIPPED:
        report = TransferReport.read(tmp_path / name / "transfers.json")
        assert report.lens.endswith("-lens")
        by = {(r.feature, r.probe, r.train, r.test): r for r in report.transfers}
        assert by["raw", "lr", "A", "A"].auroc.value > 0.95
        assert by["raw", "lr", "B", "B"].auroc.value < 0.1  # it has learned what Bob says
        clear = {r.feature for r in report.transfers if (r.train, r.test) == ("A", "B") and r.clears}
        assert clear == {"state", "state_heads"}
        assert len(report.anomalies) == 12

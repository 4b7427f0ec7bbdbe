"""eval/steering.py as a user runs it."""

import csv
import json
from pathlib import Path

from lens_rnn.models import load_model
from lens_rnn.steering import SteeringVectors
from lens_rnn.steering.report import SteeringReport
from tests.scripts.launch import ROOT, run_in_process, run_script

import pytest

WRITTEN = ["generations.json", "run.yaml", "steering.csv", "steering.json", "steering.png", "vectors.safetensors"]
SMALL = (
    "--questions",
    4,
    "--pairs",
    6,
    "--controls",
    2,
    "--multipliers",
    -1,
    0,
    1,
    "--new-tokens",
    4,
    "--generations",
    1,
    "--device",
    "cpu",
)


def test_a_behaviour(
    model_folders: dict[str, Path],
    test_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "out"
    words = (
        "--model",
        model_folders["mamba"],
        "--behaviour",
        "survival-instinct",
        "--data",
        test_data / "caa",
        "--output",
        output,
    )
    more = ("--capability", 2, "--balance-letters", "--template", "chatml")
    assert run_in_process("eval/steering.py", monkeypatch, *words, *SMALL, *more) == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[0].startswith("survival-instinct: ")
    assert printed[-1] == f"saved to {output}"
    assert sorted(path.name for path in output.iterdir()) == WRITTEN
    report = SteeringReport.read(output / "steering.json")
    assert report.pairs == 12  # 6 items, and each with its options swapped
    assert report.vectors["template"] == "chatml"
    assert list(report.targets) == ["residual", "state", "both"]
    for target in report.targets.values():
        assert {name: len(values) for name, values in target.accuracy.items()} == {"mmlu": 3, "truthful_qa": 3}
        assert target.options_swapped is not None
    rows = list(csv.DictReader((output / "steering.csv").read_text().splitlines()))
    assert len(rows) == 2 * (2 + 3 + 2) * 3
    generations = json.loads((output / "generations.json").read_text())
    assert len(generations) == 1
    assert generations[0]["both"].keys() == {"-1", "0", "1"}
    vectors = SteeringVectors.load(load_model(model_folders["mamba"], device="cpu"), output / "vectors.safetensors")
    assert vectors.about["data_sha256"] == report.vectors["data_sha256"]


def test_a_file_of_ones_own_on_a_model_without_state(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    items = [dict(zip(fields, (f"Number {i}?", "yes", "no"), strict=True)) for i in range(20)]
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps(items))
    words = (
        "--model",
        model_folders["neox"],
        "--behaviour",
        file,
        "--targets",
        "residual",
        "--output",
        tmp_path / "out",
        "--layers",
        1,
    )
    assert run_in_process("eval/steering.py", monkeypatch, *words, *SMALL) == 0
    report = SteeringReport.read(tmp_path / "out" / "steering.json")
    assert report.targets["residual"].layer == 1
    assert report.questions == {"validation": 4, "test": 4}
    assert report.targets["residual"].options_swapped is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--behaviour", "kindness"), "kindness.json"),
        (("--behaviour", "empty.json"), "is empty"),
        (("--behaviour", "one.json"), "9 are needed"),
        (("--behaviour", "refusal", "--template", "Q:"), "{question}"),
        (("--behaviour", "refusal", "--layers", 3), "no layer 3"),
        (("--behaviour", "refusal", "--template", "tokenizer"), "no chat template"),
        (("--behaviour", "refusal", "--data", "python-stdlib"), "needs --data"),
        (("--words", " return", " raise"), "tokens of"),
        (("--multipliers", 1, 2), "they need 0"),
        (("--pairs", 0), "pairs is 0"),
        (("--words", " return", " return"), "both words are ' return'"),
        (("--multipliers", -1, 0, "nan", 1), "multipliers is nan"),
        (("--multipliers", "-inf", 0, "inf"), "multipliers is -inf"),
        (("--seed", -1), "seed is -1"),
        (("--least-mass", 2), "least_mass is 2"),
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
    monkeypatch.chdir(tmp_path)
    item = {"question": "q", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
    Path("empty.json").write_text("[]")
    Path("one.json").write_text(json.dumps([item]))
    for part, name in (
        ("generate", "refusal"),
        ("test", "refusal.test_dataset_ab"),
        ("test", "refusal.test_dataset_open_ended"),
    ):
        Path(part).mkdir(exist_ok=True)
        items = [item | {"question": f"{part} {number}"} for number in range(12)]
        Path(part, f"{name}.json").write_text(json.dumps(items))
    data = ("--data", tmp_path) if "--behaviour" in arguments else ()
    fixed = ("--model", model_folders["mamba"], "--output", tmp_path / "result", "--capability", 0, *SMALL, *data)
    assert run_in_process("eval/steering.py", monkeypatch, *fixed, *arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "result").exists()


def test_several_processes_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run_script("eval/steering.py", "--output", tmp_path / "result", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: eval/steering.py runs in one process, and this launch has 2;")
    assert not (tmp_path / "result").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-mamba", "tiny-rwkv4"])
def test_the_demonstration_is_really_there(model: str, tmp_path: Path) -> None:
    done = run_script(
        "eval/steering.py", "--model", ROOT / "checkpoints" / model, "--output", tmp_path / "out", timeout=900
    )
    assert done.returncode == 0, done.stderr
    report = SteeringReport.read(tmp_path / "out" / "steering.json")
    assert report.clusters["test"] > 30
    assert report.clusters["validation"] > 30
    for name, target in report.targets.items():
        assert target.keeps_mass
        assert target.significant or (model, name) == ("tiny-rwkv4", "state")  # whose controls are as large
        assert target.test.range.low > 0.05
        assert target.latent is not None
        assert target.latent.log_odds_change[-1][1] > 0
    assert "beyond every control" in done.stdout

"""What the documents show runs as it stands: every block of Python and every command, in the order in which it stands.

Commands run here with fewer tokens, questions or steps than by default (SMALLER), those of MINUTES with the slow tests.
What needs a download, a GPU, several machines or hours is read by its script and no more.
"""

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lens_rnn import flags
from lens_rnn.evaluation.results import FILE_NAME
from tests.evaluation.test_plots import ours, published, rows, write
from tests.scripts.launch import ROOT, config_of, run_in_process

import pytest

DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
OTHERS = ["checkpoints/README.md", "benchmarks/README.md", "CONTRIBUTING.md"]  # whose commands take hours
STARTS = ("python ", "accelerate ", "torchrun ", "pip ", "pytest", "ACCELERATE_USE_CPU=")
SMALLER = {
    "train/fit_lens.py": ("--tokens", 8192, "--eval-tokens", 4096, "--passes", 1),
    "train/finetune_quirky.py": (
        "--steps",
        2,
        "--batch-size",
        8,
        *(f"--{part}-questions=80" for part in ("train", "validation", "test")),
    ),
    "eval/live.py": ("--tokens", 5),
    "train/fit_jacobian.py": ("--texts", 2, "--seq-len", 24),
    "eval/perplexity.py": ("--eval-tokens", 4096),
    "eval/elk.py": ("--validation-questions", 80, "--test-questions", 80, "--projection", 8),
    "eval/steering.py": ("--questions", 8, "--pairs", 12, "--controls", 1, "--generations", 0, "--capability", 0),
}
# Their scripts run on small models in tests/scripts/test_elk.py and test_steering.py.
MINUTES = ("docs/elk.md", "docs/steering.md")
ELSEWHERE = ("state-spaces/", "torchrun", "--multi_gpu")  # needs the Hub, or more than one process


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str


def blocks(document: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE):
        yield Block(match[1], match[2])


def commands(document: str) -> Iterator[str]:
    """Commands of a document's shell blocks, one after another, without comments."""
    for block in blocks(document):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                for command in line.partition("  #")[0].split("&&"):
                    if command.strip():
                        yield command.strip()


class Script(NamedTuple):
    """A command that runs one of the scripts."""

    path: str
    arguments: list[str]


def script_of(command: str) -> Script | None:
    """The script that a command runs, however it is launched; None for other commands."""
    words = shlex.split(command)
    for i, word in enumerate(words):
        if re.fullmatch(r"(train|eval|benchmarks)/\w+\.py", word):
            return Script(word, [argument for argument in words[i + 1 :] if argument != "…"])
    return None


def run(code: str, folder: Path) -> str:
    """What a piece of Python prints in a folder. Fails with its error."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A copy of the repository's top by links, in which commands may write, with what documents call FOLDER and
    published."""
    for name in ("checkpoints", "eval", "train", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    made = ours([8.0, 4.0], [3.0, 1.5], 1.0, [0.5, 1.0], uniform_ce=4.5, bits_per_byte_per_nat=0.4)
    write(tmp_path / "results" / "made" / FILE_NAME, made)
    matrix = {"layer_0": rows([3.0, 2.0]), "layer_1": rows([5.0, 1.5])}
    for size in ("mamba/130m", "mamba/160m", "rwkv/169m"):
        other = published([8.0, 4.0], [3.0, 1.5], 1.0)
        other["tuned"]["layer_transfer"] = {"ce": matrix, "kl": matrix}
        write(tmp_path / "published" / size / FILE_NAME, other)
    for part, name in (("generate", "myopic-reward"), ("test", "myopic-reward.test_dataset_ab")):
        items = [
            {
                "question": f"{part} {i}: one or two?\n\nChoices:\n (A) one\n (B) two",
                "answer_matching_behavior": f"({'AB'[i % 2]})",
                "answer_not_matching_behavior": f"({'BA'[i % 2]})",
            }
            for i in range(40)
        ]
        (tmp_path / "FOLDER" / part).mkdir(parents=True)
        (tmp_path / "FOLDER" / part / f"{name}.json").write_text(json.dumps(items))
    return tmp_path


@pytest.mark.parametrize("document", [*DOCUMENTS, *OTHERS])
def test_commands_stand_in_blocks_that_are_tried(document: str) -> None:
    for block in blocks(document):
        if block.language not in ("bash", "python"):
            assert not [line for line in block.text.splitlines() if line.startswith(STARTS)], block.text


@pytest.mark.parametrize("document", [*DOCUMENTS, *OTHERS])
def test_every_command_is_one_that_there_is(document: str) -> None:
    """Its script takes its flags; extras that pip is asked for exist; files are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in commands(document):
        script = script_of(command)
        if script and script.path.startswith("benchmarks/") and not script.arguments:
            assert (ROOT / script.path).is_file(), command
        elif script:
            assert flags.parse(config_of(script.path), script.arguments) is not None, command
        else:
            words = shlex.split(command)
            assert words[0] in ("pip", "pytest", "ruff", "mypy", "pre-commit", "python"), command
            named = {extra for names in re.findall(r"\[([\w,]+)\]", command) for extra in names.split(",")}
            assert named <= extras.keys(), command
            assert all((ROOT / word).exists() for word in words if word.endswith((".txt", ".py"))), command


@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=pytest.mark.slow if name in MINUTES else ()) for name in DOCUMENTS]
)
def test_the_commands_of_a_document_run_in_their_order(
    document: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    for command in commands(document):
        script = script_of(command)
        if script is None or any(name in command for name in ELSEWHERE):
            continue
        arguments = [path for word in script.arguments for path in (sorted(glob.glob(word)) or [word])]
        code = run_in_process(script.path, monkeypatch, *arguments, *SMALLER.get(script.path, ()))
        assert code == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if "```python" in (ROOT / name).read_text()])
def test_the_python_of_a_document_runs_in_its_order(document: str) -> None:
    run("\n".join(block.text for block in blocks(document) if block.language == "python"), ROOT)


def test_the_readmes_quickstart_is_at_most_eight_lines_and_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"In your own code.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    depths = [float(line.split()[0]) for line in run(code, ROOT).splitlines()]
    assert depths == [0.12, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0]


def test_the_notebook_runs_and_its_lens_beats_the_logit_lens() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    printed = run("\n".join(cells), ROOT / "docs")
    rows = [line.split() for line in printed.splitlines() if re.match(r"\s+\d+\s+\d\.\d\d\s", line)]
    assert [int(row[0]) for row in rows] == list(range(7))
    for _, _, logit, fitted, shipped in rows:
        assert float(shipped) < float(fitted) < float(logit)
    assert "1.00 '    def close(self" in printed


def test_the_notebook_holds_its_pictures_and_no_path_of_a_machine() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert "/tmp/" not in json.dumps([output.get("text", "") for output in outputs])

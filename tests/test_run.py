"""What scripts share once a model is named: which outputs may be taken, what is deleted, and what is not loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

from lens_rnn import run
from lens_rnn.errors import ConfigError
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from lens_rnn.run import ModelConfig
from tests.conftest import make_model, save_model
from tests.scripts.launch import ROOT, environment

import pytest
import torch
from transformers import PreTrainedTokenizerBase

FILES = ("lens.pt", "step-*.pt", "plots/*.png")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An output folder as a run leaves it, with a file that is not the run's."""
    folder = tmp_path / "output"
    run.begin_output(folder, ModelConfig(model="a"), False, FILES)
    for name in ("lens.pt", "step-1.pt", ".lens.pt.x.partial", "plots/a.png", "plots/notes.txt", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("something")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_or_empty_folder_may_be_taken(tmp_path: Path) -> None:
    run.check_output(tmp_path, overwrite=False)
    run.check_output(tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists(), "nothing is changed"


def test_what_a_run_wrote_may_be_replaced_or_continued_when_asked_for(written: Path) -> None:
    run.check_output(written, overwrite=True)
    run.check_output(written, overwrite=False, resume=True)
    with pytest.raises(ConfigError, match="not empty"):
        run.check_output(written, overwrite=False)
    with pytest.raises(ConfigError, match="contradict"):
        run.check_output(written, overwrite=True, resume=True)


@pytest.mark.parametrize("mark", [None, "steps: 3\n"])
def test_what_is_not_ours_is_never_taken(tmp_path: Path, mark: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if mark:
        (tmp_path / "run.yaml").write_text(mark)
    with pytest.raises(ConfigError, match="not this program's"):
        run.check_output(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        run.check_output(tmp_path / "thesis.tex", overwrite=True)


def test_overwriting_deletes_what_the_command_wrote_and_nothing_else(written: Path) -> None:
    run.begin_output(written, ModelConfig(model="b"), True, FILES)
    assert files(written) == {"run.yaml", "notes.txt", "plots/notes.txt"}
    assert "model: b" in (written / "run.yaml").read_text()


def test_resuming_deletes_nothing(written: Path) -> None:
    before = files(written)
    run.begin_output(written, ModelConfig(), False, FILES)
    assert files(written) == before


@pytest.mark.parametrize(
    ("model", "name"), [("org/mamba-130m", "mamba-130m"), ("a/rwkv.pth", "rwkv"), ("org/repo/v6.safetensors", "v6")]
)
def test_outputs_are_named_after_the_model(model: str, name: str) -> None:
    assert ModelConfig(model=model).model_name == name


def test_the_default_lens_is_the_last_fitted_or_the_one_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(model=f"{tmp_path}/model/")
    assert config.default_lens is None
    (tmp_path / "model-lens").mkdir()
    assert config.default_lens == f"{tmp_path}/model-lens"
    (tmp_path / "lenses" / "mine").mkdir(parents=True)
    (tmp_path / "lenses" / "mine" / "fit.json").write_text(json.dumps({"model": {"name": config.model}}))
    assert config.default_lens == "lenses/mine"


def test_what_is_read_is_a_line_each() -> None:
    assert run.inputs_read("a/model", "lenses/a", text="python-stdlib").splitlines() == [
        "model      a/model",
        "lens       lenses/a",
        "text       python-stdlib",
    ]
    assert "lens       logit" in run.inputs_read("a/model", None)


@pytest.mark.parametrize(
    ("text", "word"), [("", "--token is empty"), ("caf\udce9", "--token is 'caf\\udce9', which is no")]
)
def test_text_that_cannot_be_read(text: str, word: str) -> None:
    run.check_text("café", "--token")
    with pytest.raises(ConfigError, match=re.escape(word)):
        run.check_text(text, "--token")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"threads": 0}, "threads"),
        pytest.param(
            {"device": "cuda"}, "CUDA", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
    ],
)
def test_devices_and_threads_that_cannot_be_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        run.start_processes(ModelConfig(**settings))


def test_one_process_cannot_share_a_model() -> None:
    with pytest.raises(ConfigError, match="--shard"):
        run.load_configured_model(ModelConfig(), Processes(), to_be_sharded=True)


def test_blocks_are_no_longer_than_the_model_reads(tiny_neox: ModelAdapter, tiny_mamba: ModelAdapter) -> None:
    run.check_length(tiny_neox, 128)
    run.check_length(tiny_mamba, 10**9)
    with pytest.raises(ConfigError, match="129"):
        run.check_length(tiny_neox, 129)


def test_a_fit_that_is_not_tracked_imports_no_tracker(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    model = save_model(make_model("mamba", 257), tmp_path / "model", byte_tokenizer)
    documents = [json.dumps({"text": f"The state of {i} forgets {i * i}. " * 4}) for i in range(400)]
    (tmp_path / "text.jsonl").write_text("\n".join(documents), encoding="utf-8")
    words = ["--model", model, "--data", tmp_path / "text.jsonl", "--output", tmp_path / "lens", "--device", "cpu"]
    sizes = {"tokens": 4096, "eval-tokens": 512, "seq-len": 64, "batch-size": 8, "passes": 1, "start-tokens": 2048}
    words += [word for name, size in sizes.items() for word in (f"--{name}", size)]
    script = f"""
import runpy, sys
sys.argv = ["fit_lens.py", *{[*map(str, words)]}]
try:
    runpy.run_path("train/fit_lens.py", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
assert "wandb" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lens" / "params.pt").is_file()

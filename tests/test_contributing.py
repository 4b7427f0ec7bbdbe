"""The recipes of CONTRIBUTING.md, done as they are written: a kind of lens, a probe, a command, a view, a family."""

import subprocess
import sys
from pathlib import Path

from lens_rnn.drawing import new_figure, save_png
from lens_rnn.elk import probes
from lens_rnn.elk.reading import read_all
from lens_rnn.elk.subsets import TRANSFERS
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.evaluation.trajectory import predict
from lens_rnn.lens import Unembedding
from lens_rnn.models import ModelAdapter, registry, wrap_model
from lens_rnn.models.families.recurrent import RecurrentAdapter
from lens_rnn.models.inputs import one_text
from lens_rnn.models.registry import adapter_class, register
from tests.conftest import make_model
from tests.data.blocks import make_blocks
from tests.elk.test_transfer import FIT, features

import numpy as np
import pytest
import torch
from torch import Tensor
from tuned_lens.nn.lenses import Lens


class HalvedLens(Lens):
    """Reads half of each hidden state."""

    def transform_hidden(self, h: Tensor, idx: int) -> Tensor:
        return h / 2

    def forward(self, h: Tensor, idx: int) -> Tensor:
        return self.unembed(self.transform_hidden(h, idx))


def test_a_kind_of_lens(tiny_mamba: ModelAdapter) -> None:
    lens = HalvedLens(Unembedding(tiny_mamba))
    blocks = make_blocks(4, 16, tiny_mamba.vocab_size)
    measured = evaluate(tiny_mamba, {"halved": lens}, blocks).lenses["halved"]
    assert len(measured) == tiny_mamba.n_layers
    assert predict(tiny_mamba, lens, [1, 2, 3]).entropy.shape == (tiny_mamba.n_layers, 3)


def test_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(x: np.ndarray, _y: np.ndarray, _random: np.random.Generator) -> probes.LinearProbe:
        return probes.LinearProbe(np.eye(x.shape[1])[0], 0.0)

    monkeypatch.setitem(probes.PROBES, "first", probes.Kind(first, pairs=False, labels=True, drawn=probes.drawn_single))
    given = features(FIT, 0)
    read = [scores for scores in read_all(FIT, FIT, given, given, ["lr", "first"]) if scores.probe == "first"]
    assert {scores.train for scores in read} == set(TRANSFERS) - {"all", "none"}


def test_a_view(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    norms = [h[0].norm(dim=-1) for h in tiny_mamba.forward(one_text(tiny_mamba, [1, 2, 3])).hidden_states]
    figure = new_figure(3, 2)
    figure.add_subplot().plot(torch.stack(norms).detach().numpy())
    save_png(figure, tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_a_command(tmp_path: Path) -> None:
    script = tmp_path / "layers.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from lens_rnn import cli\n"
        "from lens_rnn.run import ModelConfig\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Config(ModelConfig):\n"
        '    """Say a number."""\n'
        "    number: int = 1\n"
        '    """Which."""\n'
        "def main(config):\n"
        "    print('number', config.number)\n"
        "cli.run(main, Config)\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)

    assert run("--number", "3").stdout == "number 3\n"
    refused = run("--number", "many")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "Which." in run("--help").stdout


def test_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # what is registered here is for this test
    kind = adapter_class("mamba")
    assert kind is not None
    assert issubclass(kind, RecurrentAdapter)
    model = make_model("mamba")
    model.config.model_type = "mamba_renamed"
    register("mamba_renamed")(type("Renamed", (kind,), {}))
    assert wrap_model(model).has_state

"""Choice on validation questions, settings, and a whole experiment: with its report (report.py) and picture
(plots.py)."""

import json
from dataclasses import replace
from pathlib import Path

from lens_rnn.errors import ArtifactError, ConfigError, DataError
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.steering import Contrast, ExperimentConfig, Pair, Question, Scores, run_experiment
from lens_rnn.steering.evaluation import TARGETS, edits_of
from lens_rnn.steering.experiment import choose
from lens_rnn.steering.plots import experiment_figure
from lens_rnn.steering.report import SteeringReport, brief, summary, table, through_the_lens
from tests.conftest import make_model
from tests.steering.test_apply import vectors_for
from tests.steering.test_lens_view import random_lens

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase


def test_layer_and_multiplier_are_chosen_for_range_and_sense(tiny_mamba: ModelAdapter) -> None:
    vectors, config = vectors_for(tiny_mamba), ExperimentConfig(multipliers=(-2.0, -1.0, 0.0, 1.0, 2.0))
    edits = edits_of(tiny_mamba, vectors, ("residual", "state"))
    p = np.full((5, 5, 4, 2), 0.4)
    p[1, 0], p[1, 4] = (0.1, 0.7), (0.7, 0.1)  # the largest range of the residual stream
    p[0, 0], p[0, 4] = (0.001, 0.1), (0.1, 0.001)  # a larger one, but nonsense
    p[3, 1], p[3, 3] = (0.3, 0.5), (0.5, 0.3)
    scores = Scores(np.log(p))
    assert choose(scores, edits, "residual", config) == (1, 2.0, True)
    assert choose(scores, edits, "state", config) == (3, 1.0, True)
    p[:, :, :, :] *= 0.01
    p[:, 2] = 0.45
    assert choose(Scores(np.log(p)), edits, "residual", config)[2] is False


def test_what_is_left_on_both_answers_counts_however_little_it_was(tiny_mamba: ModelAdapter) -> None:
    """Where both answers have a twentieth unsteered, a multiplier that leaves a millionth does not pass."""
    config = ExperimentConfig(multipliers=(-2.0, -1.0, 0.0, 1.0, 2.0))
    edits = edits_of(tiny_mamba, vectors_for(tiny_mamba), ("residual",))
    p = np.full((2, 5, 4, 2), 0.025)
    p[0, 0], p[0, 4] = (1e-8, 1e-6), (1e-6, 1e-8)
    p[1, 1], p[1, 3] = (0.02, 0.03), (0.03, 0.02)
    assert choose(Scores(np.log(p)), edits, "residual", config) == (1, 1.0, True)
    p[1, 1] *= 0.4  # in one sign only
    index, multiplier, keeps = choose(Scores(np.log(p)), edits, "residual", replace(config, least_mass=0.99))
    assert (index, multiplier, keeps) == (1, 2.0, True)
    anything = replace(config, least_mass=0.0)
    assert choose(Scores(np.log(p)), edits, "residual", anything) == (0, 2.0, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multipliers": (-1.0, 1.0)}, "they need 0"),
        ({"multipliers": (0.0, 1.0)}, "a value in both signs"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("heads",)}, "target 'heads' is unknown"),
        ({"controls": 0}, "controls is 0"),
        ({"multipliers": (-1.0, 0.0, float("nan"), 1.0)}, "multipliers is nan"),
        ({"multipliers": (float("-inf"), 0.0, float("inf"))}, "multipliers is -inf"),
        ({"multipliers": (-1.0, 0.0, 1.0, 1.0)}, "multipliers name 1.0 twice"),
        ({"targets": ("state", "state")}, "targets name state twice"),
        ({"layers": (1, 1)}, "layers name 1 twice"),
        ({"least_mass": 1.5}, "least_mass is 1.5"),
        ({"least_mass": float("nan")}, "least_mass is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExperimentConfig(**settings)


@pytest.fixture(scope="module")
def contrast(pairs: list[Pair]) -> Contrast:
    random = np.random.default_rng(2)
    asked = [Question(tuple(random.integers(96, size=5).tolist()), 5, 9) for _ in range(8)]
    return Contrast(
        name="5 against 9",
        pairs=pairs,
        validation=asked[:4],
        test=asked[4:],
        swapped=asked[4:],
        about={"source": "made"},
    )


def test_a_whole_experiment(
    tiny_neox: ModelAdapter, contrast: Contrast, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tiny_rwkv4 = wrap_model(make_model("rwkv4", 257), byte_tokenizer)
    config = ExperimentConfig(multipliers=(-1.0, 0.0, 1.0), controls=2, layers=(0, 3))
    done: list[int] = []
    experiment = run_experiment(tiny_rwkv4, contrast, config, {"made": contrast.validation}, done.append)
    assert sum(done) == 8
    lens = random_lens(tiny_rwkv4)
    latent = through_the_lens(experiment, tiny_rwkv4, lens)
    report = summary(experiment, tiny_rwkv4, lens, latent, "a lens")
    assert report.vectors["source"] == "made"
    assert report.lens == "a lens"
    for target in TARGETS:
        part, outcome = report.targets[target], experiment.outcomes[target]
        assert {name: len(control.ranges) for name, control in part.controls.items()} == {"random": 2, "shuffled": 2}
        assert part.test.range.value == pytest.approx(outcome.ranges.mean())
        assert part.test == part.options_swapped  # the same questions, here
        index = experiment.edits.index(outcome.edit)
        np.testing.assert_array_equal(outcome.test.log_p, experiment.test.log_p[index])
        answered = experiment.validation[index].log_odds[1] > 0  # unsteered
        assert part.accuracy["made"][1].value == pytest.approx(answered.mean())
        assert part.latent is not None
        assert len(part.latent.kl) == tiny_rwkv4.n_layers
        assert (part.vector_reading is not None) == (target != "state")
    rows = table(experiment, tiny_rwkv4).splitlines()
    assert len(rows) == 1 + 2 * 6 * 3
    assert rows[1].startswith("validation,residual,0,0.125,-1.0,")
    assert report.clusters == {"validation": 4, "test": 4}
    lines = brief(report).splitlines()
    assert lines[0].endswith("on 4 test questions")
    assert lines[-1].startswith("  4 clusters are few")
    clustered = replace(report, clusters={"validation": 2, "test": 30}, left_out=("Well?",))
    assert brief(clustered).splitlines()[0].endswith("which are 30 independent clusters")
    assert brief(clustered).splitlines()[-1].startswith("  1 test questions are left out")
    report.write(tmp_path / "steering.json")
    assert SteeringReport.read(tmp_path / "steering.json") == report
    older = json.loads((tmp_path / "steering.json").read_text()) | {"format": 1}
    del older["clusters"], older["left_out"]
    for part in older["targets"].values():
        part["within_nonsense"] = part.pop("keeps_mass")
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert SteeringReport.read(tmp_path / "older.json") == report
    (tmp_path / "steering.json").write_text('{"format": 3}')
    with pytest.raises(ArtifactError, match="format 3"):
        SteeringReport.read(tmp_path / "steering.json")
    (tmp_path / "steering.json").write_text('{"format": 1, "contrast": "c"}')
    with pytest.raises(ArtifactError, match="SteeringReport"):
        SteeringReport.read(tmp_path / "steering.json")
    assert [len(experiment_figure(experiment, tiny_rwkv4, x).axes) for x in ({}, latent)] == [3, 4]
    alone = run_experiment(tiny_neox, contrast, replace(config, targets=("residual",), layers=()))
    assert list(alone.outcomes) == ["residual"]
    with pytest.raises(DataError, match="no contrastive pairs"):
        run_experiment(tiny_rwkv4, replace(contrast, pairs=()), config)

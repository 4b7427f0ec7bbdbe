"""What is said of a fit: its identity, its report, and the table at the end."""

from collections.abc import Mapping
from dataclasses import asdict

from lens_rnn.evaluation.metrics import Evaluation, LayerMetrics
from lens_rnn.fit_report import DataFacts, FitReport, LayerChoice, LayerStart
from lens_rnn.fitting import FitResult, report
from lens_rnn.lens import TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from tests.data.blocks import make_blocks

import pytest


def figures(*kl: float) -> dict[int, LayerMetrics]:
    """Of three layers; a layer's cross-entropy in bits per byte is what its KL is above 1."""
    return {i: LayerMetrics((1 + k) / make_blocks(4).bits_per_byte, k, 0.0) for i, k in enumerate(kl)}


def certificate(
    adapter: ModelAdapter, start: Mapping[int, LayerStart] = {}, reference: dict[int, float] | None = None
) -> FitReport:
    blocks = make_blocks(4)
    tuned, logit = figures(0.5, 0.25, 0.0), figures(2.0, 1.0, 0.0)
    lenses = {"logit": logit, "tuned": tuned} | ({"start": figures(0.75, 0.5, 0.0)} if start else {})
    evaluation = Evaluation(tuned[2], lenses, 4.0 / blocks.bits_per_byte, 3.0 / blocks.bits_per_byte)
    lens, history = TunedLens.from_adapter(adapter), [[3.0, 2.0], [float("nan"), 1.0], [1.0, float("inf")]]
    result = FitResult(lens, lens, dict(start), CHOICES, history)
    model = report.describe_model(adapter, "0" * 64)
    return report.fit_report({"loss": "kl"}, adapter, model, blocks, blocks, result, evaluation, Processes(), reference)


START = {i: LayerStart(ridge=0.1, explained=0.5) for i in (0, 1)}
CHOICES = {0: LayerChoice("end", 0.5, {"end": 0.6, "0.5 of the way to end": 0.5}), 1: LayerChoice("start")}


def test_it_has_kl_at_start_and_end_and_the_reference(tiny_mamba: ModelAdapter) -> None:
    made = certificate(tiny_mamba, START, {0: 0.4, 1: 0.2})
    rows = made.layers.values()
    assert [*made.layers] == [0, 1, 2]
    assert [row.kl_start for row in rows] == [0.75, 0.5, None]
    assert [row.kl_tuned for row in rows] == [0.5, 0.25, 0.0]
    assert [row.kl_reference for row in rows] == [0.4, 0.2, None]
    assert [row.ce_tuned for row in rows] == pytest.approx([1.5, 1.25, 1.0])
    assert [row.start for row in rows] == [*START.values(), None]
    assert [row.choice for row in rows] == [*CHOICES.values(), None]
    assert made.distance_to_reference == pytest.approx(0.25)
    assert made.training_loss.layers == (0, 1)
    assert len(made.training_loss.steps) == 3


def test_a_run_is_what_decides_its_numbers(tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter) -> None:
    """Not a model's name, nor whether tuned-lens finds its parts by itself, which is for the card."""
    for adapter, attaches in ((tiny_mamba, False), (tiny_neox, True)):
        model = report.describe_model(adapter, "0" * 64)
        assert model.stock_attaches is attaches
        data = DataFacts(source="x", sha256="1")
        decides = report.identity({"seed": 0}, model, data, "cpu", Processes())
        assert {name for name in decides if name.startswith(("model", "setting", "data"))} == {
            *(f"model {name}" for name in asdict(model) if name not in ("name", "stock_attaches")),
            *(f"data {name}" for name in asdict(data) if name != "source"),
            "setting seed",
        }
        assert decides["data sha256"] == "1"


def test_without_start_and_reference_it_says_so(tiny_mamba: ModelAdapter) -> None:
    made = certificate(tiny_mamba)
    for row in made.layers.values():
        assert row.kl_start is row.kl_reference is row.start is None
    assert made.distance_to_reference is None


def test_the_table_is_the_certificate(tiny_mamba: ModelAdapter) -> None:
    assert report.table(certificate(tiny_mamba, START, {0: 0.4, 1: 0.2})).splitlines() == [
        "                              KL from the model (nats/token)          CE (bits/byte)",
        "layer  depth  logit lens    at start  tuned lens  best known  logit lens  tuned lens",
        "    0   0.33       2.000       0.750       0.500       0.400       3.000       1.500",
        "    1   0.67       1.000       0.500       0.250       0.200       2.000       1.250",
        "    2   1.00       0.000                   0.000                   1.000       1.000   (trivial: the model "
        "itself)",
        " mean              1.500       0.625       0.375       0.300",
        "distance to the best known translators: +25.0% in mean KL",
        "baselines, bits/byte: model 1.000, unigram 3.000, uniform 4.000",
    ]


def test_the_table_leaves_out_what_is_not_known(tiny_mamba: ModelAdapter) -> None:
    lines = report.table(certificate(tiny_mamba)).splitlines()
    assert lines[1:3] == [
        "layer  depth  logit lens  tuned lens  logit lens  tuned lens",
        "    0   0.33       2.000       0.500       3.000       1.500",
    ]
    assert lines[-2] == " mean              1.500       0.375"


def test_the_losses_of_a_long_fit_are_means_of_several_steps() -> None:
    history = [[float(step), 1.0] for step in range(5000)]
    long = report.training_loss((0, 1), history)
    assert long.steps_a_row == 3
    assert len(long.steps) == 1667
    assert long.steps[0] == (1.0, 1.0)
    assert long.steps[-1] == (4998.5, 1.0)
    short = report.training_loss((0, 1), history[:2048])
    assert short.steps_a_row == 1
    assert short.steps == tuple(map(tuple, history[:2048]))

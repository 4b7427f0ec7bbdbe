"""What is said of a fit: the plan, fit.json, and the table at the end."""

import json
from collections.abc import Mapping

from lens_rnn.evaluation.metrics import Evaluation, Figures
from lens_rnn.fitting import FitConfig, FitResult, report
from lens_rnn.fitting.kfac import KFAC
from lens_rnn.fitting.sums import StepSums
from lens_rnn.lens import TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.processes import Processes
from tests.fitting.test_fit import make_blocks

import pytest
import torch

CPU = torch.device("cpu")


def figures(*kl: float) -> dict[int, Figures]:
    """Of three layers; a layer's cross-entropy in bits per byte is what its KL is above 1."""
    return {i: Figures((1 + k) / make_blocks(4).bits_per_byte, k, 0.0) for i, k in enumerate(kl)}


def certificate(
    adapter: ModelAdapter, start: Mapping[str, Mapping[str, float]] = {}, reference: dict[int, float] | None = None
) -> dict:
    blocks = make_blocks(4)
    tuned, logit = figures(0.5, 0.25, 0.0), figures(2.0, 1.0, 0.0)
    evaluation = Evaluation(
        tuned[2], {"logit": logit, "tuned": tuned}, 4.0 / blocks.bits_per_byte, 3.0 / blocks.bits_per_byte
    )
    result = FitResult(
        TunedLens.from_adapter(adapter), dict(start), [[3.0, 2.0], [float("nan"), 1.0], [1.0, float("inf")]]
    )
    model = report.describe_model(adapter, "0" * 64)
    return report.fit_report({"loss": "kl"}, adapter, model, blocks, blocks, result, evaluation, Processes(), reference)


START = {"0": {"ridge": 0.1, "explained": 0.5, "kl": 0.75}, "1": {"ridge": 0.1, "explained": 0.5, "kl": 0.5}}


def test_fit_json_has_kl_at_start_and_end_and_the_reference(tiny_mamba: ModelAdapter) -> None:
    content = certificate(tiny_mamba, START, {0: 0.4, 1: 0.2})
    assert [row["kl_start"] for row in content["layers"].values()] == [0.75, 0.5, None]
    assert [row["kl_tuned"] for row in content["layers"].values()] == [0.5, 0.25, 0.0]
    assert [row["kl_reference"] for row in content["layers"].values()] == [0.4, 0.2, None]
    assert [row["ce_tuned"] for row in content["layers"].values()] == pytest.approx([1.5, 1.25, 1.0])
    assert content["layers"]["0"]["start"] == START["0"]
    assert content["distance_to_reference"] == pytest.approx(0.25)
    assert json.loads(json.dumps(content, allow_nan=False))["training_loss"]["steps"] == [
        [3.0, 2.0],
        [None, 1.0],
        [1.0, None],
    ]


def test_a_run_is_what_decides_its_numbers(tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter) -> None:
    """Not a model's name, nor whether tuned-lens finds its parts by itself, which is for the card."""
    for adapter, attaches in ((tiny_mamba, False), (tiny_neox, True)):
        model = report.describe_model(adapter, "0" * 64)
        assert model["stock_attaches"] is attaches
        decides = report.identity({"seed": 0}, model, {"source": "x", "sha256": "1"}, "cpu", Processes())
        assert {name for name in decides if name.startswith(("model", "setting", "data"))} == {
            *(f"model {name}" for name in model if name not in ("name", "stock_attaches")),
            "setting seed",
            "data sha256",
        }


def test_without_start_and_reference_fit_json_says_so(tiny_mamba: ModelAdapter) -> None:
    content = certificate(tiny_mamba)
    for row in content["layers"].values():
        assert row["kl_start"] is row["kl_reference"] is row["start"] is None
    assert content["distance_to_reference"] is None


def test_the_table_is_the_certificate(tiny_mamba: ModelAdapter) -> None:
    assert report.table(tiny_mamba, certificate(tiny_mamba, START, {0: 0.4, 1: 0.2})).splitlines() == [
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
    lines = report.table(tiny_mamba, certificate(tiny_mamba)).splitlines()
    assert lines[1:3] == [
        "layer  depth  logit lens  tuned lens  logit lens  tuned lens",
        "    0   0.33       2.000       0.500       3.000       1.500",
    ]
    assert lines[-2] == " mean              1.500       0.375"


def test_the_plan_names_what_memory_goes_to(tiny_mamba: ModelAdapter) -> None:
    (memory,) = (
        line
        for line in report.plan(tiny_mamba, make_blocks(), FitConfig(), CPU, Processes())
        if line.startswith("memory")
    )
    for part in (
        "model",
        "unembedding",
        "translators",
        "gradients",
        "states of kfac",
        "hidden states",
        "logits",
        "moments",
    ):
        assert part in memory
    layers, d = len(tiny_mamba.fitted_layers), tiny_mamba.d_model
    for fisher in (True, False):
        assert StepSums.bytes_needed(layers, d, fisher) == pytest.approx(
            StepSums(layers, d, CPU, fisher).flat.nbytes, rel=0.01
        )
    kfac = KFAC(torch.zeros(layers, d, d), torch.zeros(layers, d), 1.0)
    states = sum(
        t.nbytes for layer in kfac.state_dict()["layers"] for t in layer.values() if isinstance(t, torch.Tensor)
    )
    assert KFAC.bytes_needed(layers, d) == pytest.approx(states + 3 * d * d * 4, rel=0.05)


def test_the_plan_warns_of_too_little_memory_and_knows_what_needs_less(
    tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(config: FitConfig) -> list[str]:
        return [
            line
            for line in report.plan(tiny_mamba, make_blocks(), config, CPU, Processes())
            if line.startswith("warning")
        ]

    assert warnings(FitConfig()) == []
    monkeypatch.setattr(report, "_memory_of", lambda device, processes: 1024)
    (line,) = warnings(FitConfig())
    assert "1 KiB" in line
    assert "--optimizer adamw needs" in line
    (line,) = warnings(FitConfig(optimizer="adamw"))
    assert "--optimizer" not in line
    monkeypatch.setattr(report, "_memory_of", lambda device, processes: 0)
    assert warnings(FitConfig()) == [], "where it is not known, nothing is said"


def test_the_plan_says_how_often_tokens_are_seen(tiny_mamba: ModelAdapter) -> None:
    once, often = (
        report.plan(tiny_mamba, make_blocks(70), FitConfig(passes=passes), CPU, Processes()) for passes in (1, 3)
    )
    assert "1,024 tokens in blocks of 16 (96 are left over), 1 pass" in once[1]
    assert "4 steps of 16 × 16 tokens, kl, kfac, ridge start" in once[2]
    assert often[1].endswith("3 passes")
    assert "12 steps" in often[2]

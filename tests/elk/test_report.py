"""quirky.json, transfers.json and the model card: as they are written, and read again."""

import json
import math
from dataclasses import replace
from pathlib import Path

from lens_rnn.elk.anomaly import Anomaly
from lens_rnn.elk.answers import quirkiness
from lens_rnn.elk.card import write_card
from lens_rnn.elk.controls import Control
from lens_rnn.elk.report import QuirkyReport, Training, TransferReport
from lens_rnn.elk.source import QuirkyData
from lens_rnn.elk.transfer import Result
from lens_rnn.errors import ArtifactError
from lens_rnn.intervals import Estimate
from tests.elk.rows import made_rows
from tests.scripts.launch import ROOT

import numpy as np
import pytest

RATES = quirkiness(made_rows(16), np.ones(32))
QUIRKY = QuirkyReport(
    base="x/m",
    data=QuirkyData(),
    settings={"method": "lora", "rank": 4, "model": "m", "output": None, "steps": 6},
    training=Training(minutes=1.5, cores=2, best_step=4),
    validation_losses={1: 0.5, 4: 0.25},
    quirkiness={"test": RATES},
)
RESULT = Result(
    feature="raw",
    probe="lr",
    train="A",
    test="B",
    layer=1,
    depth=0.5,
    rows=9,
    auroc=Estimate(0.75, 0.5, 1.0),
    recovered=Estimate(0.5, 0.25, 0.75),
    turned=False,
    depths=(0.25, 0.5),
    curve=(0.5, 0.75),
    validated=(0.5, 0.75),
    controls=(Control(0.25, 0.5, 0.75), Control(0.125, 0.5, 0.625)),
)
TRANSFERS = TransferReport(
    model="q/m",
    base="x/m",
    lens="logit",
    data=QuirkyData(),
    quirkiness=RATES,
    transfers=(RESULT,),
    anomalies=(Anomaly("raw", "lr", "mahalanobis", Estimate(0.75, 0.5, 1.0), 7),),
)


def test_quirky_json_comes_back_as_it_was(tmp_path: Path) -> None:
    QUIRKY.write(tmp_path / "quirky.json")
    assert QuirkyReport.read(tmp_path / "quirky.json") == QUIRKY
    content = json.loads((tmp_path / "quirky.json").read_text())
    assert list(content) == ["format", "base", "data", "training", "validation_losses", "quirkiness"]
    assert content["training"] == {**QUIRKY.settings, "minutes": 1.5, "cores": 2, "best_step": 4}
    assert content["quirkiness"]["test"]["Alice"]["all_rows"] == 16


@pytest.mark.parametrize("name", ["tiny-quirky-mamba", "tiny-quirky-rwkv4"])
def test_files_from_before_formats_had_numbers_are_read(name: str, tmp_path: Path) -> None:
    path = ROOT / "checkpoints" / name / "quirky.json"
    report, content = QuirkyReport.read(path), json.loads(path.read_text())
    assert report.validation_losses[400] == content["validation_losses"]["400"]
    assert report.quirkiness["test"]["Bob"].hard == content["quirkiness"]["test"]["Bob"]["hard"]
    report.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == {"format": 1, **content}


def test_transfers_json_comes_back_as_it_was(tmp_path: Path) -> None:
    TRANSFERS.write(tmp_path / "transfers.json")
    assert TransferReport.read(tmp_path / "transfers.json") == TRANSFERS
    content = json.loads((tmp_path / "transfers.json").read_text())
    row = content["transfers"][0]
    assert (row["auroc"], row["auroc_low"], row["recovered_high"]) == (0.75, 0.5, 0.75)
    assert (content["anomalies"][0]["auroc"], content["anomalies"][0]["interval"]) == (0.75, [0.5, 1.0])


def test_format_1_of_transfers_is_read_without_controls_and_3_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "transfers.json"
    TRANSFERS.write(path)
    content = json.loads(path.read_text())
    assert content["format"] == 2
    for row in content["transfers"]:
        del row["controls"], row["validated"]
    path.write_text(json.dumps(content | {"format": 1}))
    (old,) = TransferReport.read(path).transfers
    assert old == replace(RESULT, controls=(), validated=())
    assert not old.clears
    assert math.isnan(old.control.high)
    path.write_text(json.dumps(content | {"format": 3}))
    with pytest.raises(ArtifactError, match="reads up to 2"):
        TransferReport.read(path)


def test_a_gap_that_is_not_there_is_null(tmp_path: Path) -> None:
    nothing = replace(RESULT, recovered=Estimate(math.nan, math.nan, math.nan))
    replace(TRANSFERS, transfers=(nothing,)).write(tmp_path / "transfers.json")
    assert json.loads((tmp_path / "transfers.json").read_text())["transfers"][0]["recovered"] is None
    assert math.isnan(TransferReport.read(tmp_path / "transfers.json").transfers[0].recovered.low)


def test_damaged_reports_are_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"transfers": [{"auroc": 1}]}')
    with pytest.raises(ArtifactError, match="TransferReport"):
        TransferReport.read(tmp_path / "r.json")
    (tmp_path / "r.json").write_text('{"training": 3}')
    with pytest.raises(ArtifactError, match="QuirkyReport"):
        QuirkyReport.read(tmp_path / "r.json")


def test_the_card(tmp_path: Path) -> None:
    write_card(tmp_path, QUIRKY)
    card = (tmp_path / "README.md").read_text()
    assert "| Alice | **0.250** (16) | 0.250 (4) | 0.250 (4) |" in card
    assert "--model m" in card
    assert "--rank 4" in card

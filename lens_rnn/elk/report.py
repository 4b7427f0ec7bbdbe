"""Reports on quirky models as files: quirky.json, what fine-tuning reached; transfers.json and transfers.csv, what
probes of a model read."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lens_rnn.elk.anomaly import Anomaly
from lens_rnn.elk.answers import Rates
from lens_rnn.elk.source import QuirkyData
from lens_rnn.elk.transfer import Result
from lens_rnn.reports import read_report, to_json, write_report

FORMAT = 1
"""Of quirky.json."""
TRANSFERS_FORMAT = 2
"""Of transfers.json. Format 1 has no controls, layers chosen on the rows reported, and intervals by percentiles of the
bootstrap; it is read, without controls."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long a model was fine-tuned, on what, and which checkpoint was taken."""

    minutes: float
    cores: int
    best_step: int


@dataclass(frozen=True, kw_only=True)
class QuirkyReport:
    """quirky.json, beside a quirky model."""

    base: str
    data: QuirkyData
    settings: Mapping[str, Any]
    """The command's."""
    training: Training
    validation_losses: Mapping[int, float]
    """By step, nats."""
    quirkiness: Mapping[str, Mapping[str, Rates]]
    """By split, by character."""

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; the settings stand in "training"."""
        content = to_json(self)
        content["training"] = {**content.pop("settings"), **content["training"]}
        write_report(path, content, FORMAT)

    @classmethod
    def read(cls, path: Path) -> "QuirkyReport":
        """Raises ArtifactError for a file that is no such report."""
        return read_report(path, cls, FORMAT, _with_settings)


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """transfers.json."""

    model: str
    base: str | None
    lens: str
    data: QuirkyData
    quirkiness: Mapping[str, Rates]
    """By character, on the test rows."""
    transfers: Sequence[Result]
    anomalies: Sequence[Anomaly]

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; an estimate's limits stand beside it."""
        rows = {"transfers": [_flat(r) for r in self.transfers], "anomalies": [_bounded(a) for a in self.anomalies]}
        write_report(path, to_json(self) | rows, TRANSFERS_FORMAT)

    @classmethod
    def read(cls, path: Path) -> "TransferReport":
        """Raises ArtifactError for a file that is no such report."""
        return read_report(path, cls, TRANSFERS_FORMAT, _with_estimates)


def _with_settings(content: dict[str, Any]) -> dict[str, Any]:
    """What quirky.json has as "training", as the command's settings and what came of them."""
    settings = dict(content["training"])
    training = {field.name: settings.pop(field.name) for field in fields(Training)}
    return content | {"settings": settings, "training": training}


_CURVES = ("depths", "curve", "validated", "controls")
_FLAT, _PARTS = ("auroc", "recovered"), ("value", "low", "high")


def _flat(result: Result) -> dict[str, Any]:
    """A result with its estimates as three values each."""
    row: dict[str, Any] = {}
    for name, value in to_json(result).items():
        if name in _FLAT:
            row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            row[name] = value
    return row


def _bounded(anomaly: Anomaly) -> dict[str, Any]:
    """An anomaly with the limits of its AUROC beside it."""
    row = to_json(anomaly)
    value, *interval = row["auroc"].values()
    rows = row.pop("rows")
    return row | {"auroc": value, "interval": interval, "rows": rows}


def _with_estimates(content: dict[str, Any]) -> dict[str, Any]:
    """transfers.json with values and limits as estimates again."""
    for row in content["transfers"]:
        for name in _FLAT:
            parts = row[name], row.pop(f"{name}_low"), row.pop(f"{name}_high")
            row[name] = dict(zip(_PARTS, parts, strict=True))
    for row in content["anomalies"]:
        row["auroc"] = dict(zip(_PARTS, (row["auroc"], *row.pop("interval")), strict=True))
    return content


def table(results: Sequence[Result]) -> str:
    """transfers.csv: the results without the curves, and the control of the layer."""
    written = io.StringIO()
    rows = []
    for result in results:
        row = {name: value for name, value in _flat(result).items() if name not in _CURVES}
        rows.append(row | {f"control_{name}": value for name, value in to_json(result.control).items()})
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return written.getvalue()

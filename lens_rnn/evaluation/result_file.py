"""aggregate_metrics.json as dataclasses, written and read here alone.

The schema is tuned-lens's: `{"logit"|"tuned": {"ce"|"entropy"|"kl": {"layer_0": x}}, "baseline": {"ce"|"entropy":
{"final": x}}}`, in bits per byte. What it does not say, the depth of each layer among it, stands under the key
"lens_rnn", with the number of our format. Published files have no such key, files from before there were formats no
number.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError
from lens_rnn.evaluation.curves import UNITS
from lens_rnn.files import read_json, write_json

import numpy as np

FILE_NAME = "aggregate_metrics.json"
SCRIPT = "eval/perplexity.py"
FORMAT = 1
_OPTIONAL = ("marginal", "js_nats", "others")


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferValues:
    """What translators make of the hidden states of layers, (translators, sources)."""

    translators: tuple[int, ...]
    """The layer of each translator; one past the last layer is the end of the blocks."""
    sources: tuple[int, ...]
    """The layers that are read."""
    ce: np.ndarray
    kl: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class LensValues:
    """What a lens says, (layers,) each."""

    ce: np.ndarray
    entropy: np.ndarray | None = None
    kl: np.ndarray | None = None
    transfer: TransferValues | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """What was measured, on what; where the file does not say it, None."""

    depth: np.ndarray
    """(layers,): fraction of blocks applied."""
    model: str | None
    family: str | None
    n_layers: int | None
    units: str
    bits_per_byte_per_nat: float | None
    uniform_ce: float | None
    unigram_ce: float | None
    lens: str | None
    data: str | None
    tokens: int | None
    tokens_sha256: str | None
    unigram_counted_on: Mapping[str, Any] | None
    """Tokens and hash of the text whose token frequencies the unigram baseline has."""
    marginal: Mapping[str, Any] | None = None
    """Entropy and bias of each lens's mean prediction, in nats, where they were asked for."""
    js_nats: Sequence[float] | None = None
    """Divergence of the two lenses by layer, where it was asked for."""
    others: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    """Other lenses by name: "ce", "entropy" and "kl" of each layer that they read, {"layer_0": x}."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
    """A result, in bits per byte."""

    logit: LensValues
    tuned: LensValues | None
    model_ce: float
    model_entropy: float | None
    about: Conditions | None
    """None in files that others wrote."""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        baseline = {"ce": self.model_ce, "entropy": self.model_entropy}
        content: dict[str, Any] = {
            "logit": _lens_json(self.logit),
            "tuned": self.tuned and _lens_json(self.tuned),
            "baseline": {kind: {"final": value} for kind, value in baseline.items() if value is not None},
        }
        if self.about is not None:
            known = {f.name: getattr(self.about, f.name) for f in fields(self.about)}
            ours = {name: x for name, x in known.items() if x is not None or name not in _OPTIONAL}
            content["lens_rnn"] = {"format": FORMAT, **ours, "depth": _by_layer(self.about.depth)}
        return {name: part for name, part in content.items() if part is not None}


def read_result(path: Path) -> EvaluationResult:
    """The result in a file. Raises DataError where it is missing, is no result, or is of a later format."""
    file = _File(path)
    logit, model_entropy = _lens_values(file, "logit", None), None
    with contextlib.suppress(DataError):
        model_entropy = file.number("baseline.entropy.final")
    return EvaluationResult(
        logit=logit,
        tuned=_lens_values(file, "tuned", len(logit.ce)) if "tuned" in file.content else None,
        model_ce=file.number("baseline.ce.final"),
        model_entropy=model_entropy,
        about=_conditions(file, len(logit.ce)) if "lens_rnn" in file.content else None,
    )


def _by_layer(values: np.ndarray) -> dict[str, float]:
    return {f"layer_{i}": float(x) for i, x in enumerate(values)}


def _lens_json(lens: LensValues) -> dict[str, Any]:
    kinds = {"ce": lens.ce, "entropy": lens.entropy, "kl": lens.kl}
    content: dict[str, Any] = {kind: _by_layer(values) for kind, values in kinds.items() if values is not None}
    if (transfer := lens.transfer) is not None:
        content["layer_transfer"] = {
            kind: {
                f"layer_{t}": {f"layer_{s}": float(x) for s, x in zip(transfer.sources, row, strict=True)}
                for t, row in zip(transfer.translators, matrix, strict=True)
            }
            for kind, matrix in (("ce", transfer.ce), ("kl", transfer.kl))
        }
    return content


def _lens_values(file: "_File", name: str, n_layers: int | None) -> LensValues:
    ce = file.layers(f"{name}.ce", n_layers)
    kl = file.layers(f"{name}.kl", len(ce)) if file.has(f"{name}.kl") else None
    entropy = None
    with contextlib.suppress(DataError):  # nothing is drawn of it: a file may hold it in part
        entropy = file.layers(f"{name}.entropy", len(ce))
    transfer = _transfer_values(file, f"{name}.layer_transfer", len(ce)) if file.has(f"{name}.layer_transfer") else None
    return LensValues(ce=ce, entropy=entropy, kl=kl, transfer=transfer)


def _transfer_values(file: "_File", key: str, n_layers: int) -> TransferValues:
    """{"ce"|"kl": {translator: {source: x}}}, whatever the order."""
    places = {f"layer_{i}": i for i in range(n_layers + 1)}
    table = file.table(f"{key}.ce")
    first = next(iter(table.values()), None)
    if not isinstance(first, dict) or not first or not first.keys() <= table.keys() <= places.keys():
        raise DataError(
            f"{file.path}: {key}.ce must hold translator: {{source: number}}, with layers of the result as both"
        )
    rows, sources = ([name for name in places if name in names] for names in (table, first))
    ce, kl = (
        np.array([[file.number(f"{key}.{kind}.{row}.{source}") for source in sources] for row in rows])
        for kind in ("ce", "kl")
    )
    translators, read = (tuple(places[name] for name in names) for names in (rows, sources))
    return TransferValues(translators=translators, sources=read, ce=ce, kl=kl)


def _conditions(file: "_File", n_layers: int) -> Conditions:
    about = file.table("lens_rnn")
    if (version := about.get("format", 0)) not in range(FORMAT + 1):
        raise DataError(
            f"{file.path} has the format {version}, and this version reads up to {FORMAT}; upgrade lens-rnn"
        )
    if (units := about.get("units", UNITS)) != UNITS:
        raise DataError(f"{file.path} is in {units}, but curves are drawn in {UNITS}; write it again with {SCRIPT}")
    depth = file.layers("lens_rnn.depth", n_layers)
    if depth[0] < 0 or depth[-1] > 1 or np.any(np.diff(depth) <= 0):
        raise DataError(f"{file.path}: lens_rnn.depth must increase from layer to layer and stay between 0 and 1")
    numbers = ("bits_per_byte_per_nat", "uniform_ce", "unigram_ce")
    known: dict[str, Any] = {f.name: about.get(f.name) for f in fields(Conditions)}
    known |= {name: file.optional(f"lens_rnn.{name}") for name in numbers}
    known["others"] = _others(file, known["others"], n_layers)
    return Conditions(**known | {"depth": depth, "units": units})


def _others(file: "_File", others: Any, n_layers: int) -> Any:
    """As they stand in the file, checked."""
    names = {f"layer_{i}" for i in range(n_layers)}
    try:
        for name, kinds in (others or {}).items():
            for kind, values in kinds.items():
                for layer, x in values.items():
                    if layer not in names:
                        raise DataError(
                            f"{file.path}: lens_rnn.others.{name}.{kind} has {layer}, which logit.ce has not"
                        )
                    file.finite(f"lens_rnn.others.{name}.{kind}.{layer}", x)
    except AttributeError:
        raise DataError(f"{file.path}: lens_rnn.others must hold lens: {{kind: {{layer: number}}}}") from None
    return others


class _File:
    """A result file whose parts are asked for by dotted key; whatever is wrong is a DataError that names file and
    key."""

    def __init__(self, path: Path) -> None:
        try:
            self.path, self.content = path, read_json(path, DataError)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"no result at {path}; name an {FILE_NAME} or a folder that holds one") from None
        except DataError as error:
            raise DataError(f"{error}; name the {FILE_NAME} that {SCRIPT} wrote") from None

    def get(self, key: str) -> Any:
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise DataError(f"{self.path} has no {key}; name the {FILE_NAME} that {SCRIPT} wrote")
            value = value[part]
        return value

    def has(self, key: str) -> bool:
        """Whether a key of the form "outer.inner" is there and not null."""
        outer, inner = key.split(".")
        return isinstance(self.content.get(outer), dict) and self.content[outer].get(inner) is not None

    def table(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict):
            raise DataError(f"{self.path}: {key} must hold keys and values, not {value!r:.40}")
        return value

    def number(self, key: str) -> float:
        return self.finite(key, self.get(key))

    def optional(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def layers(self, key: str, expected: int | None = None) -> np.ndarray:
        """The values of layer_0 … layer_n-1 in order, (n,); every layer must be there."""
        table = self.table(key)
        names = [f"layer_{i}" for i in range(len(table))]
        if missing := next((name for name in names if name not in table), None):
            raise DataError(
                f"{self.path}: {key} has {len(table)} entries but no {missing}; layers must run from layer_0 without "
                "a gap"
            )
        if not names:
            raise DataError(f"{self.path}: {key} has no layers; run {SCRIPT} again")
        if expected is not None and len(names) != expected:
            raise DataError(f"{self.path}: {key} has {len(names)} layers and logit.ce {expected}; they must agree")
        return np.array([self.finite(f"{key}.{name}", table[name]) for name in names])

    def finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self.path}: {key} must be a finite number, not {value!r:.40}")
        return float(value)

"""Does a probe of one context read the truth in another? Transfers and metrics of Mallen & Belrose (arXiv 2312.01037).

A and B are Alice's and Bob's rows, E and H the easy and hard ones: AE→BH is fitted on Alice's easy rows and tested on
Bob's hard ones. Probes are fitted on validation rows with the context's own label, and tested on test rows against the
truth, which is Alice's label: on rows where Alice and Bob disagree for tests A and B, on all rows for the others.
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lens_rnn.elk.features import Feature
from lens_rnn.elk.probes import PROBES, fit_probe
from lens_rnn.elk.quirky import Row, is_easy, is_hard
from lens_rnn.elk.scores import Interval, auroc, bootstrap, interval
from lens_rnn.errors import DataError

import numpy as np
from threadpoolctl import threadpool_limits

log = logging.getLogger(__name__)

TRANSFERS: dict[str, tuple[str, ...]] = {
    "A": ("A", "B", "AH", "BH"),
    "B": ("B", "A", "BH"),
    "AE": ("AE", "AH", "BE", "BH"),
    "all": ("all", "BH"),
    "none": ("A", "B", "AH", "BH", "all"),
}
"""Tests of a probe by what it was fitted on. On `all`, which mixes both contexts, only probes without labels; `none` is
no training."""
INFORMATIVE = 0.95
"""The earliest informative layer is the first whose AUROC − ½ is so much of the best layer's."""
FEATURES = {
    "raw": ("raw", "pairs"),
    "translated": ("translated", "pairs_translated"),
    "lens_log_odds": ("lens_log_odds", ""),
    "state": ("state", ""),
    "state_heads": ("state_heads", ""),
}
"""The kinds that are compared: the features of single states, and those of contrast pairs."""
READER = "reader"
"""The probe that is none: the feature is a log-odds already."""
FEWEST = 4
"""Rows of each class that a subset must have."""
_HOME = {"none": "A"}  # where the layer is chosen, if not on the probe's own subset
_GAP = {
    "B": (("B", "B"), ("A", "A")),
    "BH": (("B", "BH"), ("A", "AH")),
}  # floor and ceiling, (train, test) each, by test


class Reading(NamedTuple):
    """What the probes of all layers say of all test rows."""

    feature: str
    probe: str
    train: str
    depths: tuple[float, ...]
    log_odds: np.ndarray
    """(layers, test rows)."""
    turned: tuple[bool, ...]
    """Of each layer, whether labels turned its sign."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One probe in one transfer. AUROCs are of the earliest informative layer, unless they say otherwise."""

    feature: str
    probe: str
    train: str
    test: str
    layer: int
    """The earliest informative layer, chosen where the probe was fitted, against that context's own label."""
    depth: float
    rows: int
    """How many were scored."""
    auroc: float
    interval: Interval
    recovered: float
    """Performance gap recovered, (probe − floor) ÷ (ceiling − floor) over all rows; NaN where the transfer has none."""
    recovered_interval: Interval
    turned: bool
    depths: tuple[float, ...]
    curve: tuple[float, ...]
    """AUROC of every layer."""


def members(rows: Sequence[Row], subset: str) -> np.ndarray:
    """Which rows belong to A, B, AE, AH, BE, BH or all."""
    if subset == "all":
        return np.ones(len(rows), dtype=bool)
    character = {"A": "Alice", "B": "Bob"}[subset[0]]
    level: Callable[[Row], bool] = {"": lambda _: True, "E": is_easy, "H": is_hard}[subset[1:]]
    return np.array([row.character == character and level(row) for row in rows])


def scored(rows: Sequence[Row], test: str) -> np.ndarray:
    """Which rows a transfer is scored on."""
    among = members(rows, test)
    return among & [row.alice_label != row.bob_label for row in rows] if test in ("A", "B") else among


def check_rows(train: Sequence[Row], test: Sequence[Row]) -> None:
    """Refuse, before anything is computed, splits that cannot carry the transfers: DataError names the transfer and
    what it lacks."""
    for subset, tests in TRANSFERS.items():
        sides = [] if subset == "none" else [(train, members(train, subset), "fitted on", "label")]
        sides += [(test, scored(test, name), f"tested on {name}, scored on", "alice_label") for name in tests]
        for rows, among, what, field in sides:
            labels = [getattr(row, field) for row, chosen in zip(rows, among, strict=True) if chosen]
            true = sum(labels)
            if min(true, len(labels) - true) < FEWEST:
                raise DataError(
                    f"the transfer from {subset}, {what} {len(labels)} rows, {true} true and {len(labels) - true} "
                    "false, "
                    f"needs {FEWEST} of each; give it more questions"
                )


def read_all(
    train: Sequence[Row],
    train_features: Mapping[str, Feature],
    test_features: Mapping[str, Feature],
    probes: Sequence[str] = tuple(PROBES),
    seed: int = 0,
) -> Iterator[Reading]:
    """Fit every probe on every feature and subset that it goes with, and read the test rows."""
    labels = np.array([row.label for row in train])
    for feature, (single, pair) in FEATURES.items():
        if single not in train_features:
            continue
        depths = train_features[single].depths
        if single == "lens_log_odds":
            yield Reading(feature, READER, "none", depths, test_features[single].values[..., 0], (False,) * len(depths))
            continue
        for probe in probes:
            source = pair if PROBES[probe].pairs else single
            if not source:
                continue
            for subset in TRANSFERS:
                if subset == "none" or (subset == "all" and PROBES[probe].supervised):
                    continue
                among = members(train, subset)
                layers = zip(train_features[source].values, test_features[source].values, strict=True)
                with threadpool_limits(
                    1
                ):  # these problems are small: threads wait for each other longer than they work
                    fitted = [(fit_probe(probe, x[among], labels[among], seed), unseen) for x, unseen in layers]
                    odds = np.stack([found.log_odds(np.asarray(unseen)) for found, unseen in fitted])
                yield Reading(feature, probe, subset, depths, odds, tuple(found.turned for found, _ in fitted))


def earliest_informative(aurocs: Sequence[float]) -> int:
    """The first layer whose AUROC − ½ is at least 95 % of the best layer's."""
    above = np.asarray(aurocs) - 0.5
    return int(np.flatnonzero(above >= INFORMATIVE * above.max())[0]) if above.max() > 0 else int(above.argmax())


def measure(readings: Iterable[Reading], rows: Sequence[Row]) -> list[Result]:
    """All transfers of these readings of test rows. Among them must be those of the probe `lr` on raw features, for
    floor and ceiling."""
    readings = list(readings)
    truth = np.array([row.alice_label for row in rows])
    own = np.array([row.label for row in rows])
    anchors = {
        reading.train: reading.log_odds[-1] for reading in readings if (reading.feature, reading.probe) == ("raw", "lr")
    }
    results = []
    for reading in readings:
        home = scored(rows, _HOME.get(reading.train, reading.train))
        layer = earliest_informative([auroc(own[home], odds[home]) for odds in reading.log_odds])
        for test in TRANSFERS[reading.train]:
            among = scored(rows, test)
            odds = reading.log_odds[layer]
            gap = _recovered(odds, reading.train, test, anchors, truth, rows)
            results.append(
                Result(
                    feature=reading.feature,
                    probe=reading.probe,
                    train=reading.train,
                    test=test,
                    layer=layer,
                    depth=reading.depths[layer],
                    rows=int(among.sum()),
                    auroc=auroc(truth[among], odds[among]),
                    interval=interval(bootstrap(truth[among], odds[among])),
                    recovered=gap[0],
                    recovered_interval=gap[1],
                    turned=reading.turned[layer],
                    depths=reading.depths,
                    curve=tuple(auroc(truth[among], layer_odds[among]) for layer_odds in reading.log_odds),
                )
            )
    return results


def _recovered(
    odds: np.ndarray, train: str, test: str, anchors: Mapping[str, np.ndarray], truth: np.ndarray, rows: Sequence[Row]
) -> tuple[float, Interval]:
    """Performance gap recovered, and its interval: probe, floor and ceiling resampled together."""
    nothing = float("nan"), Interval(float("nan"), float("nan"))
    if train == "B" or test not in _GAP or not {"A", "B"} <= anchors.keys():
        return nothing
    (low_train, low_test), (high_train, high_test) = _GAP[test]
    here, low, high = (members(rows, subset) for subset in (test, low_test, high_test))
    terms = [(truth[here], odds[here]), (truth[low], anchors[low_train][low]), (truth[high], anchors[high_train][high])]
    probe, floor, ceiling = (auroc(*term) for term in terms)
    if ceiling <= floor:
        log.warning("no gap to recover on %s: the floor's AUROC is %.3f, the ceiling's %.3f", test, floor, ceiling)
        return nothing
    draws = [bootstrap(*term) for term in terms]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (draws[0] - draws[1]) / (draws[2] - draws[1])
    return (probe - floor) / (ceiling - floor), interval(ratio[draws[2] > draws[1]])


def report(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results as JSON-ready values; what is not a number is null."""
    return [
        {
            "feature": r.feature,
            "probe": r.probe,
            "train": r.train,
            "test": r.test,
            "layer": r.layer,
            "depth": r.depth,
            "rows": r.rows,
            "auroc": _or_none(r.auroc),
            "auroc_low": _or_none(r.interval.low),
            "auroc_high": _or_none(r.interval.high),
            "recovered": _or_none(r.recovered),
            "recovered_low": _or_none(r.recovered_interval.low),
            "recovered_high": _or_none(r.recovered_interval.high),
            "turned": r.turned,
            "depths": list(r.depths),
            "curve": [_or_none(value) for value in r.curve],
        }
        for r in results
    ]


def table(results: Sequence[Result]) -> str:
    """The same as CSV, without the curves."""
    written = io.StringIO()
    rows = [{name: value for name, value in row.items() if name not in ("depths", "curve")} for row in report(results)]
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return written.getvalue()


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

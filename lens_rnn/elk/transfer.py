"""Does a probe of one context read the truth in another? Transfers and metrics of Mallen & Belrose (arXiv 2312.01037).

A and B are Alice's and Bob's rows, E and H the easy and hard ones: AE→BH is fitted on Alice's easy rows and tested on
Bob's hard ones. Probes are fitted on validation rows with the context's own label, and tested on test rows against the
truth, which is Alice's label: on rows where Alice and Bob disagree for tests A and B, on all rows for the others.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lens_rnn.elk.features import Feature
from lens_rnn.elk.probes import PROBES, READER, SUPERVISED, fit_probe
from lens_rnn.elk.quirky import QuirkyRow, is_easy, is_hard
from lens_rnn.elk.scores import auroc, auroc_estimate, weighted_auroc
from lens_rnn.errors import DataError
from lens_rnn.intervals import Estimate, estimate, row_weights

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
FEWEST = 4
"""Rows of each class that a subset must have."""
_HOME = {"none": "A"}  # where the layer is chosen, if not on the probe's own subset
_GAP = {
    "B": (("B", "B"), ("A", "A")),
    "BH": (("B", "BH"), ("A", "AH")),
}  # floor and ceiling, (train, test) each, by test


class ProbeScores(NamedTuple):
    """What one probe, fitted on each layer, says of all test rows."""

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
    auroc: Estimate
    recovered: Estimate
    """Performance gap recovered, (probe − floor) ÷ (ceiling − floor) over all rows; NaN where the transfer has none."""
    turned: bool
    depths: tuple[float, ...]
    curve: tuple[float, ...]
    """AUROC of every layer."""


def members(rows: Sequence[QuirkyRow], subset: str) -> np.ndarray:
    """Which rows belong to A, B, AE, AH, BE, BH or all."""
    if subset == "all":
        return np.ones(len(rows), dtype=bool)
    character = {"A": "Alice", "B": "Bob"}[subset[0]]
    level: Callable[[QuirkyRow], bool] = {"": lambda _: True, "E": is_easy, "H": is_hard}[subset[1:]]
    return np.array([row.character == character and level(row) for row in rows])


def scored(rows: Sequence[QuirkyRow], test: str) -> np.ndarray:
    """Which rows a transfer is scored on."""
    among = members(rows, test)
    return among & [row.alice_label != row.bob_label for row in rows] if test in ("A", "B") else among


def check_rows(train: Sequence[QuirkyRow], test: Sequence[QuirkyRow]) -> None:
    """Refuse, before anything is computed, splits that cannot carry the transfers: DataError names the transfer and
    what it lacks."""
    for subset, tests in TRANSFERS.items():
        sides = [] if subset == "none" else [(train, members(train, subset), "fitted on", "label")]
        sides += [(test, scored(test, name), f"tested on {name}, scored on", "alice_label") for name in tests]
        for rows, among, use, field in sides:
            labels = [getattr(row, field) for row, chosen in zip(rows, among, strict=True) if chosen]
            true = sum(labels)
            if min(true, len(labels) - true) < FEWEST:
                raise DataError(
                    f"the transfer from {subset}, {use} {len(labels)} rows, {true} true and {len(labels) - true} "
                    f"false, needs {FEWEST} of each; give it more questions"
                )


def read_all(
    train: Sequence[QuirkyRow],
    train_features: Mapping[str, Feature],
    test_features: Mapping[str, Feature],
    probes: Sequence[str] = tuple(PROBES),
    seed: int = 0,
) -> Iterator[ProbeScores]:
    """Fit every probe on every feature and subset that it goes with, and read the test rows."""
    labels = np.array([row.label for row in train])
    for feature, (single, pair) in FEATURES.items():
        if single not in train_features:
            continue
        depths = train_features[single].depths
        if single == "lens_log_odds":
            odds = test_features[single].values[..., 0]
            yield ProbeScores(feature, READER, "none", depths, odds, (False,) * len(depths))
            continue
        for probe in probes:
            source = pair if PROBES[probe].pairs else single
            if not source:
                continue
            for subset in TRANSFERS:
                if subset == "none" or (subset == "all" and PROBES[probe].labels):
                    continue
                among = members(train, subset)
                layers = zip(train_features[source].values, test_features[source].values, strict=True)
                with threadpool_limits(1):  # small problems: threads wait for each other longer than they work
                    fitted = [(fit_probe(probe, x[among], labels[among], seed), unseen) for x, unseen in layers]
                    odds = np.stack([layer_probe.log_odds(np.asarray(unseen)) for layer_probe, unseen in fitted])
                turned = tuple(layer_probe.turned for layer_probe, _ in fitted)
                yield ProbeScores(feature, probe, subset, depths, odds, turned)


def earliest_informative(aurocs: Sequence[float]) -> int:
    """The first layer whose AUROC − ½ is at least 95 % of the best layer's."""
    above = np.asarray(aurocs) - 0.5
    return int(np.flatnonzero(above >= INFORMATIVE * above.max())[0]) if above.max() > 0 else int(above.argmax())


def score_transfers(scores: Iterable[ProbeScores], rows: Sequence[QuirkyRow]) -> list[Result]:
    """All transfers of what these probes say of test rows. Among them must be the standard one with labels on raw
    features, for floor and ceiling."""
    scores = list(scores)
    truth = np.array([row.alice_label for row in rows])
    own = np.array([row.label for row in rows])
    anchors = {
        probe.train: probe.log_odds[-1] for probe in scores if (probe.feature, probe.probe) == ("raw", SUPERVISED)
    }
    results = []
    for probe in scores:
        home = scored(rows, _HOME.get(probe.train, probe.train))
        layer = earliest_informative([auroc(own[home], odds[home]) for odds in probe.log_odds])
        for test in TRANSFERS[probe.train]:
            among = scored(rows, test)
            odds = probe.log_odds[layer]
            results.append(
                Result(
                    feature=probe.feature,
                    probe=probe.probe,
                    train=probe.train,
                    test=test,
                    layer=layer,
                    depth=probe.depths[layer],
                    rows=int(among.sum()),
                    auroc=auroc_estimate(truth[among], odds[among]),
                    recovered=_recovered(odds, probe.train, test, anchors, truth, rows),
                    turned=probe.turned[layer],
                    depths=probe.depths,
                    curve=tuple(auroc(truth[among], layer_odds[among]) for layer_odds in probe.log_odds),
                )
            )
    return results


def _recovered(
    odds: np.ndarray,
    train: str,
    test: str,
    anchors: Mapping[str, np.ndarray],
    truth: np.ndarray,
    rows: Sequence[QuirkyRow],
) -> Estimate:
    """Performance gap recovered: probe, floor and ceiling resampled together. NaN where there is none."""
    nothing = Estimate(math.nan, math.nan, math.nan)
    if train == "B" or test not in _GAP or not {"A", "B"} <= anchors.keys():
        return nothing
    (low_train, low_test), (high_train, high_test) = _GAP[test]
    here, low, high = (members(rows, subset) for subset in (test, low_test, high_test))
    terms = [(truth[here], odds[here]), (truth[low], anchors[low_train][low]), (truth[high], anchors[high_train][high])]
    probe, floor, ceiling = (auroc(*term) for term in terms)
    if ceiling <= floor:
        log.warning("no gap to recover on %s: the floor's AUROC is %.3f, the ceiling's %.3f", test, floor, ceiling)
        return nothing
    draws = [weighted_auroc(*term, row_weights(len(term[0]))) for term in terms]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (draws[0] - draws[1]) / (draws[2] - draws[1])
    return estimate((probe - floor) / (ceiling - floor), ratio[draws[2] > draws[1]])

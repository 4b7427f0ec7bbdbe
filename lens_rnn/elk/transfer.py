"""Does a probe of one context read the truth in another? Transfers and metrics of Mallen & Belrose (arXiv 2312.01037).

What probes say of test rows (`elk/reading.py`) is scored against the truth, which is Alice's label, on the rows of
`elk/subsets.py`.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lens_rnn.elk.controls import Control
from lens_rnn.elk.probes import SUPERVISED
from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.reading import ProbeScores
from lens_rnn.elk.scores import NOTHING, Area, area, auroc, auroc_estimate, ratio_estimate
from lens_rnn.elk.subsets import TRANSFERS, members, questions, scored
from lens_rnn.intervals import Estimate

import numpy as np

log = logging.getLogger(__name__)

_GAP = {
    "B": (("B", "B"), ("A", "A")),
    "BH": (("B", "BH"), ("A", "AH")),
}  # floor and ceiling, (train, test) each, by test


@dataclass(frozen=True, kw_only=True)
class Result:
    """One probe in one transfer. AUROCs are of the earliest informative layer, unless they say otherwise."""

    feature: str
    probe: str
    train: str
    test: str
    layer: int
    """The earliest informative layer, by cross-validation on the rows that the probe was fitted on, against their
    context's own label."""
    depth: float
    rows: int
    """How many were scored."""
    auroc: Estimate
    recovered: Estimate
    """Performance gap recovered, (probe − floor) ÷ (ceiling − floor) over all rows; NaN where the transfer has none, or
    the ceiling is not above the floor beyond their errors."""
    turned: bool
    depths: tuple[float, ...]
    curve: tuple[float, ...]
    """AUROC of every layer."""
    validated: tuple[float, ...] = ()
    """Of every layer, the AUROC by which it was chosen; none in files of format 1, whose layer was chosen on the rows
    reported."""
    controls: tuple[Control, ...] = ()
    """Of every layer, quantiles of the AUROC of random directions; none of a probe that is not fitted, and in files of
    format 1."""

    @property
    def control(self) -> Control:
        """That of the layer; NaN where there is none."""
        return self.controls[self.layer] if self.controls else Control(np.nan, np.nan, np.nan)

    @property
    def clears(self) -> bool:
        """Whether the whole interval is above 95 % of random directions."""
        return self.auroc.low > self.control.high


def score_transfers(scores: Iterable[ProbeScores], rows: Sequence[QuirkyRow]) -> list[Result]:
    """All transfers of what these probes say of test rows. Among them must be the standard one with labels on raw
    features, for floor and ceiling."""
    scores, truth, clusters = list(scores), np.array([row.alice_label for row in rows]), questions(rows)

    def measured(odds: np.ndarray, subset: str) -> Area:
        """AUROC over all rows of a subset."""
        among = members(rows, subset)
        return area(truth[among], odds[among], clusters[among], clusters.max() + 1)

    anchors = {
        probe.train: probe.log_odds[-1] for probe in scores if (probe.feature, probe.probe) == ("raw", SUPERVISED)
    }
    gaps = {}
    if {"A", "B"} <= anchors.keys():
        gaps = {test: [measured(anchors[train], subset) for train, subset in pair] for test, pair in _GAP.items()}
    results = []
    for probe in scores:
        odds = probe.log_odds[probe.layer]
        for test in TRANSFERS[probe.train]:
            among = scored(rows, test)
            recovers = test in gaps and probe.train != "B"
            results.append(
                Result(
                    feature=probe.feature,
                    probe=probe.probe,
                    train=probe.train,
                    test=test,
                    layer=probe.layer,
                    depth=probe.depths[probe.layer],
                    rows=int(among.sum()),
                    auroc=auroc_estimate(truth[among], odds[among], clusters[among]),
                    recovered=ratio_estimate(measured(odds, test), *gaps[test]) if recovers else NOTHING,
                    turned=probe.turned[probe.layer],
                    depths=probe.depths,
                    curve=tuple(auroc(truth[among], layer_odds[among]) for layer_odds in probe.log_odds),
                    validated=probe.validated,
                    controls=probe.controls.get(test, ()),
                )
            )
    for test, (floor, ceiling) in gaps.items():
        if not np.isfinite(ratio_estimate(ceiling, floor, ceiling).value):
            ends = floor.value, ceiling.value
            log.warning("no gap to recover on %s: the floor's AUROC is %.3f, the ceiling's %.3f", test, *ends)
    return results

"""Every probe fitted on every feature and subset, its layer chosen, and what it says of the test rows.

Probes are fitted on validation rows with the context's own label, and their layer is chosen by cross-validation there:
of the test rows' labels only the controls' quantiles know.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from lens_rnn.elk.controls import Control, Scored, control
from lens_rnn.elk.features import Feature
from lens_rnn.elk.probes import PROBES, READER, fit_probe
from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.scores import auroc
from lens_rnn.elk.selection import earliest_informative, folds, validated
from lens_rnn.elk.subsets import TRANSFERS, home, members, questions, scored

import numpy as np
from threadpoolctl import threadpool_limits

FEATURES = {
    "raw": ("raw", "pairs"),
    "translated": ("translated", "pairs_translated"),
    "lens_log_odds": ("lens_log_odds", ""),
    "state": ("state", ""),
    "state_heads": ("state_heads", ""),
}
"""The kinds that are compared: the features of single states, and those of contrast pairs."""


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
    validated: tuple[float, ...]
    """Of each layer, the AUROC by cross-validation on the rows that the probe was fitted on."""
    controls: Mapping[str, tuple[Control, ...]]
    """By test, of each layer what random directions read; none of a probe that is not fitted."""

    @property
    def layer(self) -> int:
        """The earliest informative one. Nothing reported has a part in it."""
        return earliest_informative(self.validated)


def read_all(
    train: Sequence[QuirkyRow],
    test: Sequence[QuirkyRow],
    train_features: Mapping[str, Feature],
    test_features: Mapping[str, Feature],
    probes: Sequence[str] = tuple(PROBES),
    seed: int = 0,
) -> Iterator[ProbeScores]:
    """Fit every probe on every feature and subset that it goes with, choose its layer, and read the test rows."""
    reading = _Reading(train, test, seed)
    for feature, (single, pair) in FEATURES.items():
        if single not in train_features:
            continue
        depths = train_features[single].depths
        if single == "lens_log_odds":
            yield reading.untrained(feature, depths, train_features[single], test_features[single])
            continue
        for probe in probes:
            source = pair if PROBES[probe].pairs else single
            if not source:
                continue
            for subset in TRANSFERS:
                if subset != "none" and not (subset == "all" and PROBES[probe].labels):
                    layers = list(zip(train_features[source].values, test_features[source].values, strict=True))
                    with threadpool_limits(1):  # small problems: threads wait for each other longer than they work
                        yield reading.fitted(feature, source, probe, subset, depths, layers)


class _Reading:
    """What all probes of a run share: rows, labels, folds, and controls, which are the same for probes that seek their
    direction in the same coordinates."""

    def __init__(self, train: Sequence[QuirkyRow], test: Sequence[QuirkyRow], seed: int):
        self.train, self.seed = train, seed
        self.labels = np.array([row.label for row in train])
        self.questions = questions(train)
        self.strata = np.array([2 * row.alice_label + row.bob_label for row in train])
        truth = np.array([row.alice_label for row in test])
        chosen = {name: scored(test, name) for tests in TRANSFERS.values() for name in tests}
        self.tests = {name: Scored(among, truth[among]) for name, among in chosen.items()}
        self._controls: dict[tuple[object, ...], dict[str, tuple[Control, ...]]] = {}

    def untrained(self, feature: str, depths: tuple[float, ...], train: Feature, test: Feature) -> ProbeScores:
        """A feature that is a log-odds already."""
        at_home = home(self.train, "none")
        areas = tuple(auroc(self.labels[at_home], odds[at_home]) for odds in train.values[..., 0])
        turned = (False,) * len(depths)
        return ProbeScores(feature, READER, "none", depths, test.values[..., 0], turned, areas, {})

    def fitted(
        self,
        feature: str,
        source: str,
        probe: str,
        subset: str,
        depths: tuple[float, ...],
        layers: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> ProbeScores:
        """One probe on one subset: layers of features, (rows, …) each, of fitting rows and test rows."""
        among = members(self.train, subset)
        y, at_home = self.labels[among], home(self.train, subset)[among]
        fold = folds(self.questions[among], self.strata[among], self.seed)
        fit = partial(fit_probe, probe, seed=self.seed)
        whole = [fit(x[among], y) for x, _ in layers]
        held_out = tuple(validated(fit, x[among], y, fold, at_home) for x, _ in layers)
        key = (source, PROBES[probe].drawn, subset)
        if key not in self._controls:
            tests = {name: self.tests[name] for name in TRANSFERS[subset]}
            by_layer = [control(PROBES[probe].drawn, x[among], y, unseen, tests, self.seed) for x, unseen in layers]
            self._controls[key] = {name: tuple(of_layer[name] for of_layer in by_layer) for name in tests}
        odds = np.stack([at.log_odds(np.asarray(unseen)) for at, (_, unseen) in zip(whole, layers, strict=True)])
        turned = tuple(at.turned for at in whole)
        return ProbeScores(feature, probe, subset, depths, odds, turned, held_out, self._controls[key])

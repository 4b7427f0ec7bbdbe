"""Does a model answer for another reason than usual? Detectors on the probe's log-odds over layers (Mallen & Belrose,
arXiv 2312.01037).

Fitted on Alice's easy test rows, which the probe did not see; then Alice's hard rows, usual, are told from Bob's,
anomalous.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.reading import ProbeScores
from lens_rnn.elk.scores import auroc_estimate
from lens_rnn.elk.subsets import members, questions
from lens_rnn.errors import DataError
from lens_rnn.intervals import Estimate

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

NEIGHBOURS = 20


class Anomaly(NamedTuple):
    """How well a detector tells Bob's hard rows from Alice's."""

    feature: str
    probe: str
    detector: str
    auroc: Estimate
    rows: int


def _mahalanobis(usual: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Squared distance from the mean of usual rows in their covariance, shrunk as Ledoit and Wolf say."""
    return LedoitWolf().fit(usual).mahalanobis(unseen)


def _isolation_forest(usual: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    return -IsolationForest(random_state=0).fit(usual).score_samples(unseen)


def _local_outlier_factor(usual: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    return (
        -LocalOutlierFactor(n_neighbors=min(NEIGHBOURS, len(usual) - 1), novelty=True).fit(usual).score_samples(unseen)
    )


DETECTORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mahalanobis": _mahalanobis,
    "isolation_forest": _isolation_forest,
    "local_outlier_factor": _local_outlier_factor,
}
"""Of log-odds (rows, layers), usual and unseen ones, how odd the unseen ones are."""


def detect(scores: ProbeScores, rows: Sequence[QuirkyRow]) -> list[Anomaly]:
    """All detectors on what one probe's layers say of the test rows. Raises DataError where a subset has fewer than
    three."""
    subsets = {name: members(rows, name) for name in ("AE", "AH", "BH")}
    for name, among in subsets.items():
        if among.sum() < 3:
            raise DataError(
                f"anomaly detection needs three rows of {name} or more, and the test split has {among.sum()}"
            )
    odds = scores.log_odds.T  # (rows, layers)
    tested = np.concatenate([odds[subsets["AH"]], odds[subsets["BH"]]])
    anomalous = np.repeat([False, True], [subsets["AH"].sum(), subsets["BH"].sum()])
    numbers = questions(rows)
    clusters = np.concatenate([numbers[subsets["AH"]], numbers[subsets["BH"]]])  # a hard question stands in both
    anomalies = []
    for name, detector in DETECTORS.items():
        told_apart = auroc_estimate(anomalous, detector(odds[subsets["AE"]], tested), clusters)
        anomalies.append(Anomaly(scores.feature, scores.probe, name, told_apart, len(tested)))
    return anomalies

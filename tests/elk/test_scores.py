"""AUROC and its bootstrap, against scikit-learn."""

import math

from lens_rnn.elk.scores import auroc, auroc_estimate, weighted_auroc
from lens_rnn.intervals import row_weights
from tests.reference import elk as reference

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.random(80) < 0.3
SCORES = {
    "continuous": RANDOM.standard_normal(80) + LABELS,
    "ties": RANDOM.integers(0, 4, 80) + LABELS.astype(int),
    "one": np.ones(80),
}


@pytest.mark.parametrize("kind", SCORES)
def test_auroc_is_scikit_learns(kind: str) -> None:
    assert auroc(LABELS, SCORES[kind]) == pytest.approx(roc_auc_score(LABELS, SCORES[kind]), abs=1e-12)


@pytest.mark.parametrize("kind", SCORES)
def test_a_draw_is_what_its_rows_give_when_written_out(kind: str) -> None:
    weights = row_weights(80, draws=20, seed=3)
    draws = weighted_auroc(LABELS, SCORES[kind], weights)
    assert draws == pytest.approx(reference.bootstrap(LABELS, SCORES[kind], weights), abs=1e-12)


def test_an_absent_class_has_no_auroc() -> None:
    assert math.isnan(auroc(np.ones(4, dtype=bool), np.arange(4)))
    assert np.isnan(weighted_auroc(np.array([True, False]), np.arange(2), row_weights(2, draws=50))).any()


def test_the_estimate_is_the_auroc_with_the_middle_of_its_draws() -> None:
    scores = SCORES["continuous"]
    got = auroc_estimate(LABELS, scores)
    draws = reference.bootstrap(LABELS, scores, row_weights(80))
    assert got == pytest.approx((auroc(LABELS, scores), *np.quantile(draws, [0.025, 0.975])), abs=1e-12)

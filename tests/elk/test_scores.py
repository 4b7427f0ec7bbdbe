"""AUROC and its bootstrap, against scikit-learn."""

import math

from lens_rnn.elk.scores import _draws, auroc, bootstrap, interval
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
    draws = bootstrap(LABELS, SCORES[kind], resamples=20, seed=3)
    assert draws == pytest.approx(reference.bootstrap(LABELS, SCORES[kind], _draws(80, 20, 3)), abs=1e-12)


def test_draws_take_each_row_once_on_average_and_as_many_in_all() -> None:
    counts = _draws(50, 400, 0)
    assert (counts.sum(1) == 50).all()
    assert counts.mean(0) == pytest.approx(np.ones(50), abs=0.25)


def test_an_absent_class_has_no_auroc() -> None:
    assert math.isnan(auroc(np.ones(4, dtype=bool), np.arange(4)))
    assert np.isnan(bootstrap(np.array([True, False]), np.arange(2), 50)).any()


def test_the_interval_covers_95_per_cent_and_leaves_nan_out() -> None:
    assert interval(np.append(np.arange(1001.0), np.nan)) == pytest.approx((25, 975))
    assert all(map(math.isnan, interval(np.array([np.nan]))))

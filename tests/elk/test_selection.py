"""The layer that is reported: chosen where nothing is reported, so that noise stays noise."""

import math
from functools import partial

from lens_rnn.directions import mean_difference
from lens_rnn.elk import controls
from lens_rnn.elk.features import Feature
from lens_rnn.elk.generators import generate
from lens_rnn.elk.probes import PROBES, Kind, LinearProbe, drawn_single, fit_probe
from lens_rnn.elk.reading import read_all
from lens_rnn.elk.selection import earliest_informative, folds, validated
from lens_rnn.elk.subsets import members, questions, scored
from lens_rnn.elk.transfer import score_transfers

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

SET = generate("comparison", {"validation": 120, "test": 120})
FIT, TEST = SET.splits["validation"], SET.splits["test"]


def test_the_first_layer_that_is_nearly_the_best() -> None:
    assert earliest_informative([0.6, 0.94, 0.98, 0.95]) == 2
    assert earliest_informative([0.5, 0.96, 0.98]) == 1
    assert earliest_informative([0.4, 0.45]) == 1


@pytest.mark.parametrize("subset", ["A", "AE", "all"])
def test_folds_part_no_question_and_are_alike(subset: str) -> None:
    among = members(FIT, subset)
    rows = [row for row, chosen in zip(FIT, among, strict=True) if chosen]
    numbers, strata = questions(FIT)[among], np.array([2 * row.alice_label + row.bob_label for row in rows])
    fold = folds(numbers, strata)
    assert not set(numbers[fold == 0]) & set(numbers[fold == 1])
    most = 2 if subset == "all" else 1  # rows of a question
    for stratum in set(strata):
        assert abs((fold[strata == stratum] * 2 - 1).sum()) <= most
    assert (folds(numbers, strata) == fold).all()
    assert (folds(numbers, strata, seed=1) != fold).any()


def test_what_is_validated_is_what_a_probe_reads_on_the_other_fold() -> None:
    random = np.random.default_rng(0)
    y, fold, chosen = np.arange(80) % 3 == 0, random.permutation(80) % 2, random.random(80) < 0.6
    x = random.standard_normal((80, 5)) + y[:, None]
    expected = []
    for held_out in (0, 1):
        probe = fit_probe("lda", x[fold == 1 - held_out], y[fold == 1 - held_out])
        unseen = [i for i in range(80) if fold[i] == held_out and chosen[i]]
        expected.append(roc_auc_score(y[unseen], probe.log_odds(x)[unseen]))
    fit = partial(fit_probe, "lda")
    assert validated(fit, x, y, fold, chosen) == pytest.approx(np.mean(expected))
    assert validated(fit, x, y, fold, chosen & y) == 0.5


def plain(x: np.ndarray, y: np.ndarray, _: np.random.Generator) -> LinearProbe:
    """Difference of the means without scale and bias, which are most of the work."""
    return LinearProbe(mean_difference(x, y), 0.0)


def axis(x: np.ndarray, _y: np.ndarray, _random: np.random.Generator) -> LinearProbe:
    return LinearProbe(np.eye(x.shape[1])[0], 0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two probes that cost nothing, with labels and without, and two directions beside them."""
    monkeypatch.setitem(PROBES, "plain", Kind(plain, pairs=False, labels=True, drawn=drawn_single))
    monkeypatch.setitem(PROBES, "axis", Kind(axis, pairs=False, labels=False, drawn=drawn_single))
    monkeypatch.setattr(controls, "DIRECTIONS", 2)
    return ["plain", "axis"]


def noise(rows: int, layers: int, random: np.random.Generator) -> dict[str, Feature]:
    depths = tuple((i + 1) / layers for i in range(layers))
    raw, odds = (random.standard_normal((layers, rows, width)).astype(np.float32) for width in (4, 1))
    return {"raw": Feature(raw, depths), "lens_log_odds": Feature(odds, depths)}


@pytest.mark.parametrize("runs", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_noise_is_reported_as_noise(runs: int, quick: list[str]) -> None:
    """Of 64 layers of noise, at most 5 % of 95 % intervals exclude one half, of every probe in every transfer."""
    random, excluded = np.random.default_rng(0), {}
    for _ in range(runs):
        scores = read_all(FIT, TEST, noise(len(FIT), 64, random), noise(len(TEST), 64, random), quick)
        for r in score_transfers(scores, TEST):
            key = (r.probe, r.train, r.test)
            excluded[key] = excluded.get(key, 0) + (not r.auroc.low <= 0.5 <= r.auroc.high)
    assert len(excluded) == 11 + 13 + 5
    most = binom.ppf(1 - 1e-3 / len(excluded), runs, 0.05)
    assert {key: count for key, count in excluded.items() if count > most} == {}
    independent = 4 * runs  # transfers of one run share rows and layers
    assert sum(excluded.values()) / (runs * len(excluded)) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / independent)


def test_test_rows_have_no_say(quick: list[str]) -> None:
    """A layer that holds the answer in test rows only is not taken; one that does in fitting rows is."""
    random = np.random.default_rng(1)
    fit, test = noise(len(FIT), 4, random), noise(len(TEST), 4, random)
    for features, rows, layer in ((fit, FIT, 2), (test, TEST, 1)):
        for name in features:
            features[name].values[layer, :, 0] += [8.0 * row.label for row in rows]
    scores = list(read_all(FIT, TEST, fit, test, quick))
    assert {r.layer for r in scores} == {2}
    at_home = scored(TEST, "A")
    own = np.array([row.label for row in TEST])[at_home]
    areas = [roc_auc_score(own, r.log_odds[1][at_home]) for r in scores if r.probe != "plain"]
    assert all(max(a, 1 - a) > 0.99 for a in areas)  # chosen on them it would be layer 1

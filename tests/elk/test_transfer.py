"""Transfers: which rows are fitted, scored and compared, on scores whose answers are known."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

from lens_rnn.elk.anomaly import DETECTORS, detect
from lens_rnn.elk.controls import Control
from lens_rnn.elk.features import Feature
from lens_rnn.elk.generators import generate
from lens_rnn.elk.plots import COLOURS, PANELS, curves_picture, heat_figure, plot_curves, plot_heat
from lens_rnn.elk.probes import PROBES, SUPERVISED, UNSUPERVISED
from lens_rnn.elk.quirky import QuirkyRow
from lens_rnn.elk.reading import ProbeScores, read_all
from lens_rnn.elk.report import table
from lens_rnn.elk.scores import auroc, auroc_estimate
from lens_rnn.elk.selection import earliest_informative
from lens_rnn.elk.subsets import TRANSFERS, check_rows, members, questions, scored
from lens_rnn.elk.transfer import score_transfers
from lens_rnn.errors import DataError
from tests.elk.rows import made_rows

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

SET = generate("comparison", {"validation": 160, "test": 160})
FIT, TEST = SET.splits["validation"], SET.splits["test"]
LAYERS, WIDTH = 3, 6


def feature_of(rows: tuple[QuirkyRow, ...], seed: int, pairs: bool = False) -> Feature:
    """Layer 0 is noise; from layer 1 on axis 0 holds the truth, axis 1 what the character says, axis 2 who it is."""
    random = np.random.default_rng(seed)
    meaning = np.array([[row.alice_label, row.label, row.character == "Bob"] for row in rows]) * 2.0 - 1
    shape = (LAYERS, len(rows), 2, 2, WIDTH) if pairs else (LAYERS, len(rows), WIDTH)
    values = random.standard_normal(shape) * 0.5
    if pairs:
        values[1:, :, :, 1, :2] += meaning[:, None, :2]
        values[1:, :, :, 0, :2] -= meaning[:, None, :2]
    else:
        values[1:, :, :3] += meaning
    return Feature(values.astype(np.float32), tuple((i + 1) / LAYERS for i in range(LAYERS)))


def features(rows: tuple[QuirkyRow, ...], seed: int) -> dict[str, Feature]:
    return {
        "raw": feature_of(rows, seed),
        "pairs": feature_of(rows, seed, pairs=True),
        "lens_log_odds": Feature(feature_of(rows, seed).values[..., 1:2], (1 / 3, 2 / 3, 1.0)),
        "state": feature_of(rows, seed + 10),
    }


@pytest.fixture(scope="module")
def scores() -> list[ProbeScores]:
    return list(read_all(FIT, TEST, features(FIT, 0), features(TEST, 1)))


def test_members_and_rows_scored() -> None:
    for subset in ("A", "B", "AE", "AH", "BE", "BH", "all"):
        chosen = [row for row, among in zip(TEST, members(TEST, subset), strict=True) if among]
        assert {row.character for row in chosen} == {"all": {"Alice", "Bob"}, "A": {"Alice"}, "B": {"Bob"}}[
            subset[:1] if subset != "all" else "all"
        ]
        assert all(row.difficulty_quantile <= 0.25 for row in chosen if subset.endswith("E"))
        assert all(row.difficulty_quantile >= 0.75 for row in chosen if subset.endswith("H"))
        disagreeing = [row.alice_label != row.bob_label for row in chosen]
        assert scored(TEST, subset).sum() == (sum(disagreeing) if subset in "AB" else len(chosen)) > 0


def test_the_transfers_are_the_papers(scores: list[ProbeScores]) -> None:
    done = {(r.train, r.test) for r in score_transfers(scores, TEST) if r.probe == "lr"}
    assert done == {
        (a, b) for a, tests in (("A", "A B AH BH"), ("B", "B A BH"), ("AE", "AE AH BE BH")) for b in tests.split()
    }
    without_labels = {(r.train, r.test) for r in score_transfers(scores, TEST) if r.probe == "ccs"}
    assert without_labels == done | {("all", "all"), ("all", "BH")}
    assert {r.train for r in scores if r.feature == "lens_log_odds"} == {"none"}
    without_pairs = {name for name, kind in PROBES.items() if not kind.pairs}
    assert {r.probe for r in scores if r.feature == "state"} == without_pairs


def test_a_probe_is_fitted_on_its_context_with_that_contexts_label(scores: list[ProbeScores]) -> None:
    by = {(r.feature, r.probe, r.train): r for r in scores}
    rows = members(TEST, "B")
    own = np.array([row.label for row in TEST])
    truth = np.array([row.alice_label for row in TEST])
    assert auroc(own[rows], by["raw", "lr", "B"].log_odds[1][rows]) > 0.99
    assert auroc(truth[scored(TEST, "B")], by["raw", "lr", "B"].log_odds[1][scored(TEST, "B")]) < 0.05


def test_figures_are_those_of_the_earliest_informative_layer(scores: list[ProbeScores]) -> None:
    results = score_transfers(scores, TEST)
    truth = np.array([row.alice_label for row in TEST])
    by = {(r.feature, r.probe, r.train): r for r in scores}
    for r in results:
        probe, among = by[r.feature, r.probe, r.train], scored(TEST, r.test)
        expected = [roc_auc_score(truth[among], odds[among]) for odds in probe.log_odds]
        assert r.curve == pytest.approx(expected, abs=1e-12)
        assert r.auroc.value == r.curve[r.layer]
        assert r.rows == among.sum()
        assert r.auroc.low <= r.auroc.value <= r.auroc.high
        if r.probe in ("lr", "lda", "reader"):
            assert (r.layer, r.depth) == (1, pytest.approx(2 / 3))  # layer 0 is noise
        assert r.layer == earliest_informative(r.validated)
        assert len(r.controls) == (0 if r.probe == "reader" else LAYERS)
        assert r.clears == (r.auroc.low > r.control.high)
        if r.controls:
            assert r.control == r.controls[r.layer]


def test_performance_gap_recovered(scores: list[ProbeScores]) -> None:
    """(probe − floor) ÷ (ceiling − floor), over all rows, of last-layer logistic regressions on raw features."""
    last = {r.train: r.log_odds[-1] for r in scores if (r.feature, r.probe) == ("raw", "lr")}
    truth = np.array([row.alice_label for row in TEST])

    def over_all_rows(odds: np.ndarray, test: str) -> float:
        return roc_auc_score(truth[members(TEST, test)], odds[members(TEST, test)])

    by = {(r.feature, r.probe, r.train): r for r in scores}
    checked = 0
    for r in score_transfers(scores, TEST):
        if r.test not in ("B", "BH") or r.train == "B":
            assert math.isnan(r.recovered.value)
            continue
        floor = over_all_rows(last["B"], r.test)
        ceiling = over_all_rows(last["A"], {"B": "A", "BH": "AH"}[r.test])
        probe = over_all_rows(by[r.feature, r.probe, r.train].log_odds[r.layer], r.test)
        assert r.recovered.value == pytest.approx((probe - floor) / (ceiling - floor), abs=1e-12)
        assert r.recovered.low <= r.recovered.value <= r.recovered.high
        checked += 1
    assert checked > 20


def test_the_table(scores: list[ProbeScores]) -> None:
    results = score_transfers(scores, TEST)
    rows = list(csv.DictReader(io.StringIO(table(results))))
    assert len(rows) == len(results)
    assert {row["train"] for row in rows} == set(TRANSFERS)
    first, result = rows[0], results[0]
    assert (first["feature"], first["test"], int(first["layer"])) == (result.feature, result.test, result.layer)
    assert float(first["auroc"]) == pytest.approx(result.auroc.value, abs=1e-4)
    assert float(first["control_high"]) == pytest.approx(result.control.high, abs=1e-4)
    assert {row["control_high"] for row in rows if row["probe"] == "reader"} == {""}
    assert all(row["recovered"] == "" for row in rows if row["train"] == "B")


def test_pictures(scores: list[ProbeScores], tmp_path: Path) -> None:
    results = score_transfers(scores, TEST)
    picture = curves_picture(results, "made")
    assert [panel.title for panel in picture.panels] == [
        f"{a} → {b}, {UNSUPERVISED if a == 'all' else SUPERVISED}" for a, b in PANELS
    ]
    assert [line.label for line in picture.panels[2].lines] == [
        "hidden state",
        "lens log-odds,\nno training",
        "recurrent state,\nprojected",
        "chance",
    ]
    assert picture.limits == (False, 0.0, 1.03)
    (shown,) = (r for r in results if (r.feature, r.probe, r.train, r.test) == ("state", SUPERVISED, "AE", "BH"))
    assert [band.colour for band in picture.bands[2]] == [COLOURS["raw"], COLOURS["state"]]  # what is fitted has one
    assert picture.bands[2][1].high.tolist() == [at.high for at in shown.controls]
    drawn = picture.matplotlib().axes[2].collections
    assert [band.get_paths()[0].vertices[:, 1].max() for band in drawn] == [b.high.max() for b in picture.bands[2]]
    axes = heat_figure(results, "made $x$").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["A →\nA", "A →\nB"]
    assert "raw  lr" in [label.get_text() for label in axes.get_yticklabels()]
    written = {text.get_text() for text in axes.texts}
    assert f"{results[0].auroc.value:.2f}" in written
    assert {text.get_weight() for text in axes.texts} == {"normal"}  # one axis in six is read by most directions
    above = replace(results[0], controls=(Control(0.4, 0.5, results[0].auroc.low - 0.01),) * LAYERS)
    assert above.clears
    (bold,) = [text for text in heat_figure([above], "").axes[0].texts if text.get_weight() == "bold"]
    assert bold.get_text() == f"{above.auroc.value:.2f}"
    plot_curves(results, tmp_path / "curves.png", "made")
    plot_heat(results, tmp_path / "heat.png", "made")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("curves.png", "heat.png"))


def test_too_few_rows_are_named() -> None:
    check_rows(FIT, TEST)
    few = generate("comparison", {"validation": 8, "test": 8}).splits["validation"]
    with pytest.raises(DataError, match="fitted on 8 rows, 2 true and 6 false, needs 4"):
        check_rows(few, TEST)
    with pytest.raises(DataError, match="tested on A"):
        check_rows(FIT, few)
    alike = [row for row in TEST if not row.alice_label]
    with pytest.raises(DataError, match="0 true"):
        check_rows(FIT, alike)


def test_rows_of_one_question_are_known_by_what_is_asked() -> None:
    for rows in (TEST, generate("addition", {"test": 50}).splits["test"]):
        numbers = questions(rows)
        assert (numbers[::2] == numbers[1::2]).all()  # Alice's and Bob's
        assert len(set(numbers)) == len(rows) / 2
    written = made_rows(20)
    assert len(set(questions(written))) == 20  # their prompts name the character
    args = {"question": "q", "support": "s"}
    sciq = [replace(TEST[0], template_args=args | {"answer": answer, "character": "Alice"}) for answer in "ab"]
    assert len(set(questions(sciq))) == 1
    results = [replace(TEST[0], template_args={"result": result, "character": "Alice"}) for result in (1, 2)]
    assert len(set(questions(results))) == 2  # nothing but the answer tells them apart


def test_intervals_of_both_contexts_know_of_questions(scores: list[ProbeScores]) -> None:
    """On `all`, where each question stands twice, the interval is that of clusters."""
    truth = np.array([row.alice_label for row in TEST])
    odds = {r.feature: r for r in scores if r.train == "none"}["lens_log_odds"]
    (result,) = (r for r in score_transfers([odds], TEST) if r.test == "all")
    assert result.auroc == auroc_estimate(truth, odds.log_odds[odds.layer], np.repeat(np.arange(160), 2))
    assert result.auroc != auroc_estimate(truth, odds.log_odds[odds.layer])


def odd_scores(shift: float) -> ProbeScores:
    """Log-odds of two layers that follow each other, for Bob's rows less so."""
    random = np.random.default_rng(0)
    base = random.standard_normal(len(TEST))
    bob = np.array([row.character == "Bob" for row in TEST])
    odds = np.stack([base, base + 0.1 * random.standard_normal(len(TEST)) + shift * bob])
    return ProbeScores("raw", "lr", "AE", (0.5, 1.0), odds, (False, False), (0.5, 0.5), {})


def test_anomalies_are_found_where_there_are_any() -> None:
    assert [a.detector for a in detect(odd_scores(0), TEST)] == list(DETECTORS)
    for anomaly in detect(odd_scores(3), TEST):
        assert anomaly.auroc.value > 0.9
        assert anomaly.auroc.low <= anomaly.auroc.value <= anomaly.auroc.high
        assert anomaly.rows == members(TEST, "AH").sum() + members(TEST, "BH").sum()
    assert all(0.3 < anomaly.auroc.value < 0.7 for anomaly in detect(odd_scores(0), TEST))


def test_mahalanobis_is_its_formula() -> None:
    random = np.random.default_rng(0)
    usual = random.standard_normal((5000, 2)) @ np.array([[1.0, 0.8], [0, 0.5]]) + 3
    unseen = random.standard_normal((20, 2)) * 3
    centred = unseen - usual.mean(0)
    expected = (centred @ np.linalg.inv(np.cov(usual.T)) * centred).sum(1)
    assert DETECTORS["mahalanobis"](usual, unseen) == pytest.approx(expected, rel=0.02)


def test_too_few_rows_for_anomalies() -> None:
    with pytest.raises(DataError, match="three rows of AE"):
        detect(
            ProbeScores("raw", "lr", "AE", (1.0,), np.zeros((1, 4)), (False,), (0.5,), {}),
            [row for row in TEST if row.character == "Bob"][:4],
        )

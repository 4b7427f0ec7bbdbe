"""Trajectories: equal to the naive computation over all logits and to stock tuned-lens's, whatever the chunks."""

import json
from math import log

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation import metrics
from lens_rnn.evaluation.trajectory import NO_TARGET, STATISTICS, Trajectory, predict
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter
from tests.conftest import VOCAB_SIZE
from tests.evaluation.test_metrics import both_lenses, random_lens
from tests.reference import trajectory as naive

import numpy as np
import pytest
import torch
from tuned_lens.plotting import PredictionTrajectory

IDS = torch.randint(VOCAB_SIZE, (23,), generator=torch.Generator().manual_seed(3)).tolist()
NEXT = [*IDS[1:], NO_TARGET]


def assert_equal(got: Trajectory, expected: naive.Naive, k: int) -> None:
    for name in ("entropy", "ce", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=2e-4, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(got.rank, np.where(np.isnan(expected.rank), NO_TARGET, expected.rank))
    np.testing.assert_array_equal(got.top_ids, expected.order[..., :k])
    tops = np.take_along_axis(expected.probabilities, expected.order[..., :k], -1)
    np.testing.assert_allclose(got.top_probabilities, tops, rtol=2e-4)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", ["logit", "tuned"])
def test_a_trajectory_is_that_of_the_naive_computation(tiny_model: ModelAdapter, lens: str) -> None:
    reader = both_lenses(tiny_model)[lens]
    got = predict(tiny_model, reader, IDS, top_k=5)
    assert_equal(got, naive.predict(tiny_model.model, reader, IDS, NEXT, tiny_model.fitted_layers), 5)
    assert got.shape == (len(tiny_model.fitted_layers) + 1, 23)
    assert got.layers == tiny_model.fitted_layers
    assert got.vocab_size == VOCAB_SIZE
    assert len(set(got.rank[:, :-1].flatten().tolist())) > 10, "ranks differ"
    assert got.input_ids.tolist() == IDS
    assert got.targets.tolist() == NEXT


def test_each_row_is_named_and_placed(tiny_model: ModelAdapter) -> None:
    got = predict(tiny_model, random_lens(tiny_model), IDS)
    assert got.names == (*(f"layer {i}" for i in tiny_model.fitted_layers), "model")
    assert got.depths.tolist() == [*(tiny_model.depth(i) for i in tiny_model.fitted_layers), 1.0]
    assert np.all(np.diff(got.depths) > 0), "the trivial layer, which is the model, has no row of its own"
    assert not got.kl[-1].any()
    assert (got.kl[:-1] > 1e-4).all()


def test_other_targets(tiny_mamba: ModelAdapter) -> None:
    lens, targets = random_lens(tiny_mamba), [7] * 20 + [NO_TARGET] * 3
    got = predict(tiny_mamba, lens, torch.tensor(IDS), torch.tensor(targets))
    assert_equal(got, naive.predict(tiny_mamba.model, lens, IDS, targets, (0, 1)), 20)
    assert np.isnan(got.ce[:, 20:]).all()
    assert (got.rank[:, 20:] == NO_TARGET).all()


def test_every_so_many_th_layer(tiny_rwkv4: ModelAdapter) -> None:
    lens = random_lens(tiny_rwkv4)
    whole, part = predict(tiny_rwkv4, lens, IDS), predict(tiny_rwkv4, lens, IDS, stride=3)
    assert part.layers == (0, 3, 6)
    assert part.depths.tolist() == [1 / 8, 4 / 8, 7 / 8, 1]
    np.testing.assert_array_equal(part.entropy, whole.entropy[[0, 3, 6, 7]])


def test_the_rank_of_the_first_choice_is_0(tiny_mamba: ModelAdapter) -> None:
    lens = random_lens(tiny_mamba)
    first = predict(tiny_mamba, lens, IDS).top_ids[1, :, 0].tolist()
    assert not predict(tiny_mamba, lens, IDS, first).rank[1].any()


def test_top_k_is_at_most_the_vocabulary(tiny_mamba: ModelAdapter) -> None:
    got = predict(tiny_mamba, random_lens(tiny_mamba), IDS, top_k=1000)
    assert got.top_ids.shape == (3, 23, VOCAB_SIZE)
    np.testing.assert_allclose(got.top_probabilities.sum(-1), 1, rtol=1e-5)
    assert np.all(np.diff(got.top_probabilities, axis=-1) <= 0)


def test_chunks_do_not_matter(tiny_model: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, ids = random_lens(tiny_model), (IDS * 6)[:128]
    whole, targets = predict(tiny_model, lens, ids), [*range(90), *[NO_TARGET] * 38]
    aimed = predict(tiny_model, lens, ids, targets)
    monkeypatch.setattr(metrics, "_SPAN_BYTES", {"cpu": 4 * VOCAB_SIZE * 70})
    for expected, got in ((whole, predict(tiny_model, lens, ids)), (aimed, predict(tiny_model, lens, ids, targets))):
        for name in ("entropy", "ce", "kl", "rank", "top_probabilities"):
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_no_more_than_a_chunk_of_logits_is_held(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, sizes = random_lens(tiny_mamba), []
    lens.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    monkeypatch.setattr(metrics, "_SPAN_BYTES", {"cpu": 0})
    predict(tiny_mamba, lens, IDS * 6)
    assert max(sizes) == 128 * VOCAB_SIZE
    assert sum(sizes) == 2 * 6 * 23 * VOCAB_SIZE


@pytest.mark.parametrize("kind", [LogitLens, TunedLens])
def test_stock_tuned_lens_reads_the_same_trajectory(tiny_model: ModelAdapter, kind: type) -> None:
    """Its PredictionTrajectory takes our lenses for every family: only its plots need an older plotly."""
    lens = LogitLens.from_adapter(tiny_model) if kind is LogitLens else random_lens(tiny_model)
    targets = [*IDS[1:], 5]
    stock = PredictionTrajectory.from_lens_and_model(lens, tiny_model.model, IDS, targets=targets)
    ours = predict(tiny_model, lens, IDS, targets)
    rows = [*tiny_model.fitted_layers, -1]  # the stock one has a row for the trivial layer as well
    np.testing.assert_allclose(ours.entropy, stock.entropy().stats[rows], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours.ce, stock.cross_entropy().stats[rows], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours.kl, stock.forward_kl().stats[rows], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(ours.rank + 1, stock.rank().stats[rows])
    np.testing.assert_allclose(ours.values("probability"), stock.max_probability().stats[rows], rtol=2e-4)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_by_name(tiny_mamba: ModelAdapter) -> None:
    got = predict(tiny_mamba, random_lens(tiny_mamba), IDS)
    assert {name: statistic.unit for name, statistic in STATISTICS.items()} == {
        "entropy": "nats",
        "ce": "nats",
        "kl": "nats",
        "rank": "rank",
        "probability": "probability",
    }
    for name in ("entropy", "ce", "kl"):
        np.testing.assert_array_equal(got.values(name), getattr(got, name))
    np.testing.assert_array_equal(got.values("rank")[:, :-1], got.rank[:, :-1])
    assert np.isnan(got.values("rank")[:, -1]).all()
    np.testing.assert_array_equal(got.values("probability"), got.top_probabilities.max(-1))
    assert (got.entropy <= log(VOCAB_SIZE) + 1e-5).all()
    with pytest.raises(ConfigError, match="no statistic 'loss'; choose from entropy, ce, kl, rank, probability"):
        got.values("loss")


def test_differences(tiny_mamba: ModelAdapter) -> None:
    lenses = both_lenses(tiny_mamba)
    tuned, logit = (predict(tiny_mamba, lenses[name], IDS) for name in ("tuned", "logit"))
    np.testing.assert_array_equal(tuned.minus(logit, "entropy"), tuned.entropy - logit.entropy)
    assert not tuned.minus(logit, "kl")[-1].any()
    assert np.isnan(tuned.minus(logit, "rank")[:, -1]).all()
    with pytest.raises(DataError, match="3 rows × 23 tokens and 3 × 22"):
        tuned.minus(predict(tiny_mamba, lenses["logit"], IDS[:-1]), "entropy")


def test_the_report_is_json(tiny_mamba: ModelAdapter) -> None:
    got = predict(tiny_mamba, random_lens(tiny_mamba), IDS, top_k=3)
    report = json.loads(json.dumps(got.report(lambda i: f"<{i}>"), allow_nan=False))
    assert [row["name"] for row in report["rows"]] == ["layer 0", "layer 1", "model"]
    assert report["tokens"][2] == {"id": IDS[2], "text": f"<{IDS[2]}>"}
    assert report["targets"][-2:] == [{"id": IDS[-1], "text": f"<{IDS[-1]}>"}, None]
    assert report["statistics"]["ce"]["unit"] == "nats"
    assert report["statistics"]["ce"]["values"][1][4] == pytest.approx(got.ce[1, 4])
    assert report["statistics"]["ce"]["values"][1][-1] is None
    assert report["statistics"]["rank"]["values"][1][-1] is None
    assert report["top"]["ids"] == got.top_ids.tolist()
    assert report["top"]["texts"][1][4][2] == f"<{got.top_ids[1, 4, 2]}>"
    np.testing.assert_allclose(report["top"]["probabilities"], got.top_probabilities)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "options", "error", "words"),
    [
        ([], {}, DataError, "the text has no tokens"),
        (torch.empty(0, dtype=torch.int64), {}, DataError, "the text has no tokens"),
        ([1, VOCAB_SIZE], {}, DataError, "run from 1 to 96, and .* has 0 to 95"),
        ([1, -1], {}, DataError, "run from -1 to 1"),
        (torch.tensor([[1, 2], [1, 2]]), {}, DataError, "one sequence of whole numbers"),
        (torch.tensor([1.5]), {}, DataError, "one sequence of whole numbers"),
        ([1, 2], {"targets": [1]}, DataError, "1 targets for 2 tokens"),
        ([1, 2], {"targets": [1, VOCAB_SIZE]}, DataError, "run from 1 to 96"),
        ([1, 2], {"targets": [1, -2]}, DataError, "run from -2 to 1"),
        ([1, 2], {"top_k": 0}, ConfigError, "top_k is 0"),
        ([1, 2], {"stride": 0}, ConfigError, "stride 0"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tiny_mamba: ModelAdapter, ids: list, options: dict, error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        predict(tiny_mamba, random_lens(tiny_mamba), ids, **options)


def test_a_text_longer_than_the_model_reads_is_refused(tiny_neox: ModelAdapter) -> None:
    predict(tiny_neox, random_lens(tiny_neox), [1] * 128)
    with pytest.raises(DataError, match=r"129 tokens, and .* reads at most 128; shorten it"):
        predict(tiny_neox, random_lens(tiny_neox), [1] * 129)

"""Figures of each layer: equal to the naive computation over all logits, whatever the chunks, the batches and the
processes."""

from dataclasses import replace
from math import log
from pathlib import Path

from lens_rnn.evaluation import metrics
from lens_rnn.evaluation.metrics import Evaluation, LayerMetrics, doubts, evaluate
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, load_model, wrap_model
from lens_rnn.processes import Processes
from tests.conftest import VOCAB_SIZE, make_model, save_model
from tests.data.blocks import make_blocks
from tests.reference import metrics as naive

import numpy as np
import pytest
import torch
from torch import Tensor
from tuned_lens.nn import lenses as stock

BLOCKS = make_blocks(blocks=11, seq_len=16, seed=2)
IDS = BLOCKS.batch(slice(None))


def random_lens(adapter: ModelAdapter) -> TunedLens:
    """A tuned lens whose fitted translators all do something; the trivial ones stay zero."""
    lens = TunedLens.from_adapter(adapter)
    generator = torch.Generator().manual_seed(4)
    for layer in adapter.fitted_layers:
        for parameter in lens[layer].parameters():
            parameter.data.normal_(std=0.1, generator=generator)
    return lens


def both_lenses(adapter: ModelAdapter) -> dict[str, LogitLens | TunedLens]:
    return {"logit": LogitLens.from_adapter(adapter), "tuned": random_lens(adapter)}


def numbers(evaluation: Evaluation) -> np.ndarray:
    """All figures, (1 + lenses × layers, 3)."""
    rows = [evaluation.model, *(layers[i] for layers in evaluation.lenses.values() for i in sorted(layers))]
    return np.array(rows)


# --- values -----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_naive_computation(tiny_model: ModelAdapter) -> None:
    lenses = both_lenses(tiny_model)
    evaluation = evaluate(tiny_model, lenses, BLOCKS)
    assert list(evaluation.lenses) == ["logit", "tuned"]
    for name, lens in lenses.items():
        expected = naive.evaluate(tiny_model.model, lens, IDS)
        assert evaluation.model == pytest.approx(expected.model, rel=1e-5, abs=1e-6)
        assert sorted(evaluation.lenses[name]) == list(range(tiny_model.n_layers))
        for layer, figures in enumerate(expected.layers):
            assert evaluation.lenses[name][layer] == pytest.approx(figures, rel=1e-5, abs=1e-6)
    assert not np.allclose(numbers(evaluation)[1:3], numbers(evaluation)[-3:-1], rtol=0.01), "the two lenses differ"


def test_each_figure_is_named_for_what_it_is(tiny_mamba: ModelAdapter) -> None:
    ce, kl, entropy = naive.evaluate(tiny_mamba.model, LogitLens.from_adapter(tiny_mamba), IDS).layers[0]
    figures = evaluate(tiny_mamba, {"logit": LogitLens.from_adapter(tiny_mamba)}, BLOCKS).lenses["logit"][0]
    assert (figures.ce, figures.kl, figures.entropy) == pytest.approx((ce, kl, entropy), rel=1e-5)
    assert min(abs(ce - kl), abs(kl - entropy), abs(entropy - ce)) > 0.05


@torch.no_grad()
def test_figures_of_the_logit_lens_are_those_of_stock_tuned_lens(tiny_neox: ModelAdapter) -> None:
    expected = naive.evaluate(tiny_neox.model, stock.LogitLens.from_model(tiny_neox.model), IDS)
    figures = evaluate(tiny_neox, {"logit": LogitLens.from_adapter(tiny_neox)}, BLOCKS).lenses["logit"]
    assert [tuple(figures[i]) for i in range(3)] == [pytest.approx(f, rel=1e-5) for f in expected.layers]


def test_a_stock_lens_can_be_evaluated(tiny_neox: ModelAdapter) -> None:
    ours = evaluate(tiny_neox, {"logit": LogitLens.from_adapter(tiny_neox)}, BLOCKS)
    theirs = evaluate(tiny_neox, {"logit": stock.LogitLens.from_model(tiny_neox.model)}, BLOCKS)
    np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=1e-6)


def test_a_trivial_layer_is_the_model_itself(tiny_model: ModelAdapter) -> None:
    lens = random_lens(tiny_model)
    for layer in tiny_model.trivial_layers:  # it is not even read
        lens[layer].bias.data.fill_(float("nan"))
    evaluation = evaluate(tiny_model, {"tuned": lens}, BLOCKS)
    assert evaluation.model.kl == 0
    assert {
        i for i, figures in evaluation.lenses["tuned"].items() if figures == evaluation.model
    } == tiny_model.trivial_layers
    assert all(evaluation.lenses["tuned"][i].kl > 0.01 for i in tiny_model.fitted_layers)


def test_baselines(tiny_mamba: ModelAdapter) -> None:
    assert evaluate(tiny_mamba, {}, BLOCKS).uniform_ce == pytest.approx(log(VOCAB_SIZE))
    assert evaluate(tiny_mamba, {}, BLOCKS).unigram_ce is None
    assert evaluate(tiny_mamba, {}, BLOCKS, unigram_ce=4.25).unigram_ce == 4.25


def test_a_uniform_lens_scores_the_uniform_baseline(tiny_mamba: ModelAdapter) -> None:
    lens = TunedLens.from_adapter(tiny_mamba)
    lens.unembed.unembedding.weight.data.zero_()
    evaluation = evaluate(tiny_mamba, {"tuned": lens}, BLOCKS)
    for i in tiny_mamba.fitted_layers:
        figures = evaluation.lenses["tuned"][i]
        assert (figures.ce, figures.entropy) == pytest.approx((evaluation.uniform_ce, evaluation.uniform_ce), rel=1e-6)
        assert figures.kl == pytest.approx(evaluation.uniform_ce - evaluation.model.entropy, rel=1e-5)


def test_sums_stay_exact_over_predictions_that_are_certain(tiny_mamba: ModelAdapter) -> None:
    """Early logit lenses are near-certain and wrong: probabilities of 0 in float32 must give large figures, not NaN."""
    lens = LogitLens.from_adapter(tiny_mamba)
    lens.unembed.unembedding.weight.data.mul_(200)
    evaluation = evaluate(tiny_mamba, {"logit": lens}, BLOCKS)
    expected = naive.evaluate(tiny_mamba.model, lens, IDS)
    for i in tiny_mamba.fitted_layers:
        assert evaluation.lenses["logit"][i] == pytest.approx(expected.layers[i], rel=1e-4, abs=1e-5)
        assert evaluation.lenses["logit"][i].ce > 50


def test_a_bfloat16_model_is_measured_in_float32() -> None:
    adapter = wrap_model(make_model("mamba").bfloat16())
    lenses = both_lenses(adapter)
    evaluation = evaluate(adapter, lenses, BLOCKS)
    for name, lens in lenses.items():
        expected = naive.evaluate(adapter.model, lens, IDS)
        assert evaluation.model == pytest.approx(expected.model, rel=1e-4, abs=1e-6)
        for i in adapter.fitted_layers:
            assert evaluation.lenses[name][i] == pytest.approx(expected.layers[i], rel=1e-4)


# --- what must not matter ---------------------------------------------------------------------------------------------


def test_chunks_do_not_matter(tiny_model: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    lenses = both_lenses(tiny_model)
    whole = evaluate(tiny_model, lenses, BLOCKS, micro_batch_size=11)
    sizes: list[int] = []
    sums = metrics.figure_sums

    def counted(logits: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(len(logits))
        return sums(logits, *rest)

    monkeypatch.setattr(metrics, "figure_sums", counted)
    monkeypatch.setattr(metrics, "_SPAN_BYTES", {"cpu": 70 * 4 * VOCAB_SIZE})
    monkeypatch.setattr(metrics, "_LEAST_SPAN", 1)
    in_chunks = evaluate(tiny_model, lenses, BLOCKS, micro_batch_size=11)
    assert set(sizes) == {70, 36}, "176 tokens, 70 at a time"
    np.testing.assert_allclose(numbers(in_chunks), numbers(whole), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_the_micro_batch_size_does_not_matter_and_every_token_is_reported_once(
    tiny_mamba: ModelAdapter, size: int
) -> None:
    lenses, done = both_lenses(tiny_mamba), []
    expected = evaluate(tiny_mamba, lenses, BLOCKS)
    got = evaluate(tiny_mamba, lenses, BLOCKS, micro_batch_size=size, on_batch=done.append)
    np.testing.assert_allclose(numbers(got), numbers(expected), rtol=1e-5, atol=1e-8)
    assert sum(done) == BLOCKS.tokens.size
    assert len(done) == -(-11 // size)


class Second(Processes):
    """The second of two processes: it leaves its sums where the first finds them."""

    rank, world = 1, 2

    def __init__(self, left: list[Tensor]):
        object.__setattr__(self, "left", left)

    def sum(self, tensor: Tensor) -> Tensor:
        self.left.append(tensor.clone())
        return tensor


class First(Second):
    """The first of two processes: it adds what the second left."""

    rank = 0

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + self.left.pop(0)


@pytest.mark.parametrize("blocks", [11, 5, 1])
def test_two_processes_share_the_blocks(tiny_rwkv4: ModelAdapter, blocks: int) -> None:
    """An odd number: the second process runs out first, and what it repeats meanwhile does not count."""
    part = replace(BLOCKS, tokens=BLOCKS.tokens[:blocks])
    lenses = {"tuned": random_lens(tiny_rwkv4)}
    left: list[Tensor] = []
    alone = evaluate(tiny_rwkv4, lenses, part)
    evaluate(tiny_rwkv4, lenses, part, micro_batch_size=1, processes=Second(left))
    together = evaluate(tiny_rwkv4, lenses, part, micro_batch_size=1, processes=First(left))
    assert left == []
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-5, atol=1e-8)


def test_no_graph_is_built(tiny_mamba: ModelAdapter) -> None:
    lens, outputs = random_lens(tiny_mamba), []
    assert lens[0].weight.requires_grad
    lens.register_forward_hook(lambda module, args, output: outputs.append(output))
    evaluate(tiny_mamba, {"tuned": lens}, BLOCKS)
    assert outputs
    assert not any(output.requires_grad for output in outputs)


# --- doubts -----------------------------------------------------------------------------------------------------------

GOOD = LayerMetrics(ce=3.0, kl=0.5, entropy=2.0)
LOGIT = LayerMetrics(ce=9.0, kl=6.0, entropy=1.0)


def made(tuned: LayerMetrics, logit: LayerMetrics | None = LOGIT, unigram_ce: float | None = 4.0) -> Evaluation:
    """An evaluation with a good layer 0, the layer in question as 1 and a layer 2 that is not fitted."""
    lenses = {"tuned": {0: GOOD, 1: tuned, 2: LayerMetrics(99.0, 99.0, 0.0)}}
    if logit:
        lenses["logit"] = {0: LOGIT, 1: logit, 2: LOGIT}
    return Evaluation(LayerMetrics(2.5, 0.0, 2.0), lenses, uniform_ce=4.5, unigram_ce=unigram_ce)


NAN = float("nan")


@pytest.mark.parametrize(
    ("evaluation", "worse_than"),
    [
        (made(GOOD), None),
        (made(LayerMetrics(3.0, 6.5, 2.0)), "the logit lens"),
        (made(LayerMetrics(3.0, 6.0, 2.0)), "the logit lens"),
        (made(LayerMetrics(4.2, 1.0, 2.0)), "the unigram model"),
        (made(LayerMetrics(4.7, 1.0, 2.0)), "the unigram model and the uniform distribution"),
        (made(LayerMetrics(4.7, 7.0, 2.0)), "the logit lens and the unigram model and the uniform distribution"),
        (made(LayerMetrics(4.2, 1.0, 2.0), unigram_ce=None), None),
        (made(LayerMetrics(4.7, 1.0, 2.0), unigram_ce=None), "the uniform distribution"),
        (made(LayerMetrics(3.0, 99.0, 2.0), logit=None), None),
        (made(LayerMetrics(NAN, NAN, NAN)), "the logit lens and the unigram model and the uniform distribution"),
        (made(LayerMetrics(3.0, NAN, 2.0)), "the logit lens"),
        (made(GOOD, logit=LayerMetrics(NAN, NAN, NAN)), "the logit lens"),
    ],
)
def test_each_layer_that_is_no_better_than_a_baseline_is_named(evaluation: Evaluation, worse_than: str | None) -> None:
    expected = [f"layer 1: the tuned lens is no better than {worse_than}"] if worse_than else []
    assert doubts(evaluation, fitted_layers=(0, 1)) == expected


def test_doubts_are_of_fitted_layers_and_of_the_lens_asked_for() -> None:
    evaluation = made(GOOD)
    assert [line.partition(":")[0] for line in doubts(evaluation, (0, 1, 2))] == ["layer 2"]
    assert doubts(evaluation, (), "logit") == []
    assert [line.partition(" is")[0] for line in doubts(evaluation, (0,), "logit")] == ["layer 0: the logit lens"]


@pytest.mark.parametrize(("start", "is_worse"), [(0.4, True), (0.5, False), (0.6, False), (NAN, True), (None, False)])
def test_a_layer_that_its_fit_made_worse_is_named(start: float | None, is_worse: bool) -> None:
    evaluation = made(GOOD)
    if start is not None:
        begun = {0: GOOD, 1: GOOD._replace(kl=start)}
        evaluation = replace(evaluation, lenses={**evaluation.lenses, "start": begun})
    lines = doubts(evaluation, (0, 1))
    assert lines == (["layer 1: the tuned lens is no better than its own start"] if is_worse else [])


def test_a_head_in_float64_is_read_in_it(tmp_path: Path) -> None:
    adapter = load_model(save_model(make_model("mamba"), tmp_path), dtype=torch.float64, device="cpu")
    lenses = both_lenses(adapter)
    wide, narrow = evaluate(adapter, lenses, BLOCKS), evaluate(load_model(tmp_path, device="cpu"), lenses, BLOCKS)
    np.testing.assert_allclose(numbers(wide), numbers(narrow), rtol=1e-3, atol=1e-6)

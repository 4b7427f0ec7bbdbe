"""Layer transfer, marginals and the divergence of lenses: equal to naive computations, whatever chunks, batches and
processes."""

from math import log

from lens_rnn.evaluation import metrics
from lens_rnn.evaluation.metrics import evaluate
from lens_rnn.evaluation.statistics import Marginals, js_between, marginals
from lens_rnn.evaluation.transfer import layer_transfer
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter
from lens_rnn.rows.cpu import CompiledRows
from tests.conftest import VOCAB_SIZE
from tests.evaluation.test_metrics import BLOCKS, IDS, First, Second, both_lenses, random_lens
from tests.reference import trajectory as naive

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tuned_lens.stats import LogitStats
from tuned_lens.stats import js_divergence as stock_js

# --- layer transfer ---------------------------------------------------------------------------------------------------


def test_transfer_is_that_of_the_naive_computation(tiny_model: ModelAdapter) -> None:
    lens = random_lens(tiny_model)
    got = layer_transfer(tiny_model, lens, BLOCKS)
    ce, kl = naive.transfer(tiny_model.model, lens, IDS)
    np.testing.assert_allclose(got.ce, ce, rtol=1e-5)
    np.testing.assert_allclose(got.kl, kl, rtol=1e-4, atol=1e-6)
    assert not got.kl.diagonal().any()
    assert not np.allclose(got.kl, got.kl.T, rtol=0.01), "translator and source are told apart"


def test_the_diagonal_is_the_lens_itself(tiny_mamba: ModelAdapter) -> None:
    lens = random_lens(tiny_mamba)
    figures = evaluate(tiny_mamba, {"tuned": lens}, BLOCKS).lenses["tuned"]
    np.testing.assert_allclose(
        layer_transfer(tiny_mamba, lens, BLOCKS).ce.diagonal(), [figures[i].ce for i in range(3)], rtol=1e-6
    )


def test_the_logit_lens_reads_all_layers_alike(tiny_rwkv4: ModelAdapter) -> None:
    got = layer_transfer(tiny_rwkv4, LogitLens.from_adapter(tiny_rwkv4), BLOCKS)
    np.testing.assert_allclose(got.kl, 0, atol=1e-7)
    np.testing.assert_allclose(got.ce, np.broadcast_to(got.ce[0], got.ce.shape), rtol=1e-7)


# --- marginals --------------------------------------------------------------------------------------------------------


def test_marginals_are_those_of_the_naive_computation_and_of_stock_tuned_lens(tiny_model: ModelAdapter) -> None:
    lenses = both_lenses(tiny_model)
    got = marginals(tiny_model, lenses, BLOCKS)
    for name, lens in lenses.items():
        layers, p = naive.read(tiny_model.model, lens, IDS)
        np.testing.assert_allclose(got.model, p.mean((0, 1)), rtol=1e-4)
        assert got.lenses[name].shape == (tiny_model.n_layers, VOCAB_SIZE)
        for i, q in enumerate(layers):
            np.testing.assert_allclose(got.lenses[name][i], q.mean((0, 1)), rtol=1e-4)
            stock = LogitStats()
            stock.update(torch.from_numpy(q).log(), assume_normalized=True)
            np.testing.assert_allclose(got.lenses[name][i], stock.marginal_probs.numpy(), rtol=1e-4)
        np.testing.assert_allclose(got.entropy(name), [entropy(q.mean((0, 1))) for q in layers], rtol=1e-5)
        np.testing.assert_allclose(
            got.kl(name), [entropy(p.mean((0, 1)), q.mean((0, 1))) for q in layers], rtol=1e-3, atol=1e-6
        )
    assert all(got.kl("tuned")[i] == pytest.approx(0, abs=1e-12) for i in tiny_model.trivial_layers)
    assert (got.kl("tuned")[list(tiny_model.fitted_layers)] > 1e-3).all()


def test_a_lens_that_never_thinks_of_a_token_is_finitely_wrong(tiny_mamba: ModelAdapter) -> None:
    lens = LogitLens.from_adapter(tiny_mamba)
    lens.unembed.unembedding.weight.data.mul_(200)
    got = marginals(tiny_mamba, {"logit": lens}, BLOCKS)
    assert np.float32(got.lenses["logit"]).min() == 0, "in float32 the probability would be 0"
    assert 1 < got.kl("logit")[0] < 800
    assert np.isfinite(Marginals(np.array([0.5, 0.5]), {"x": np.array([[1.0, 0.0]])}).kl("x")).all()


def test_marginals_in_a_result_file(tiny_mamba: ModelAdapter) -> None:
    got = marginals(tiny_mamba, both_lenses(tiny_mamba), BLOCKS)
    written = got.metrics()
    assert set(written) == {"units", "model", "logit", "tuned"}
    assert written["units"] == "nats"
    assert written["model"]["entropy"] == pytest.approx(entropy(got.model))
    assert list(written["tuned"]) == ["entropy", "kl"]
    assert list(written["tuned"]["kl"]) == ["layer_0", "layer_1", "layer_2"]
    assert list(written["logit"]["kl"].values()) == got.kl("logit").tolist()


# --- lens against lens ------------------------------------------------------------------------------------------------


def test_js_divergence_is_that_of_scipy_and_stock_tuned_lens() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 50, generator=generator).mul(4).log_softmax(-1) for _ in range(2))
    js_divergence = CompiledRows().js
    got = js_divergence(a, b)
    np.testing.assert_allclose(got, jensenshannon(a.exp(), b.exp(), axis=-1) ** 2, rtol=1e-4)
    torch.testing.assert_close(got, stock_js(a, b))
    torch.testing.assert_close(got, js_divergence(b, a))
    assert not js_divergence(a, a).abs().max() > 1e-6
    apart = torch.tensor([[0.0, -1e4], [-1e4, 0.0]])
    assert js_divergence(apart[:1], apart[1:]).item() == pytest.approx(log(2))


def test_the_divergence_of_two_lenses(tiny_model: ModelAdapter) -> None:
    lenses = both_lenses(tiny_model)
    got = js_between(tiny_model, lenses["logit"], lenses["tuned"], BLOCKS)
    logit, tuned = (naive.read(tiny_model.model, lens, IDS)[0] for lens in lenses.values())
    expected = [(jensenshannon(a, b, axis=-1) ** 2).mean() for a, b in zip(logit, tuned, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    assert (got[list(tiny_model.fitted_layers)] > 0.01).all()
    assert not got[list(tiny_model.trivial_layers)].any()


# --- what must not matter ---------------------------------------------------------------------------------------------


def measured(adapter: ModelAdapter, lens: TunedLens, **options: object) -> np.ndarray:
    """All figures of this file as one vector."""
    logit = LogitLens.from_adapter(adapter)
    transfer = layer_transfer(adapter, lens, BLOCKS, **options)
    average = marginals(adapter, {"tuned": lens}, BLOCKS, **options)
    js = js_between(adapter, logit, lens, BLOCKS, **options)
    return np.concatenate([x.flatten() for x in (transfer.ce, transfer.kl, average.model, average.lenses["tuned"], js)])


def test_chunks_and_batches_do_not_matter(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, done = random_lens(tiny_mamba), []
    expected = measured(tiny_mamba, lens)
    np.testing.assert_allclose(
        measured(tiny_mamba, lens, micro_batch_size=3, on_batch=done.append), expected, rtol=1e-5, atol=1e-7
    )
    assert sum(done) == 3 * BLOCKS.tokens.size
    monkeypatch.setattr(metrics, "_SPAN_BYTES", {"cpu": 0})
    np.testing.assert_allclose(measured(tiny_mamba, lens, micro_batch_size=11), expected, rtol=1e-5, atol=1e-7)


def test_two_processes_share_the_blocks(tiny_mamba: ModelAdapter) -> None:
    lens, left = random_lens(tiny_mamba), []
    measured(tiny_mamba, lens, processes=Second(left))
    together = measured(tiny_mamba, lens, processes=First(left))
    assert not left
    np.testing.assert_allclose(together, measured(tiny_mamba, lens), rtol=1e-5, atol=1e-7)

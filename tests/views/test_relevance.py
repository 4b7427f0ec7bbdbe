"""Relevance: by hand, conserved, and right about what a logit needs."""

import os
from collections.abc import Callable
from copy import deepcopy

from lens_rnn.data import DataConfig, open_source
from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.lens import LogitLens, TunedLens
from lens_rnn.models import ModelAdapter, load_model, wrap_model
from lens_rnn.models.families.recurrent import Passage
from lens_rnn.views.relevance import METHODS, Explained, Method, mamba_lrp, relevance
from lens_rnn.views.removal import without_tokens
from tests.conftest import VOCAB_SIZE, make_model
from tests.models.tiny_hybrids import make_hybrid
from tests.reference import views as naive
from tests.scripts.launch import ROOT

import numpy as np
import pytest
import torch
from torch import Tensor

IDS = torch.randint(VOCAB_SIZE, (23,), generator=torch.Generator().manual_seed(5))
FAMILIES = ["mamba", "falcon_mamba"]


def without_bias(family: str, double: bool) -> ModelAdapter:
    """A tiny model whose only bias that matters to relevance, the convolution's, is zero; dt's is inside what is held
    fixed."""
    adapter = wrap_model(make_model(family).double() if double else make_model(family))
    for block in adapter.blocks:
        block.mixer.conv1d.bias.zero_()
    return adapter


@pytest.fixture(scope="module")
def random_lens(tiny_mamba: ModelAdapter) -> TunedLens:
    """A lens of random translators without bias."""
    lens = TunedLens.from_adapter(tiny_mamba)
    with torch.no_grad():
        for i, translator in enumerate(lens.layer_translators):
            translator.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
    return lens


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_as_by_hand(family: str) -> None:
    """Biases included: what they put into the logit is no token's."""
    adapter = wrap_model(make_model(family).double())
    logit, expected = naive.relevance(adapter.model, IDS.tolist(), 7, 15)
    found = relevance(adapter, IDS, Explained(token=7, position=15))
    assert found.value == pytest.approx(logit, rel=1e-6)
    np.testing.assert_allclose(found.tokens, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.by_layer, expected[1:], rtol=1e-4, atol=1e-6)
    assert abs(found.missing) > 1e-2
    assert found.layers == (0, 1, 2)
    assert not found.tokens[16:].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("double", "close"), [(False, 1e-5), (True, 1e-6)])
def test_it_is_conserved(family: str, double: bool, close: float) -> None:
    """At the embeddings and after every block; in float64 up to the float32 that is returned."""
    adapter = without_bias(family, double)
    for explained in (Explained(), Explained(token=3, against=9, position=11)):
        found = relevance(adapter, IDS, explained)
        scale = float(found.by_layer.abs().sum(-1).max())
        assert abs(found.missing) < close * scale
        torch.testing.assert_close(found.by_layer.sum(-1), torch.full((3,), found.value), rtol=0, atol=close * scale)
        gradient = relevance(adapter, IDS, explained, method="gradient")
        assert gradient.value == pytest.approx(found.value, rel=1e-4)
        assert abs(gradient.missing) > 0.05 * abs(gradient.value)  # the rules are what conserves it


def test_the_value_is_the_models(tiny_mamba: ModelAdapter) -> None:
    with torch.no_grad():
        logits = tiny_mamba.model(IDS[None]).logits[0]
    found = relevance(tiny_mamba, IDS.tolist())
    assert found.explained == Explained(token=int(logits[-1].argmax()), position=22)
    assert found.value == pytest.approx(float(logits[-1].max()), rel=1e-5)
    found = relevance(tiny_mamba, IDS, Explained(token=3, against=9, position=-4), method="gradient")
    assert found.value == pytest.approx(float(logits[-4, 3] - logits[-4, 9]), rel=1e-4)
    assert found.explained.position == 19


def test_gradient_is_transformers_own(tiny_mamba: ModelAdapter) -> None:
    embedded = tiny_mamba.model.get_input_embeddings()(IDS[None]).detach().requires_grad_()
    tiny_mamba.model(inputs_embeds=embedded).logits[0, -1, 7].backward()
    found = relevance(tiny_mamba, IDS, Explained(token=7), method="gradient")
    torch.testing.assert_close(found.tokens, (embedded * embedded.grad).sum(-1)[0].detach(), rtol=1e-4, atol=1e-5)


# --- with a lens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["tuned", "logit"])
def test_a_lens_logit(layer: int, kind: str, random_lens: TunedLens) -> None:
    adapter = without_bias("mamba", double=False)
    lens = random_lens if kind == "tuned" else LogitLens.from_adapter(adapter)
    found = relevance(adapter, IDS, Explained(token=4, layer=layer), lens=lens)
    with torch.no_grad():
        expected = lens(adapter.forward(IDS[None]).hidden_states[layer], layer)[0, -1, 4]
    assert found.value == pytest.approx(float(expected), rel=1e-4)
    assert found.layers == tuple(range(layer + 1))
    assert found.by_layer.shape == (layer + 1, 23)
    scale = float(found.tokens.abs().sum())
    assert abs(found.missing) < 1e-5 * scale
    torch.testing.assert_close(found.by_layer.sum(-1), torch.full((layer + 1,), found.value), rtol=0, atol=1e-5 * scale)


def test_a_translators_bias_is_no_tokens(random_lens: TunedLens) -> None:
    """What is missing is the bias's share of the logit, through the norm with its root held fixed."""
    adapter, lens = without_bias("mamba", double=False), deepcopy(random_lens)
    with torch.no_grad():
        lens[1].bias.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        found = relevance(adapter, IDS, Explained(token=4, layer=1), lens=lens)
        z = lens.transform_hidden(adapter.forward(IDS[None]).hidden_states[1], 1)[0, -1]
        norm = adapter.final_norm
        root = (z.pow(2).mean() + norm.variance_epsilon).sqrt()
        share = (lens[1].bias * norm.weight / root) @ adapter.head.weight[4]
    assert found.missing == pytest.approx(float(share), rel=1e-3)


# --- the model is left as it was --------------------------------------------------------------------------------------


def test_rules_change_no_value_and_stay_in_their_pass(tiny_mamba: ModelAdapter) -> None:
    plain = tiny_mamba.forward(IDS[None])
    ruled, _ = tiny_mamba.read(IDS[None], Passage(rules=mamba_lrp(tiny_mamba)))
    for ours, theirs in zip(ruled.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny_mamba.forward(IDS[None]).final, plain.final)


def test_it_works_where_gradients_are_off(tiny_mamba: ModelAdapter) -> None:
    with torch.no_grad():
        found = relevance(tiny_mamba, IDS)
    assert found.tokens.abs().sum() > 0
    assert all(p.grad is None for p in tiny_mamba.model.parameters())


# --- is it right? -----------------------------------------------------------------------------------------------------


def test_removing_relevant_tokens_hurts_most() -> None:
    """On 24 held-out pieces of source text the demo model's logit falls faster than in random orders, and faster than
    in the order of gradient × input, by more than two standard errors each (docs/views.md has the figures on 100)."""
    adapter = load_model(ROOT / "checkpoints" / "tiny-mamba", device="cpu")
    text = "\n".join(d.text for d, _ in zip(open_source(DataConfig()).documents("eval"), range(12), strict=False))
    ids = torch.tensor(adapter.tokenizer(text)["input_ids"])
    random = np.random.default_rng(0)
    starts = random.choice(len(ids) - 40, 24, replace=False)
    drops = []
    for start in starts:
        piece = ids[start : start + 40]
        found = {method: relevance(adapter, piece, method=method) for method in METHODS}
        orders = [np.argsort(-f.tokens[:-1].numpy(), kind="stable") for f in found.values()]
        rankings = np.stack([*orders, *(random.permutation(39) for _ in range(6))])
        left = without_tokens(adapter, piece, rankings, [2, 6, 14], found["lrp"].explained)
        fallen = found["lrp"].value - left.mean(1)
        drops.append([fallen[0] - fallen[2:].mean(), fallen[0] - fallen[1]])
    means, errors = np.mean(drops, 0), np.std(drops, 0, ddof=1) / len(drops) ** 0.5
    assert (means > 2 * errors).all(), (means, errors)


def test_without_tokens(tiny_mamba: ModelAdapter, random_lens: TunedLens) -> None:
    """Each count is the model on the text that is left."""
    random = np.random.default_rng(0)
    rankings = np.stack([random.permutation(22) for _ in range(3)])
    explained = Explained(token=4, against=8)
    values = without_tokens(tiny_mamba, IDS, rankings, [0, 5, 22], explained)
    lensed = without_tokens(tiny_mamba, IDS, rankings, [5], Explained(token=4, position=22, layer=1), random_lens)
    for row, ranking in enumerate(rankings):
        for column, count in enumerate((0, 5, 22)):
            kept = [i for i in range(23) if i not in ranking[:count]]
            with torch.no_grad():
                output = tiny_mamba.model(IDS[kept][None], output_hidden_states=True)
            assert values[row, column] == pytest.approx(
                float(output.logits[0, -1, 4] - output.logits[0, -1, 8]), rel=1e-3, abs=1e-4
            )
            if count == 5:
                with torch.no_grad():
                    expected = random_lens(output.hidden_states[1], 1)[0, -1, 4]
                assert lensed[row, 0] == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rwkv4", "mamba2", "recurrent_gemma"])
def test_a_model_without_it_says_which_have_it(name: str, models_of_every_family: dict[str, ModelAdapter]) -> None:
    with pytest.raises(ModelError, match=r"has no relevance; these have: falcon_mamba, mamba$"):
        relevance(models_of_every_family[name], IDS)


def test_a_hybrid_says_which_kind_of_block_is_not_covered() -> None:
    with pytest.raises(
        ModelError, match="its rules cover Mamba-1's blocks, and none of the kind mamba-2 or attention; these have: "
    ):
        relevance(wrap_model(make_hybrid("nemotron_h")), IDS)


@pytest.mark.parametrize(
    ("explained", "method", "words"),
    [
        (Explained(position=23), "lrp", "position 23 is not in a text of 23 tokens; choose from -23 to 22"),
        (Explained(position=-24), "lrp", "position -24"),
        (Explained(token=VOCAB_SIZE), "lrp", f"token {VOCAB_SIZE} is not in the vocabulary"),
        (Explained(token=1, against=-1), "lrp", "token -1"),
        (Explained(layer=3), "lrp", "layer 3"),
        (Explained(layer=1), "lrp", "layer 1 needs a lens"),
        (Explained(), "magic", "no method 'magic'; choose from lrp, gradient"),
    ],
)
def test_bad_questions(explained: Explained, method: Method, words: str, tiny_mamba: ModelAdapter) -> None:
    with pytest.raises(ConfigError, match=words):
        relevance(tiny_mamba, IDS, explained, method=method)


def test_a_text_for_which_there_is_no_memory(tiny_mamba: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is 12 tensors of 64 channels a block, in float32, against half of a machine that is made small
    here."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**15, "SC_PAGE_SIZE": 2**12}.__getitem__)
    relevance(tiny_mamba, IDS)
    needed = 4 * 12 * 64 * 3 * 65_000 / 2**30
    with pytest.raises(
        DataError,
        match=f"65,000 tokens .* needs about {needed:.1f} GiB, and there are 0.1 GiB for it; shorten the text",
    ):
        relevance(tiny_mamba, torch.zeros(65_000, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: {"explained": Explained()}, "give token, and position -1"),
        (lambda r: {"explained": Explained(token=1, position=3)}, "give token, and position -1"),
        (lambda r: {"rankings": r + 1}, "every place from 0 to 21 once"),
        (lambda r: {"rankings": r[:, :5]}, "every place from 0 to 21 once"),
        (lambda r: {"counts": [23]}, "of 23 tokens 0 to 22 can be left out"),
    ],
)
def test_bad_removals(change: Callable, words: str, tiny_mamba: ModelAdapter) -> None:
    rankings = np.arange(22)[None]
    arguments = {"rankings": rankings, "counts": [1], "explained": Explained(token=1)} | change(rankings)
    with pytest.raises(ConfigError, match=words):
        without_tokens(tiny_mamba, IDS, **arguments)


def test_half_precision(tiny_mamba: ModelAdapter) -> None:
    """A bfloat16 model: the same picture, in its own precision."""
    low = wrap_model(deepcopy(make_model("mamba")).bfloat16())
    explained = Explained(token=7)
    ours: Tensor = relevance(low, IDS, explained).tokens
    full = relevance(tiny_mamba, IDS, explained).tokens
    assert torch.corrcoef(torch.stack([ours, full]))[0, 1] > 0.95

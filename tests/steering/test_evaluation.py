"""Answers under steering against the plain way; choice, intervals, controls, generation, the lens's view, the
picture."""

from collections.abc import Callable
from dataclasses import replace

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.lens import TunedLens
from lens_rnn.models import Forward, ModelAdapter, wrap_model
from lens_rnn.steering import (
    Contrast,
    Edit,
    ExperimentConfig,
    Pair,
    Question,
    Scores,
    SteeringVectors,
    generate,
    latent_effect,
    mean_hidden,
    measure,
    read_vector,
    run_experiment,
    steer,
    top_tokens,
)
from lens_rnn.steering.evaluation import TARGETS, beyond_interval, edits_of, mean_interval
from lens_rnn.steering.experiment import choose
from lens_rnn.steering.plots import experiment_figure
from lens_rnn.steering.report import brief, summary, table, through_the_lens
from tests.conftest import make_model
from tests.reference.steering import answer_log_probs
from tests.steering.test_apply import vectors_for

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import PreTrainedTokenizerBase

TIMES = (-1.0, 0.0, 2.0)


def test_answers_are_those_of_the_plain_way(every_model: ModelAdapter, questions: list[Question]) -> None:
    vectors = vectors_for(every_model)
    targets = TARGETS if every_model.has_state else TARGETS[:1]
    edits = edits_of(every_model, vectors, targets)[::2]
    got = measure(every_model, questions, edits, TIMES)
    assert got.log_p.shape == (len(edits), 3, 3, 2)
    for e, edit in enumerate(edits):
        for m, multiplier in enumerate(TIMES):
            for q, question in enumerate(questions):
                expected = answer_log_probs(every_model, question, edit, multiplier)
                np.testing.assert_allclose(got.log_p[e, m, q], expected, rtol=1e-3, atol=1e-4)
    spread = got.log_p.max(1) - got.log_p.min(1)
    assert (spread > 1e-3).mean() > 0.9  # the edits do something


def test_scores() -> None:
    scores = Scores(np.log([[[0.3, 0.1], [0.5, 0.5]]]))
    np.testing.assert_allclose(scores.matching, [[0.75, 0.5]])
    np.testing.assert_allclose(scores.nonsense, [[0.6, 0.0]], atol=1e-12)
    np.testing.assert_allclose(scores.log_odds, [[np.log(3), 0]], atol=1e-12)
    assert scores[0].matching.shape == (2,)


def test_where_the_residual_stream_alone_can_be_steered(
    tiny_neox: ModelAdapter, tiny_mamba: ModelAdapter, questions: list[Question]
) -> None:
    with pytest.raises(
        ConfigError, match=r"recurrent state of model type 'gpt_neox' cannot be reached: .*; steer the residual stream"
    ):
        measure(tiny_neox, questions, [Edit(vectors_for(tiny_neox), "state", 0)], TIMES)
    with pytest.raises(ConfigError, match="there is no layer 8"):
        edits_of(tiny_mamba, vectors_for(tiny_mamba), TARGETS, [8])
    layers = [(edit.target, edit.layer) for edit in edits_of(tiny_mamba, vectors_for(tiny_mamba), TARGETS)]
    assert layers == [
        ("residual", 0),
        ("residual", 1),
        ("state", 0),
        ("state", 1),
        ("state", 2),
        ("both", 0),
        ("both", 1),
    ]


def test_a_model_that_steering_breaks_says_nonsense(tiny_mamba: ModelAdapter, questions: list[Question]) -> None:
    broken = SteeringVectors(tensors={"residual.1": torch.full((32,), float("inf"))})
    scores = measure(tiny_mamba, questions, [Edit(broken, "residual", 1)], (1.0,))
    assert scores.nonsense.tolist() == [[[1.0] * 3]]
    assert scores.matching.tolist() == [[[0.5] * 3]]


def test_intervals_are_those_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, size=60)
    got = mean_interval(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.06)
    assert mean_interval(np.full(5, 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_an_effect_is_held_against_its_largest_control() -> None:
    random = np.random.default_rng(0)
    effect = random.normal(0.5, 0.1, size=50)
    weak, strong = random.normal(0, 0.1, size=(4, 50)), random.normal(0, 0.1, size=(4, 50))
    strong[2] -= 0.6  # the other direction counts too
    assert beyond_interval(effect, weak).low > 0.3
    assert beyond_interval(effect, strong).high < 0
    assert beyond_interval(effect, strong).value == pytest.approx(effect.mean() + strong[2].mean())


def test_layer_and_multiplier_are_chosen_for_range_and_sense(tiny_mamba: ModelAdapter) -> None:
    vectors, config = vectors_for(tiny_mamba), ExperimentConfig(multipliers=(-2.0, -1.0, 0.0, 1.0, 2.0))
    edits = edits_of(tiny_mamba, vectors, ("residual", "state"))
    p = np.full((5, 5, 4, 2), 0.4)
    p[1, 0], p[1, 4] = (0.1, 0.7), (0.7, 0.1)  # the largest range of the residual stream
    p[0, 0], p[0, 4] = (0.001, 0.1), (0.1, 0.001)  # a larger one, but nonsense
    p[3, 1], p[3, 3] = (0.3, 0.5), (0.5, 0.3)
    scores = Scores(np.log(p))
    assert choose(scores, edits, "residual", config) == (1, 2.0, True)
    assert choose(scores, edits, "state", config) == (3, 1.0, True)
    p[:, :, :, :] *= 0.01
    p[:, 2] = 0.45
    assert choose(Scores(np.log(p)), edits, "residual", config)[2] is False


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multipliers": (-1.0, 1.0)}, "they need 0"),
        ({"multipliers": (0.0, 1.0)}, "a value in both signs"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("heads",)}, "target 'heads' is unknown"),
        ({"controls": 0}, "controls is 0"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExperimentConfig(**settings)


def test_generation_is_greedy_and_steered(tiny_mamba: ModelAdapter, questions: list[Question]) -> None:
    ids, vectors = questions[0].ids, vectors_for(tiny_mamba)
    for target in TARGETS:
        plain, steered = generate(tiny_mamba, ids, Edit(vectors, target, 0), (0.0, 3.0), 5)
        text = list(ids)
        for token in plain:
            assert token == int(tiny_mamba.logits(tiny_mamba.forward(torch.tensor([text])).final[0, -1]).argmax())
            text.append(token)
        assert steered != plain
    _, always = generate(tiny_mamba, ids, Edit(vectors, "state", 0), (0.0, 3.0), 5, every_token=True)
    assert always != steered


def test_generation_with_and_without_a_state_to_go_on_from(
    tiny_mamba: ModelAdapter, tiny_neox: ModelAdapter, questions: list[Question]
) -> None:
    ids = questions[0].ids
    for adapter in (tiny_mamba, tiny_neox):
        vectors = vectors_for(adapter)
        (got,) = generate(adapter, ids, Edit(vectors, "residual", 1), (2.0,), 4)
        text = list(ids)
        for token in got:
            with steer(adapter, vectors, 2.0, 1, slice(len(ids) - 1, None)):
                assert token == int(adapter.logits(adapter.forward(torch.tensor([text])).final[0, -1]).argmax())
            text.append(token)


def random_lens(adapter: ModelAdapter) -> TunedLens:
    lens = TunedLens.from_adapter(adapter)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lens.layer_translators.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return lens


def test_the_latent_effect_is_that_of_two_passes(tiny_mamba: ModelAdapter, questions: list[Question]) -> None:
    vectors, lens = vectors_for(tiny_mamba), random_lens(tiny_mamba)
    effect = latent_effect(tiny_mamba, lens, questions, Edit(vectors, "residual", 1), (-1.0, 2.0))
    assert effect.log_odds.shape == effect.kl.shape == (3, 2, 3)
    assert effect.layers == (0, 1)
    np.testing.assert_allclose(effect.log_odds[0], 0, atol=1e-5)  # before the layer steered
    np.testing.assert_allclose(effect.kl[0], 0, atol=1e-6)
    question = questions[2]
    ids = torch.tensor([question.ids])
    before = tiny_mamba.forward(ids)
    with steer(tiny_mamba, vectors, 2.0, 1, -1):
        after = tiny_mamba.forward(ids)
    readings: list[Callable[[Forward], Tensor]] = [
        lambda forward: lens(forward.hidden_states[0][0, -1], 0),
        lambda forward: lens(forward.hidden_states[1][0, -1], 1),
        lambda forward: tiny_mamba.logits(forward.final[0, -1]),
    ]
    for row, read in enumerate(readings):
        p, q = (torch.log_softmax(read(f).double(), -1) for f in (before, after))
        odds = (q[question.matching] - q[question.other]) - (p[question.matching] - p[question.other])
        assert effect.log_odds[row, 1, 2] == pytest.approx(odds.item(), abs=1e-4)
        assert effect.kl[row, 1, 2] == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-5)
    assert effect.kl[1:].min() > 1e-4
    state = latent_effect(tiny_mamba, lens, questions, Edit(vectors, "state", 1), (2.0,))
    assert np.abs(state.log_odds[0]).max() < 1e-5 < np.abs(state.log_odds[1]).min()


def test_a_vector_is_read_as_the_derivative_of_the_lens(tiny_model: ModelAdapter, questions: list[Question]) -> None:
    lens, layer = random_lens(tiny_model), 1
    vector, mean = vectors_for(tiny_model).residual(layer), mean_hidden(tiny_model, questions, layer, batch_size=2)
    expected = torch.stack(
        [tiny_model.forward(torch.tensor([q.ids])).hidden_states[layer][0, -1] for q in questions]
    ).mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    got = read_vector(lens, vector, layer, mean)
    norm, head, translator, step = lens.unembed.final_norm, lens.unembed.unembedding.weight.double(), lens[layer], 1e-5

    def logits(h: Tensor) -> Tensor:
        """The lens in float64, by the formulas of the two norms."""
        z = h + translator.weight.double() @ h + translator.bias.double()
        if not hasattr(norm, "bias"):
            return lens.unembed.unembedding.weight.double() @ (
                norm.weight.double() * z / (z.square().mean() + norm.variance_epsilon).sqrt()
            )
        z = (z - z.mean()) / (z.var(correction=0) + norm.eps).sqrt()
        return head @ (norm.weight.double() * z + norm.bias.double())

    ends = [logits(mean.double() + s * vector.double()) for s in (step, -step)]
    torch.testing.assert_close(got.double(), (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4)
    up, down = top_tokens(got, 3)
    assert got[up[0]] == got.max()
    assert got[down[0]] == got.min()
    assert len(up) == len(down) == 3


@pytest.fixture(scope="module")
def contrast(pairs: list[Pair]) -> Contrast:
    random = np.random.default_rng(2)
    asked = [Question(tuple(random.integers(96, size=5).tolist()), 5, 9) for _ in range(8)]
    return Contrast(
        name="5 against 9",
        pairs=pairs,
        validation=asked[:4],
        test=asked[4:],
        swapped=asked[4:],
        about={"source": "made"},
    )


def test_a_whole_experiment(
    tiny_neox: ModelAdapter, contrast: Contrast, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_rwkv4 = wrap_model(make_model("rwkv4", 257), byte_tokenizer)
    config = ExperimentConfig(multipliers=(-1.0, 0.0, 1.0), controls=2, layers=(0, 3))
    done: list[int] = []
    experiment = run_experiment(tiny_rwkv4, contrast, config, {"made": contrast.validation}, done.append)
    assert sum(done) == 8
    lens = random_lens(tiny_rwkv4)
    latent = through_the_lens(experiment, tiny_rwkv4, lens)
    result = summary(experiment, tiny_rwkv4, lens, latent)
    assert result["vectors"]["source"] == "made"
    for target in TARGETS:
        one, outcome = result["targets"][target], experiment.outcomes[target]
        assert {name: len(control["ranges"]) for name, control in one["controls"].items()} == {
            "random": 2,
            "shuffled": 2,
        }
        assert one["test"]["range"]["value"] == pytest.approx(outcome.ranges.mean())
        assert one["test"]["matching"] == one["options_swapped"]["matching"]  # the same questions, here
        index = experiment.edits.index(outcome.edit)
        np.testing.assert_array_equal(outcome.test.log_p, experiment.test.log_p[index])
        answered = experiment.validation[index].log_odds[1] > 0  # unsteered
        assert one["accuracy"]["made"][1]["value"] == pytest.approx(answered.mean())
        assert len(one["latent"]["kl"]) == tiny_rwkv4.n_layers
        assert ("vector_reading" in one) == (target != "state")
    rows = table(experiment, tiny_rwkv4).splitlines()
    assert len(rows) == 1 + 2 * 6 * 3
    assert rows[1].startswith("validation,residual,0,0.125,-1.0,")
    assert len(brief(experiment).splitlines()) == 4
    assert [len(experiment_figure(experiment, tiny_rwkv4, x).axes) for x in ({}, latent)] == [3, 4]
    alone = run_experiment(tiny_neox, contrast, replace(config, targets=("residual",), layers=()))
    assert list(alone.outcomes) == ["residual"]
    with pytest.raises(DataError, match="no contrastive pairs"):
        run_experiment(tiny_rwkv4, replace(contrast, pairs=()), config)

"""Answers under steering against the plain way, and effects held against controls."""

from lens_rnn.errors import ConfigError
from lens_rnn.intervals import mean_estimate
from lens_rnn.models import ModelAdapter
from lens_rnn.steering import Edit, Question, Scores, SteeringVectors, score_answers
from lens_rnn.steering.evaluation import TARGETS, beyond_controls, edits_of
from tests.reference.steering import answer_log_probs
from tests.steering.test_apply import vectors_for

import numpy as np
import pytest
import torch

TIMES = (-1.0, 0.0, 2.0)


def test_answers_are_those_of_the_plain_way(every_model: ModelAdapter, questions: list[Question]) -> None:
    vectors = vectors_for(every_model)
    targets = TARGETS if every_model.has_state else TARGETS[:1]
    edits = edits_of(every_model, vectors, targets)[::2]
    got = score_answers(every_model, questions, edits, TIMES)
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
    np.testing.assert_allclose(scores.mass, [[0.4, 1.0]])
    np.testing.assert_allclose(scores.log_odds, [[np.log(3), 0]], atol=1e-12)
    assert scores[0].matching.shape == (2,)


def test_where_the_residual_stream_alone_can_be_steered(
    tiny_neox: ModelAdapter, tiny_mamba: ModelAdapter, questions: list[Question]
) -> None:
    with pytest.raises(ConfigError, match="gpt_neox"):
        score_answers(tiny_neox, questions, [Edit(vectors_for(tiny_neox), "state", 0)], TIMES)
    with pytest.raises(ConfigError, match="no layer 8"):
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
    scores = score_answers(tiny_mamba, questions, [Edit(broken, "residual", 1)], (1.0,))
    assert scores.nonsense.tolist() == [[[1.0] * 3]]
    assert scores.matching.tolist() == [[[0.5] * 3]]


def test_an_effect_is_held_against_its_largest_control() -> None:
    random = np.random.default_rng(0)
    effect = random.normal(0.5, 0.1, size=50)
    weak, strong = random.normal(0, 0.1, size=(4, 50)), random.normal(0, 0.1, size=(4, 50))
    strong[2] -= 0.6  # the other direction counts too
    assert beyond_controls(effect, weak).low > 0.3
    assert beyond_controls(effect, strong).high < 0
    assert beyond_controls(effect, strong).value == pytest.approx(effect.mean() + strong[2].mean())
    same = beyond_controls(effect, effect[None])
    assert same.value == same.high == 0  # both are resampled together


def test_questions_of_one_cluster_are_one_trial(tiny_mamba: ModelAdapter, questions: list[Question]) -> None:
    asked = [question._replace(cluster="one") for question in questions] + questions
    scores = score_answers(tiny_mamba, asked, [Edit(vectors_for(tiny_mamba), "residual", 1)], TIMES)
    assert scores.clusters is not None
    assert scores.clusters.tolist() == [0, 0, 0, 1, 2, 3]
    assert scores[0].mean(scores.matching[0, 0]) == mean_estimate(scores.matching[0, 0], scores.clusters)
    values = scores.matching[0, 0]
    assert scores.mean(values, (0.0, 1.0)) == mean_estimate(values, scores.clusters, possible=(0.0, 1.0))

"""Texts gone on with: greedy, steered, with and without a state."""

from lens_rnn.models import ModelAdapter
from lens_rnn.steering import Edit, Question, generate, steer
from lens_rnn.steering.evaluation import TARGETS
from tests.steering.test_apply import vectors_for

import torch


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

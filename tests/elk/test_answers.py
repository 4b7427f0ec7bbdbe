"""What a model answers: counted by character and difficulty, and measured without dropout."""

import math

from lens_rnn.elk.answers import Rates, answer_logits, evaluating, log_odds, quirkiness
from lens_rnn.elk.templates import Encoded, encode
from lens_rnn.models import ModelAdapter, wrap_model
from tests.conftest import make_model
from tests.elk.rows import made_rows

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def encoded(byte_tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    return encode(made_rows(8), (), byte_tokenizer)


def with_dropout() -> ModelAdapter:
    model = make_model("gpt2", 257)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return wrap_model(model)


def test_log_odds_are_those_of_each_prompt_alone(encoded: list[Encoded]) -> None:
    adapter = wrap_model(make_model("mamba", 257))
    for prompt, odds in zip(encoded, log_odds(adapter, encoded, batch_size=3), strict=True):
        false, true = prompt.answers
        logits = adapter.logits(adapter.forward(torch.tensor([prompt.ids])).final[0, -1])
        assert odds == pytest.approx(float(logits[true] - logits[false]), abs=1e-4)


def test_a_model_in_training_is_measured_without_dropout(encoded: list[Encoded]) -> None:
    adapter = with_dropout()
    expected = log_odds(adapter, encoded)
    adapter.set_training(True)
    with torch.no_grad():
        first, second = (answer_logits(adapter, encoded) for _ in range(2))
    assert not torch.equal(first, second)
    np.testing.assert_array_equal(log_odds(adapter, encoded), expected)
    assert all(module.training for module in adapter.model.modules())


def test_measuring_leaves_the_weights_of_training(encoded: list[Encoded]) -> None:
    """RWKV-4 scales them for evaluation when it is next run in that mode."""
    adapter = wrap_model(make_model("rwkv4", 257))
    adapter.set_training(True)
    before = {name: p.clone() for name, p in adapter.model.named_parameters()}
    with torch.no_grad(), evaluating(adapter):
        adapter.model(torch.tensor([encoded[0].ids]))
    assert all(torch.equal(p, before[name]) for name, p in adapter.model.named_parameters())


def test_quirkiness_is_counted_by_character_and_difficulty() -> None:
    rows = made_rows(16)
    odds = np.array([1.0 if row.label else -1.0 for row in rows])
    perfect = Rates(all=1, all_rows=16, easy=1, easy_rows=4, hard=1, hard_rows=4)
    assert quirkiness(rows, odds) == {"Alice": perfect, "Bob": perfect}
    honest = quirkiness(rows, np.array([1.0 if row.alice_label else -1.0 for row in rows]))
    assert honest["Alice"].all == 1
    assert honest["Bob"].all == 0.5
    assert math.isnan(quirkiness([row for row in rows if row.character == "Bob"], odds[1::2])["Alice"].all)

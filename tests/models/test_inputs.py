"""Token ids and layers that a model does not have are refused before it runs."""

from typing import Any

from lens_rnn.errors import ConfigError, DataError, ModelError
from lens_rnn.evaluation.trajectory import predict
from lens_rnn.lens import LogitLens
from lens_rnn.models import ModelAdapter, wrap_model
from lens_rnn.models.inputs import checked_layers, one_text
from lens_rnn.views.attention import hidden_attention, unit_attention
from lens_rnn.views.relevance import Explained, relevance
from lens_rnn.views.removal import without_tokens
from tests.conftest import make_model
from tests.refusals import refusal

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase


@pytest.mark.parametrize(
    "given",
    [[3, 1, 95], torch.tensor([3, 1, 95], dtype=torch.int32), torch.tensor([[3, 1, 95]]), np.array([[3, 1, 95]])],
)
def test_one_text_is_a_batch_of_one(given: Any, tiny_mamba: ModelAdapter) -> None:
    ids = one_text(tiny_mamba, given)
    assert ids.tolist() == [[3, 1, 95]]
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "no tokens"),
        (torch.ones(2, 2).long(), "shape"),
        (torch.ones(1, 1, 2).long(), "shape"),
        (torch.ones(1), "type"),
        ([True], "type"),
        ([-1, 3], "-1"),
        ([3, 96], "95"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, word: str, tiny_mamba: ModelAdapter) -> None:
    assert word in refusal(lambda: one_text(tiny_mamba, given), DataError)


def test_text_is_what_its_tokens_are(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    adapter = wrap_model(make_model("mamba", 257), byte_tokenizer)
    text = "for é in"
    ids = byte_tokenizer(text).input_ids
    assert one_text(adapter, text).tolist() == [ids]
    lens = LogitLens.from_adapter(adapter)
    explained = Explained(token=3)
    rankings = np.arange(len(ids) - 1)[None]
    of_ids, of_text, of_batch = (
        (
            predict(adapter, lens, given).entropy,
            hidden_attention(adapter, given).matrices.numpy(),
            unit_attention(adapter, given, 0, [1]).numpy(),
            relevance(adapter, given).tokens.numpy(),
            without_tokens(adapter, given, rankings, [0, 2], explained),
        )
        for given in (ids, text, torch.tensor([ids]))
    )
    for expected, *others in zip(of_ids, of_text, of_batch, strict=True):
        assert all(np.array_equal(expected, other) for other in others)


def test_text_that_is_none_is_refused(byte_tokenizer: PreTrainedTokenizerBase, tiny_mamba: ModelAdapter) -> None:
    adapter = wrap_model(make_model("mamba", 257), byte_tokenizer)
    assert "no tokens" in refusal(lambda: one_text(adapter, ""), DataError)
    assert "no character" in refusal(lambda: one_text(adapter, "caf\udce9"), DataError)
    assert "tokenizer" in refusal(lambda: one_text(tiny_mamba, "text"), ModelError)


def test_a_text_longer_than_the_model_reads(tiny_neox: ModelAdapter) -> None:
    assert one_text(tiny_neox, [1] * 128).shape == (1, 128)
    assert "128" in refusal(lambda: one_text(tiny_neox, [1] * 129), DataError)


def test_layers_are_a_list(tiny_mamba: ModelAdapter) -> None:
    assert checked_layers(tiny_mamba, 2) == [2]
    assert checked_layers(tiny_mamba, range(3)) == [0, 1, 2]


@pytest.mark.parametrize(("layers", "word"), [([], "no layer"), (3, "layer 3"), ([0, -1], "layer -1")])
def test_layers_that_are_not_there(layers: Any, word: str, tiny_mamba: ModelAdapter) -> None:
    assert word in refusal(lambda: checked_layers(tiny_mamba, layers), ConfigError)

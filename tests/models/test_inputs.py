"""Token ids and layers that a model does not have are refused before it runs."""

from typing import Any

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import checked_layers, one_text
from tests.refusals import refusal

import pytest
import torch


@pytest.mark.parametrize("given", [[3, 1, 95], torch.tensor([3, 1, 95], dtype=torch.int32)])
def test_one_text_is_a_batch_of_one(given: Any, tiny_mamba: ModelAdapter) -> None:
    ids = one_text(tiny_mamba, given)
    assert ids.tolist() == [[3, 1, 95]]
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "no tokens"),
        (torch.ones(1, 2).long(), "shape"),
        (torch.ones(1), "type"),
        ([True], "type"),
        ([-1, 3], "-1"),
        ([3, 96], "95"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, word: str, tiny_mamba: ModelAdapter) -> None:
    assert word in refusal(lambda: one_text(tiny_mamba, given), DataError)


def test_a_text_longer_than_the_model_reads(tiny_neox: ModelAdapter) -> None:
    assert one_text(tiny_neox, [1] * 128).shape == (1, 128)
    assert "128" in refusal(lambda: one_text(tiny_neox, [1] * 129), DataError)


def test_layers_are_a_list(tiny_mamba: ModelAdapter) -> None:
    assert checked_layers(tiny_mamba, 2) == [2]
    assert checked_layers(tiny_mamba, range(3)) == [0, 1, 2]


@pytest.mark.parametrize(("layers", "word"), [([], "no layer"), (3, "layer 3"), ([0, -1], "layer -1")])
def test_layers_that_are_not_there(layers: Any, word: str, tiny_mamba: ModelAdapter) -> None:
    assert word in refusal(lambda: checked_layers(tiny_mamba, layers), ConfigError)

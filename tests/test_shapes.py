"""The tests' own shape checks: they are on, and see what is wrong."""

import os
import sys
from typing import Protocol, Self

from lens_rnn.models import ModelAdapter
from lens_rnn.models.head import LogitMap
from tests import shapes

import pytest
import torch
from jaxtyping import TypeCheckError

pytestmark = pytest.mark.skipif(os.environ.get("LENS_RNN_SHAPES") == "off", reason="the checks are off")


def test_the_rooms_are_checked_and_kernels_left_alone() -> None:
    checked = set(shapes.modules())
    assert {"lens_rnn.lens.tuned", "lens_rnn.fitting.objective", "lens_rnn.evaluation.metrics"} <= checked
    loaders = {name: type(sys.modules[name].__loader__).__module__ for name in checked if name in sys.modules}
    assert [name for name, loader in loaders.items() if not loader.startswith("jaxtyping")] == []
    assert not {"lens_rnn.rows.cpu", "lens_rnn.rows.cuda", "lens_rnn.models"} & checked


def test_a_wrong_type_and_a_wrong_shape_are_seen(tiny_mamba: ModelAdapter) -> None:
    assert LogitMap(2.0).slope(torch.ones(2)) is None
    with pytest.raises(TypeCheckError):
        LogitMap(2.0).slope(torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeCheckError):
        tiny_mamba.depth("first")


class Reads(Protocol):
    """Not checkable at run time."""


def test_arguments_are_checked_where_the_result_cannot_be() -> None:
    def read(number: int) -> Reads:
        return number

    def copied(number: int) -> Self:
        return number

    for function in map(shapes.check, (read, copied)):
        assert function(1) == 1
        with pytest.raises(Exception, match="number"):
            function("1")

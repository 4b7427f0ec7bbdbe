"""A model whose blocks are spread, over a group of one process: tests/scripts/shard_families.py has two."""

import sys
from collections.abc import Iterator

from lens_rnn.models import wrap_model
from tests.conftest import make_model

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

IDS = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # to be put back: torch sets one that says the rank
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("family", ["mamba", "neox"])  # by equations of ours, and by transformers' own code
def test_a_model_that_is_spread_gives_what_it_gave(family: str) -> None:
    adapter = wrap_model(make_model(family))
    before = adapter.forward(IDS)
    adapter.shard(torch.device("cpu"), 1)
    assert all(isinstance(parameter, DTensor) for block in adapter.blocks for parameter in block.parameters())
    for _ in range(2):  # the second pass gathers what the first has let go
        after = adapter.forward(IDS)
        assert torch.equal(after.final, before.final)
        assert all(map(torch.equal, after.hidden_states, before.hidden_states))
    assert all(isinstance(parameter, DTensor) for block in adapter.blocks for parameter in block.parameters())

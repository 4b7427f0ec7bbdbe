"""How much memory there is, of the machine and of what cannot be asked."""

import os

from lens_rnn import memory

import pytest
import torch


def test_the_cpu_has_the_machines_memory_and_half_of_it_is_free() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.of_device(torch.device("cpu")) == pages > 0
    assert memory.free_on(torch.device("cpu")) == pages // 2


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_what_is_not_known_is_0(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", refuse)
    assert memory.of_device(torch.device("cpu")) == memory.free_on(torch.device("cpu")) == 0
    assert memory.of_device(torch.device("meta")) == memory.free_on(torch.device("meta")) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_has_no_more_free_than_it_has() -> None:
    device = torch.device("cuda")
    assert 0 < memory.free_on(device) <= memory.of_device(device)

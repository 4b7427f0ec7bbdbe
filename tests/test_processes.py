"""One process and several, of which a test plays the others: shares of rows, an error that ends all, differences."""

from typing import Any

from lens_rnn.errors import ConfigError, FitError, LensRNNError
from lens_rnn.processes import Processes, refuse_processes
from tests.refusals import refusal

import numpy as np
import pytest
import torch


class OneOf(Processes):
    """A process beside others that say `others`."""

    world, rank = 3, 1  # type: ignore[assignment]

    def __init__(self, rank: int = 1, others: tuple[Any, ...] = ()):
        super().__init__()
        vars(self).update(rank=rank, others=others)

    def gather(self, value: Any) -> list[Any]:
        return [*self.others, value]


def test_the_only_process_is_the_main_one_and_has_everything() -> None:
    alone = Processes()
    assert (alone.rank, alone.world, alone.is_main, alone.device) == (0, 1, True, None)
    value = torch.ones(3)
    assert alone.sum(value) is value
    assert alone.gather(4) == [4]
    assert alone.hand_on({"a": value}, 0)["a"] is value
    for act in (alone.wait, alone.finish, lambda: alone.share(value), lambda: alone.track({"loss": 1.0}, 0)):
        act()


@pytest.mark.parametrize("rows", [1, 7, 9])
def test_shares_hold_each_row_once_in_as_many_parts_on_every_process(rows: int) -> None:
    parts = [[*OneOf(rank).shares(np.arange(rows), 2)] for rank in range(3)]
    assert len({len(own) for own in parts}) == 1
    assert sorted(row for own in parts for part, counted in own for row in part[:counted]) == list(range(rows))
    assert all(len(part) for own in parts for part, _ in own), "one that has run out goes through the motions"


def test_an_error_of_one_process_ends_all() -> None:
    trouble = OneOf(others=(("here", None), ("there", "no room")))
    with pytest.raises(LensRNNError, match="process 1 on there: no room"), trouble.together():
        pass
    with pytest.raises(ZeroDivisionError), trouble.together():
        raise ZeroDivisionError  # whoever has an error of its own raises that
    with OneOf(others=(("here", None),)).together():
        pass


def test_differences_are_named_once_a_machine_with_hashes_cut_short() -> None:
    facts = {"model": "a" * 64, "seed": 0}
    others = (("main", facts), ("odd", facts | {"model": "b" * 64}), ("odd", facts | {"seed": 1}))
    message = refusal(lambda: OneOf(others=others).refuse_differences(facts), FitError)
    assert "process 1 on odd differs from process 0 on main in model (bbbbbbbb…, not aaaaaaaa…)" in message
    assert "process 2" not in message
    OneOf(others=(("main", facts),)).refuse_differences(dict(facts))


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_command_of_one_process_refuses_several_by_its_name(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_processes("eval/x.py")
    monkeypatch.setenv(variable, "1")
    refuse_processes("eval/x.py")
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match=r"x\.py runs in one process"):
        refuse_processes("eval/x.py")

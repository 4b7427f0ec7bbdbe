"""Checkpoints of a run: the last are kept, damaged ones passed over, and those of another run refused."""

from pathlib import Path

from lens_rnn.checkpoints import Checkpoints
from lens_rnn.errors import FitError

import pytest
import torch


def filled(folder: Path, steps: int = 3) -> Checkpoints:
    """A store that keeps two, with a checkpoint of each step."""
    checkpoints = Checkpoints(folder, {"world size": 1}, kept=2)
    for step in range(steps):
        checkpoints.save(step, {"translator": torch.full((2,), float(step))})
    return checkpoints


def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001.pt", "step-00000002.pt"]
    last = checkpoints.last()
    assert last is not None
    assert last["step"] == 2
    assert last["translator"].tolist() == [2.0, 2.0]
    (tmp_path / "step-00000002.pt").write_bytes(b"cut")
    before = checkpoints.last()
    assert before is not None
    assert before["step"] == checkpoints.at(1)["step"] == 1
    with pytest.raises(FitError, match="step-00000002"):
        checkpoints.at(2)
    (tmp_path / "step-00000001.pt").write_bytes(b"cut")
    with pytest.raises(FitError, match="--overwrite"):
        checkpoints.last()


def test_all_are_kept_by_default(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.last() is None
    for step in range(4):
        checkpoints.save(step, {})
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000020.pt.x.partial").write_bytes(b"left by a killed process")
    filled(tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("identity", [{"world size": 2}, {}, {"world size": 1, "setting loss": "kl"}])
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path, identity: dict) -> None:
    """A value that differs, one that the run no longer has, and one that it did not have."""
    filled(tmp_path)
    with pytest.raises(FitError, match="setting loss" if len(identity) > 1 else "world size"):
        Checkpoints(tmp_path, identity).last()

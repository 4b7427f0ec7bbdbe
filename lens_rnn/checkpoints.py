"""Checkpoints of a run: written whole or not at all, and only continued by the same run."""

import logging
from pathlib import Path
from typing import Any

from lens_rnn.errors import FitError
from lens_rnn.files import write_atomically
from lens_rnn.processes import Processes

import torch

log = logging.getLogger(__name__)


class Checkpoints:
    """The folder of a run's checkpoints, step-N.pt.

    identity: everything that decides the run's numbers, JSON-ready; a checkpoint of another one is never continued.
    kept: how many of the last are kept, by default all.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], kept: int | None = None):
        self.folder, self.identity, self.kept = folder, identity, kept

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then drop all but the last that are to be kept."""
        for left in self.folder.glob(".*.partial"):  # a killed process left it, and only one process writes
            left.unlink(missing_ok=True)
        path = self._path(step)
        write_atomically(path, lambda file: torch.save({"identity": self.identity, "step": step, **state}, file))
        for old in self._paths()[: -self.kept] if self.kept else []:
            old.unlink()
        return path

    def last(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None if there is none yet.

        Raises FitError if it was written by a run with another identity, naming the difference, or if there are some
        and all are damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return self._read(path)
            except OSError as error:  # damaged from outside, since a checkpoint is renamed only when whole
                log.warning("%s", error)
        if paths:
            raise FitError(f"none of the checkpoints in {self.folder} can be read; use --overwrite to start anew")
        return None

    def last_of_all(self, processes: Processes) -> dict[str, Any] | None:
        """The newest checkpoint of any process, on every one: where machines have folders of their own, one alone has
        it.

        Raises on every process what `last` raises on one.
        """
        with processes.together():
            mine = self.last()
        steps = processes.gather(mine["step"] if mine else -1)
        newest = max(steps)
        return mine if min(steps) == newest else processes.hand_on(mine, steps.index(newest))

    def at(self, step: int) -> dict[str, Any]:
        """The checkpoint of a step. Raises FitError if it cannot be read or is of another run."""
        try:
            return self._read(self._path(step))
        except OSError as error:
            raise FitError(str(error)) from None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _read(self, path: Path) -> dict[str, Any]:
        """Raises OSError for a damaged file, FitError for one of another run."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen types for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"cannot read {path} ({reason})") from None
        if not {"identity", "step"} <= state.keys():
            raise FitError(f"{path} was written by an earlier version; start anew with --overwrite")
        self._compare(state["identity"])
        return state

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), key=lambda path: int(path.stem.removeprefix("step-")))

    def _compare(self, saved: dict[str, Any]) -> None:
        for name in self.identity | saved:
            was, now = saved.get(name), self.identity.get(name)
            if was != now:
                raise FitError(
                    f"cannot resume: {name} was {was} and is now {now}; set it back, or start anew with --overwrite"
                )

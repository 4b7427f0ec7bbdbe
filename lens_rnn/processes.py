"""Sharing work among the processes of a run. Nothing goes through accelerate's `prepare`: sums are reduced by hand."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lens_rnn.errors import ConfigError

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of this run, seen from one of them. Without an accelerator it is the only one."""

    accelerator: Accelerator | None = None

    @property
    def rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def world(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def on_this_machine(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """Where this process computes; None to leave it to whoever asks."""
        return self.accelerator.device if self.accelerator else None

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over processes, the same tensor on each."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.accelerator and self.world > 1 else tensor

    def agree(self, value: str) -> bool:
        """Whether every process gives the same value."""
        if not self.accelerator or self.world == 1:
            return True
        digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), dtype=np.int64).copy()
        mine = torch.from_numpy(digest)[None].to(self.accelerator.device)
        return bool((self.accelerator.gather(mine) == mine).all())

    def share(self, tensor: Tensor) -> None:
        """Give every process the main one's values, in place."""
        if self.accelerator and self.world > 1:
            tensor.copy_(broadcast(tensor))

    def wait(self) -> None:
        """Until every process is here."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def start_tracking(self, project: str, settings: dict[str, Any]) -> None:
        """Open the trackers that the accelerator was made with."""
        if not self.accelerator:
            return
        try:
            self.accelerator.init_trackers(project, config=settings)
        except Exception as error:  # not logged in, offline, no such project: each tracker has its own types
            raise ConfigError(f"the tracker does not start: {' '.join(str(error).split())[:200]}") from error

    def track(self, values: dict[str, float], step: int) -> None:
        """Log values of one step, from the main process."""
        if self.accelerator:
            self.accelerator.log(values, step=step)

    def finish(self) -> None:
        """Close the trackers and part from the other processes, together: one that just exits can make the others abort."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
            self.accelerator.state.destroy_process_group()

    def shares(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
        """This process's part of `rows`, at most `size` at a time, as (rows, how many of them count).

        Every process gets the same number of parts, because a sharded model's forward pass is a joint act of all of them. A process
        that has run out repeats its last row, which then does not count.
        """
        mine = np.array_split(rows, self.world)[self.rank]
        longest = -(-len(rows) // self.world)
        for start in range(0, longest, size):
            part = mine[start : start + size]
            yield (part, len(part)) if len(part) else (rows[:1], 0)

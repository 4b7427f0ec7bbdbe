"""Sharing work among the processes of a run. Nothing goes through accelerate's `prepare`: sums are reduced by hand."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lens_rnn.errors import ConfigError, FitError, LensRNNError

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    broadcast,
    broadcast_object_list,
    gather_object,
    get_int_from_env,
    recursively_apply,
)
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

    def any(self, own: bool) -> bool:
        """Whether it is so on one process or more: the same answer on each."""
        return bool(self.sum(torch.tensor(float(own), device=self.device)) > 0) if self.world > 1 else own

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in the order of their ranks. For small ones: they are pickled."""
        return gather_object([value]) if self.accelerator and self.world > 1 else [value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """End with an error on every process where one of them has one, instead of leaving the others to wait for it.

        What is done inside is each process's own: nothing there may wait for the others.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # whatever it is
            error = raised
        outcomes = self.gather((socket.gethostname(), error and (str(error) or type(error).__name__)))
        if error:
            raise error
        for rank, (host, trouble) in enumerate(outcomes):
            if trouble:
                raise LensRNNError(f"process {rank} on {host}: {trouble}")

    def refuse_differences(self, facts: Mapping[str, Any]) -> None:
        """Raise FitError on every process if `facts` are not the same on all, naming the machines and what differs."""
        (main, expected), *others = self.gather((socket.gethostname(), dict(facts)))
        odd: dict[str, str] = {}
        for rank, (host, own) in enumerate(others, start=1):
            differ = [name for name in expected | own if expected.get(name) != own.get(name)]
            if differ and host not in odd:
                words = (f"{name} ({_short(own.get(name))}, not {_short(expected.get(name))})" for name in differ)
                odd[host] = f"process {rank} on {host} differs from process 0 on {main} in {', '.join(words)}"
        if odd:
            raise FitError(f"{'; '.join(odd.values())}; give all machines the same data, model, settings and packages")

    def owner(self, number: int) -> int:
        """The process that does what is done once for layer `number`, counted over those that are fitted."""
        return number % self.world

    def share(self, tensor: Tensor, source: int = 0) -> None:
        """Give every process the values of process `source`, in place."""
        if self.accelerator and self.world > 1:
            tensor.copy_(broadcast(tensor, source))

    def hand_on(self, value: Any, source: int) -> Any:
        """What process `source` has, on every process: dictionaries and lists with CPU tensors, which travel one by
        one."""
        if not self.accelerator or self.world == 1:
            return value
        device, mine = self.accelerator.device, self.rank == source
        shapes = broadcast_object_list([recursively_apply(lambda t: t.to("meta"), value) if mine else None], source)[0]

        def pass_on(tensor: Tensor) -> Tensor:
            sent = tensor.to(device).contiguous() if mine else torch.empty_like(tensor, device=device)
            return broadcast(sent, source).cpu()

        return recursively_apply(pass_on, value if mine else shapes)

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
        """Close the trackers and part from the other processes, together: one that just exits can make the others
        abort."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
            self.accelerator.state.destroy_process_group()

    def shares(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
        """This process's part of `rows`, at most `size` at a time, as (rows, how many of them count).

        Every process gets the same number of parts, because a sharded model's forward pass is a joint act of all of
        them. A process that has run out repeats its last row, which then does not count.
        """
        mine = np.array_split(rows, self.world)[self.rank]
        longest = -(-len(rows) // self.world)
        for start in range(0, longest, size):
            part = mine[start : start + size]
            yield (part, len(part)) if len(part) else (rows[:1], 0)


def refuse_processes(command: str) -> None:
    """Refuse to be one of several processes, in a command that does all the work in one: each would do it all and write
    the same files.

    What launchers say is read before the processes meet, so that none waits for another. Raises ConfigError.
    """
    world = get_int_from_env(_WORLD_SIZES, 1)
    if world > 1:
        raise ConfigError(
            f"{command} runs in one process, and this launch has {world}; start it with python, not with a launcher "
            "of several processes"
        )


_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, accelerate's


def _short(value: Any) -> str:
    """A value in a message: of a hash, its beginning."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32,56}\b", r"\1…", str(value))

"""What the benchmarks share: where they ran, one table each, fair timing, and runs that are kept."""

import json
import os
import platform
import statistics
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lens_rnn.errors import ConfigError
from lens_rnn.files import write_json

import torch


def machine() -> dict[str, str]:
    """Processor, cores in use, GPU if there is one, and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "CPU": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(cores),
        "threads": str(torch.get_num_threads()),
        **gpu,
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tuned-lens")},
        "lens-rnn": tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"],
    }


def report(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    output: Path | None,
    **data: Any,
) -> None:
    """Print one table, its notes and the machine, and write the same as JSON where an output is named."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join([first, *others])} |"

    rule = f"|{'|'.join('-' * (w + 1) + (':' if i else '-') for i, w in enumerate(widths))}|"
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    print(
        "\n".join([f"\n{title}\n", line(header), rule, *map(line, rows), "", *notes, f"Machine: {where}"]), flush=True
    )
    if output:
        write_json(
            output, {"title": title, "header": header, "rows": rows, "notes": notes, "machine": machine(), **data}
        )


@dataclass
class Clock:
    """Seconds of wall time and of processor time, over all threads of this process, without what is done while it is
    paused.

    On a machine that other work shares, the processor time is what can be compared.
    """

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = self.read()
        yield
        after = self.read()
        self.wall += after["seconds"] - before["seconds"]
        self.cpu += after["cpu_seconds"] - before["cpu_seconds"]


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, wall and processor, that one call takes, until the GPU is done with it."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    clock = Clock()
    work()
    synchronize()
    return clock.read()


def medians(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each contender over rounds in which each has its turn, so that what slows the machine slows
    them all."""
    for work in contenders.values():
        work()  # to warm up
    times: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            times[name].append(timed(work))
    return {name: {kind: statistics.median(t[kind] for t in all_) for kind in all_[0]} for name, all_ in times.items()}


class KeptRuns:
    """What has been measured, on disk after every run."""

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        self.path = path
        self.done: dict[str, Any] = {"settings": settings}
        if path and path.exists():
            self.done = json.loads(path.read_text())
            if different := [name for name, value in settings.items() if self.done["settings"].get(name) != value]:
                raise ConfigError(
                    f"{path} holds runs with other settings ({', '.join(different)}); name another --output"
                )

    def get(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a run: from the file, or made now."""
        if name not in self.done:
            self.done[name] = run()
            if self.path:
                write_json(self.path, self.done)
        return self.done[name]

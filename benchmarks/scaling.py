"""One process on one core against several processes on one core each: the time of a fit's steps, and whether the result
is the same.

    python benchmarks/scaling.py

The fit is the default one with fewer tokens. Its clock runs from the end of the first step to the end of the last:
without start-up, the closed-form start and what is compiled or loaded once. Runs with one and with several processes
take turns.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Annotated

from lens_rnn import artifacts, cli
from lens_rnn.data import DataConfig, load_blocks
from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.files import read_json, write_json
from lens_rnn.fitting import FitConfig, fit
from lens_rnn.ranges import whole
from lens_rnn.run import ModelConfig, load_configured_model, start_processes

from tqdm import tqdm

from common import Clock, report

FIGURES = "figures.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Time of a fit's steps and its result, by the number of processes."""

    model: str = ModelConfig.model
    data: str = "python-stdlib"
    tokens: Annotated[int, whole(1)] = 32_768
    """Each is seen as often as by default."""
    processes: Annotated[int, whole(1)] = 2
    """To compare with one."""
    rounds: Annotated[int, whole(1)] = 3
    output: Path | None = None
    """JSON file for the same figures."""
    worker: Path | None = None
    """Be one process of a run that leaves its figures and its lens in this folder."""


def work(config: Config, folder: Path) -> None:
    """One process of a run, kept on a core of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ.get("LOCAL_RANK", "0"))]})
    model = ModelConfig(model=config.model, device="cpu", threads=1)
    processes = start_processes(model)
    adapter = load_configured_model(model, processes)
    blocks = load_blocks(DataConfig(data=config.data, tokens=config.tokens), "fit", adapter.tokenizer)
    clocks: list[Clock] = []  # one begun at each step's end
    result = fit(adapter, blocks, FitConfig(), processes=processes, on_step=lambda _: clocks.append(Clock()))
    time = clocks[0].read() | {"steps": len(clocks) - 1}
    if processes.is_main:
        result.lens.save(folder)
        write_json(folder / FIGURES, time | {"loss": fmean(result.history[-1])})
    processes.finish()


def launch(config: Config, processes: int, folder: Path) -> dict[str, float]:
    """Run the fit in so many processes; it leaves its lens in the folder. Returns its figures."""
    words = [
        __file__,
        "--model",
        config.model,
        "--data",
        config.data,
        "--tokens",
        str(config.tokens),
        "--worker",
        str(folder),
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise LensRNNError(f"the run of {processes} process(es) failed: {(errors or ['nothing said'])[0]}")
    return read_json(folder / FIGURES)


def main(config: Config) -> None:
    if config.worker:
        work(config, config.worker)
        return
    cli.log_to_terminal(verbose=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < config.processes:
        raise ConfigError(f"{config.processes} processes need a core each, and there are {cores}")
    counts = (1, config.processes)
    times: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
    with TemporaryDirectory() as folder:
        for _ in tqdm(range(config.rounds), desc="rounds"):
            for n in counts:
                times[n].append(launch(config, n, Path(folder) / str(n)))
        translators = [artifacts.load(Path(folder) / str(n)).translators for n in counts]
    difference = max(
        float((b - a).norm() / a.norm()) for a, b in zip(*(t.values() for t in translators), strict=True) if a.any()
    )
    losses = [times[n][-1]["loss"] for n in counts]

    rows = []
    for n in counts:
        wall, cpu = (median(time[kind] for time in times[n]) for kind in ("seconds", "cpu_seconds"))
        first = [median(time[kind] for time in times[1]) for kind in ("seconds", "cpu_seconds")]
        rows.append([str(n), f"{wall:.2f}", f"{first[0] / wall:.2f}", f"{cpu:.2f}", f"{first[1] / cpu:.2f}"])
    notes = [
        f"Default fit of {config.model} on {config.tokens:,} tokens, {times[1][0]['steps']:.0f} steps of it timed; "
        "medians of "
        f"{config.rounds} rounds in turn. Processor seconds are the first process's own: other work on the machine "
        "does not stretch them.",
        f"Apart: the translators by at most {difference:.1e} of a weight's or bias's norm, the mean loss of the last "
        "step by "
        f"{abs(losses[1] / losses[0] - 1):.1e} of itself.",
    ]
    header = ["processes, one core each", "seconds", "× one process", "processor seconds", "× one process"]
    report("Scaling", header, rows, notes, config.output, times=times, difference=difference)


if __name__ == "__main__":
    cli.run(main, Config)

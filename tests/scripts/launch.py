"""Running the scripts as a user does: in processes of their own, one or several."""

import importlib.util
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the repository importable. Tests set cache and offline switches before."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", **changes}


def run_script(
    script: str, *arguments: object, processes: int = 1, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess:
    """Run a script of the repository, under torchrun for several processes, and return what it said."""
    words = [str(ROOT / script), *map(str, arguments)]
    if processes > 1:
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            "--master_port",
            str(_free_port()),
        ]
        words = [*torchrun, *words]
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, env=environment(**variables)
    )


def run_in_process(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a script in this process, which is much quicker, and return the code it exits with."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return stop.value.code


def config_of(script: str) -> type:
    """Its configuration class. What it imports from beside itself is found as when it is run."""
    name = f"script_{Path(script).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str((ROOT / script).parent))
            spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].Config


def start_script(script: str, *arguments: object, **variables: str) -> subprocess.Popen:
    """Start a script without waiting for it."""
    words = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(**variables))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

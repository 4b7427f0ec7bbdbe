"""Two machines in one: network namespaces joined by a wire, each with a name, an address and files of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.scripts.launch import ROOT, environment

import pytest

SECONDS = 120  # a run takes about ten on two idle cores
WIRE = "wire0"


class Host:
    """A machine of a pair: what it runs has its folder as the working folder, and a token cache there."""

    def __init__(self, name: str, namespace: str, address: str, folder: Path):
        self.name, self.namespace, self.address, self.folder = name, namespace, address, folder
        self.process: subprocess.Popen | None = None
        folder.mkdir(parents=True)

    @property
    def terminal(self) -> str:
        """All that the last start wrote to its terminal."""
        return (self.folder / "terminal.txt").read_text(errors="replace")

    def start(self, main: "Host", port: int, arguments: tuple[object, ...], **variables: str) -> None:
        """Run train/fit_lens.py as one of two machines, of which `main` has the first rank."""
        place = ["--master-addr", main.address, "--master-port", str(port), "--node-rank", str(int(self is not main))]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *place]
        here = {"LENS_RNN_CACHE": str(self.folder / "cache"), "GLOO_SOCKET_IFNAME": WIRE, "ACCELERATE_USE_CPU": "true"}
        with (self.folder / "terminal.txt").open("w") as terminal:
            self.process = subprocess.Popen(
                [*_inside(self.namespace, self.name), *torchrun, ROOT / "train/fit_lens.py", *map(str, arguments)],
                cwd=self.folder,
                env=environment(**(here | variables)),
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        """The exit code of what was started, which must end by itself."""
        assert self.process is not None
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} has not ended in {SECONDS} seconds; it said:\n{self.terminal}")

    def kill(self) -> None:
        """SIGKILL to every process of this machine."""
        deadline = time.monotonic() + 10
        while pids := _ip("netns", "pids", self.namespace).split():
            assert time.monotonic() < deadline, f"processes {pids} do not die"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if self.process:
                self.process.wait(10)


class Pair:
    """Two hosts that are joined. The first is the main one unless a run says otherwise."""

    def __init__(self, first: Host, second: Host):
        self.first, self.second = first, second
        self._ports = iter(range(29_500, 29_600))  # their own: a namespace shares its ports with nobody

    def __iter__(self) -> Iterator[Host]:
        return iter((self.first, self.second))

    def start(
        self,
        *arguments: object,
        main: Host | None = None,
        of_second: tuple[object, ...] = (),
        **variables_of_second: str,
    ) -> None:
        """Start the same command on both, but for what is said of the second."""
        port, main = next(self._ports), main or self.first
        self.first.start(main, port, arguments)
        self.second.start(main, port, (*arguments, *of_second), **variables_of_second)

    def run(self, *arguments: object, **more: Any) -> list[int]:
        """What `start` starts, to its end: the exit codes."""
        self.start(*arguments, **more)
        return [host.wait() for host in self]

    def kill_when(self, victim: Host, condition: Callable[[], bool]) -> None:
        """Kill one of them as soon as the condition holds; the other must then end by itself, with an error."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            for host in self:
                assert host.process is not None
                assert host.process.poll() is None, f"{host.name} ended too early; it said:\n{host.terminal}"
            assert time.monotonic() < deadline, f"the moment of the kill never came:\n{self.first.terminal}"
            time.sleep(0.002)
        victim.kill()
        (survivor,) = (host for host in self if host is not victim)
        assert survivor.wait() != 0


@contextmanager
def joined(folder: Path) -> Iterator[Pair]:
    """Two hosts, taken away in the end with all that runs there. Without the rights, a skip, or in CI a failure."""
    tag = uuid4().hex[:8]
    hosts = [Host(f"host-{x}", f"lens-{tag}-{x}", f"10.231.0.{i}", folder / x) for i, x in ((1, "a"), (2, "b"))]
    first, second = (host.namespace for host in hosts)
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.namespace)
            _ip("link", "add", WIRE, "netns", first, "type", "veth", "peer", "name", WIRE, "netns", second)
            for host in hosts:
                _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", WIRE)
                for interface in ("lo", WIRE):
                    _ip("-n", host.namespace, "link", "set", interface, "up")
                _run(*_inside(host.namespace, host.name), "true")
        except (OSError, RuntimeError) as error:
            why = f"two hosts need Linux, iproute2 and the right to make network namespaces: {error}"
            if os.environ.get("LENS_RNN_HOSTS") == "required":
                pytest.fail(why)
            pytest.skip(why)
        yield Pair(*hosts)
    finally:
        made = set(_ip("netns", "list").split()) if shutil.which("ip") else set()
        for host in hosts:
            if host.namespace in made:
                host.kill()
                _ip("netns", "delete", host.namespace)


def _inside(namespace: str, name: str) -> list[str]:
    """The words before a command that run it in a namespace, on a machine of that name."""
    return ["ip", "netns", "exec", namespace, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    """What a command printed. Raises RuntimeError with its complaint, OSError if there is no such command."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split()) or f"{words[0]} gives {done.returncode}")
    return done.stdout

"""Start `ncclcheck` as a user would, look at what it started, and prove that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SOON = 60.0  # seconds for what takes a moment: the machine may be busy, or stand still for a while


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait for a condition to become true; its value. Fails the test, saying what was awaited, after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody holds, below those that the kernel gives to whoever asks for any: nobody has it before it is used."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free, contextlib.suppress(OSError):
            free.bind((address, random.randrange(10_000, 20_000)))
            return int(free.getsockname()[1])


class Job:
    """One `ncclcheck` process with its output in files under `folder`."""

    def __init__(
        self, folder: Path, *words: str, command: tuple[str, ...] = (sys.executable, "-m", "ncclcheck"), env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._out, self._err = folder / "out", folder / "err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [*command, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(env or {})}
            )

    def wait(self, seconds: float) -> int:
        """The exit code. Fails the test, showing the output, if there is none in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s\n{self.out}\n{self.err}") from None

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def report(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def run_dir(self) -> Path:
        """The run's directory, as soon as it is there."""
        return until(lambda: next(iter(self.folder.glob("ncclcheck-runs/20*-*-*")), None), SOON, "a run directory")

    def announced(self, rank: int, step: str, times: int = 1) -> bool:
        """Whether a rank has announced steps of this name so often."""
        lines = b"".join(path.read_bytes() for path in self.folder.glob(f"ncclcheck-runs/*/*/*/rank{rank}.jsonl"))
        return lines.count(f'"step":"{step}'.encode()) >= times

    def ranks(self) -> dict[int, int]:
        """rank -> pid of the ranks that run now (pids as this process sees them)."""
        return {int(rank): pid for rank, pid in self._running("ncclcheck.rank", "RANK")}

    def launchers(self) -> dict[int, int]:
        """node_rank -> pid of torchrun there."""
        return {int(node): pid for node, pid in self._running("ncclcheck.torchrun", "NCCLCHECK_NODE")}

    def _running(self, module: str, variable: str) -> Iterator[tuple[str, int]]:
        """The value of a variable, and the pid, of each process of this run that runs a module.

        What one of them has forked and what has not become another program yet looks the same: the one that was there first comes last.
        """
        marks = [f"NCCLCHECK_RUN={path.name}".encode() for path in self.folder.glob("ncclcheck-runs/*")]
        for pid, environ in sorted(environments(), key=lambda found: _started(found[0]), reverse=True):
            value = next((entry.partition(b"=")[2].decode() for entry in environ if entry.startswith(f"{variable}=".encode())), None)
            if value is not None and any(mark in environ for mark in marks) and module in _command(pid).split()[:5]:
                yield value, pid

    def left(self) -> list[str]:
        """Processes that carry this run's mark, whatever they are."""
        marks = [f"NCCLCHECK_RUN={path.name}".encode() for path in self.folder.glob("ncclcheck-runs/*")]
        return [f"{pid}: {_command(pid)}" for pid, environ in environments() if any(mark in environ for mark in marks)]

    def kill(self) -> None:
        """For a test's end: whatever happened, nothing of the job outlives it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def children(pid: int) -> list[int]:
    """The children of a process, in the order in which it got them: of the maker of emulated nodes, node 0 first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every process whose environment this one may read, with it."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry), Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")


def _started(pid: int) -> float:
    """When a process began, in ticks since the machine did."""
    with contextlib.suppress(OSError):
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float("inf")


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"

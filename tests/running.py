"""Start `ncclcheck` as a user would, look at what it started, and prove that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait for a condition to become true; its value. Fails the test, saying what was awaited, after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


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
        return until(lambda: next(iter(self.folder.glob("ncclcheck-runs/*Z-*")), None), 60, "a run directory")

    def announced(self, rank: int, step: str) -> bool:
        """Whether a rank has announced a step of this name."""
        lines = b"".join(path.read_bytes() for path in self.folder.glob(f"ncclcheck-runs/*/*/*/rank{rank}.jsonl"))
        return f'"step":"{step}'.encode() in lines

    def ranks(self) -> dict[int, int]:
        """rank -> pid of the ranks that run now (pids as this process sees them)."""
        marks = [f"NCCLCHECK_RUN={path.name}".encode() for path in self.folder.glob("ncclcheck-runs/*")]
        found = {}
        for pid, environ in environments():
            if any(mark in environ for mark in marks) and (rank := next((e for e in environ if e.startswith(b"RANK=")), None)):
                with contextlib.suppress(OSError):
                    if b"ncclcheck.rank" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found[int(rank[5:])] = pid
        return found

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


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every process whose environment this one may read, with it."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry), Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"

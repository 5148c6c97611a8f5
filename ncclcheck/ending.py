"""Ends a command that starts other processes in good order: an interrupt becomes an exception, and a process is asked before it is killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

GRACE = 30.0  # seconds from SIGTERM to SIGKILL


class Ended(Exception):
    """SIGINT or SIGTERM; args: its number."""


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise Ended."""

    def end(number: int, _frame: object) -> None:
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; kill it where it does not within GRACE. It is gone when this returns."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

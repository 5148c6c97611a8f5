"""Ends a command that starts other processes in good order: the signals that ask for it become an exception, a process is asked before it is killed.

SIGHUP comes when the terminal is closed; under nohup it is ignored, and stays so.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

GRACE = 30.0  # seconds from SIGTERM to SIGKILL


class Ended(Exception):
    """SIGINT, SIGTERM or SIGHUP; args: its number."""


def asking() -> list[signal.Signals]:
    """The signals that ask this process for an orderly end."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Inside, these signals raise Ended."""

    def end(number: int, _frame: object) -> None:
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in asking()}
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

"""Keeps one command and all that descends from it, and ends every one of these processes when whoever asked for it is gone.

`python -m ncclcheck.vllm_keeper COMMAND...` says `pid N` on standard output, and `exit CODE` (minus the signal) when the command has ended. It stays
until its standard input is closed, which also the death of its parent does; then it kills whatever is left. It adopts orphans (vLLM's engine core and
workers outlive a server that was killed), so nothing of the command escapes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ncclcheck import pid1
from ncclcheck.collect import processes

END_BOUND = 5.0  # seconds in which killed processes must be gone
LOOK = 0.1  # seconds between looks at the command


def main(command: Sequence[str]) -> int:
    """0 when nothing of the command is left."""
    pid1.adopt()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end comes by standard input
    said = os.dup(1)
    os.dup2(2, 1)  # what the command prints goes to the log, as its errors do
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_as_usual)
    _say(said, f"pid {child.pid}")
    told = False
    while not select.select([0], [], [], LOOK)[0]:
        if not told and child.poll() is not None:
            told = True
            _say(said, f"exit {child.returncode}")
        if told:
            _reap()
    return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + END_BOUND
    while left := [process for process in processes.descendants(os.getpid()) if process.state != "D"]:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return 1
        child.poll()
        _reap()
        time.sleep(0.02)
    child.poll()
    _reap()  # else who ends after us has their remains
    return 0


def _reap() -> None:
    """Collect what ended; only once the command itself was, whose exit code is wanted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _as_usual() -> None:
    """Handlers are reset by exec, but what is ignored stays so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _say(said: int, word: str) -> None:
    with contextlib.suppress(OSError):
        os.write(said, f"{word}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

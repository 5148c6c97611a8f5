"""Plants one fault in this node and undoes it, whatever becomes of the process that asked for it.

`python -m ncclcheck.guard NAME` reads the place as one line of JSON, strikes, says `struck`, and waits for the end of its input, SIGINT or SIGTERM;
then it undoes the fault and says `undone`. Where the machine cannot do it, it says `skip REASON`. Who holds the other end of its input
and is killed has thereby closed it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from ncclcheck import registry
from ncclcheck.fault import CannotInject, Place

LONGEST = 600.0  # seconds after which a fault is undone even if nobody ended this
BOUND = 15  # seconds for striking, and for undoing


def main(arguments: Sequence[str]) -> int:
    """0 once the fault is undone, or could not be planted."""
    (name,) = arguments
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as own:
        own.write("-1000")  # killed for want of memory, it would undo nothing
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)  # noted in the pipe; nothing interrupts striking or undoing
    fault: Any = registry.load("faults", name)
    deed: AbstractContextManager[None] = fault.inject(msgspec.json.decode(sys.stdin.buffer.readline(), type=Place))
    try:
        signal.alarm(BOUND)
        with deed:
            signal.alarm(0)
            _say("struck")
            select.select([sys.stdin.fileno(), woken], [], [], LONGEST)
            signal.alarm(BOUND)
        signal.alarm(0)
    except CannotInject as reason:
        _say(f"skip {reason}")
        return 0
    _say("undone")
    return 0


def _say(word: str) -> None:
    """Even to nobody: what holds the other end may be gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{word}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

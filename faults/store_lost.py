"""End the process that holds the store, node 0's torchrun, as the loss of the host where all ranks meet does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ncclcheck.collect import processes
from ncclcheck.fault import CannotInject, Place, victim

EXPECT = "rank-killed"
SAFE = True
STRIKES = "node"
BLAMES = "master"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """Nothing brings it back."""
    rank = processes.read(place.pid)
    if rank is None or rank.ppid in (0, 1, os.getpid()):
        raise CannotInject(f"the rank's process {place.pid} has no torchrun above it")
    with victim(replace(place, pid=rank.ppid)) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        yield

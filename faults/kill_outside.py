"""Kill a rank with SIGKILL from another process, as a job scheduler at its time limit, or a colleague who cleans up, does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck.fault import Place, victim

EXPECT = "rank-killed"
SAFE = True
STRIKES = "node"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """Nothing brings it back."""
    with victim(place) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        yield

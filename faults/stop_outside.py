"""Stop a rank with SIGSTOP from another process, as a batch system that suspends a job, or a colleague with a debugger, does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ncclcheck.fault import Place, victim

EXPECT = "process-stopped"
SAFE = True
STRIKES = "node"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """The rank is continued at the end, if it still lives."""
    with victim(place) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)

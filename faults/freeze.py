"""Stop the process with SIGSTOP, as a debugger, a job control signal or a frozen container does."""

from __future__ import annotations

import os
import signal

EXPECT = "process-stopped"
SAFE = True
STRIKES = "step"
PROBES = ("training", "vllm_engine")


def inject() -> None:
    """Returns once somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)

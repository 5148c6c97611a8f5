"""Kill the process with SIGKILL, as the out-of-memory killer and impatient administrators do."""

from __future__ import annotations

import os
import signal

EXPECT = "rank-killed"
SAFE = True
STRIKES = "step"
PROBES = ("training", "vllm_engine")


def inject() -> None:
    """Never returns."""
    os.kill(os.getpid(), signal.SIGKILL)

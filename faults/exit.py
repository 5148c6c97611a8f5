"""Leave with exit code 0 in the middle of the job, as a rank does whose data ends before that of the others."""

from __future__ import annotations

import os

EXPECT = "rank-exited-early"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    os._exit(0)

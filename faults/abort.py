"""Abort the process (SIGABRT), as a failed assertion in C++ or an unhandled exception in a thread of torch does."""

from __future__ import annotations

import os

EXPECT = "rank-killed"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    os.abort()

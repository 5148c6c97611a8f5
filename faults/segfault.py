"""Read from address 0: the kernel kills the process with SIGSEGV, as a faulty extension or driver library does."""

from __future__ import annotations

import ctypes

EXPECT = "rank-killed"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    ctypes.string_at(0)

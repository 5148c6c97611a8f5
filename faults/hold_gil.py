"""Hold Python's global lock (GIL) in C code for ever: no other thread of the process runs, its watchdogs included."""

from __future__ import annotations

import ctypes

EXPECT = "rank-stuck-in-python"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    libc = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL during a call
    while True:
        libc.sleep(3600)

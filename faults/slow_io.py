"""Write checkpoints to a slow disk: from now on each write of this rank takes most of a second."""

from __future__ import annotations

import os
import threading

EXPECT = "slow-rank"
SAFE = True
STRIKES = "step"

EXTRA = 0.7  # seconds that each write takes longer

_pwrite = os.pwrite


def inject() -> None:
    """Returns at once; what follows is slow."""
    os.pwrite = _slow  # type: ignore[assignment]


def _slow(descriptor: int, data: bytes, offset: int, /) -> int:
    threading.Event().wait(EXTRA)
    return _pwrite(descriptor, data, offset)

"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def follow(parent: int | None = None) -> None:
    """From now on the kernel kills this process when its parent ends; leaves at once if that has ended before.

    `parent` is the pid that started this process, where it is known.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit("ncclcheck: the process that started this one left before it came up")

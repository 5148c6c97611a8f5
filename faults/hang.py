"""Stop in host code for ever: the rank is alive, uses no time, and never enters the next collective."""

from __future__ import annotations

import threading

EXPECT = "rank-stuck-in-python"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Never returns."""
    stuck_here()


def stuck_here() -> None:
    """The name that the victim's stack must show."""
    never = threading.Event()
    while not never.wait(1.0):
        pass

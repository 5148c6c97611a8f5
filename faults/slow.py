"""Compute longer than the others: before each collective this rank takes its time, and all others wait for it."""

from __future__ import annotations

import threading

EXPECT = "slow-rank"
SAFE = True
STRIKES = "step"

EXTRA = 0.03  # seconds before each collective


def inject() -> None:
    """Returns after EXTRA seconds."""
    threading.Event().wait(EXTRA)

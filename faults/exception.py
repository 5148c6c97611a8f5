"""Raise an exception on one rank: a bad sample, a missing file, a wrong index."""

from __future__ import annotations

EXPECT = "rank-died-exception"
SAFE = True
STRIKES = "step"


def inject() -> None:
    """Raises IndexError."""
    batch: list[int] = []
    raise IndexError(f"sample 17 of a batch of {len(batch)}")

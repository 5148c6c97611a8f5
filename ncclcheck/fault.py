"""What a fault is, and how one is planted in a rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from ncclcheck import registry


class Fault(Protocol):
    """A module in faults/ is a fault if it has these: docstring, the cause that must be named, and the deed."""

    EXPECT: str
    SAFE: bool

    def inject(self) -> None:
        """Do it, in the victim's own process."""
        ...


def planted(spec: str | None, rank: int) -> Callable[[int], None] | None:
    """From `hang@rank=1,after=20`: a function to call before each collective with its seq; None on the other ranks.

    Raises ValueError for a spec that is not one, KeyError for an unknown fault.
    """
    if not spec:
        return None
    name, victim, after = parse(spec)
    if rank != victim:
        return None
    fault = registry.load("faults", name)

    def inject(seq: int) -> None:
        if seq > after:
            fault.inject()

    return inject


def parse(spec: str) -> tuple[str, int, int]:
    """`hang@rank=1,after=20` -> ("hang", 1, 20). Raises ValueError, or KeyError for an unknown fault."""
    match = re.fullmatch(r"(\w+)@rank=(\d+)(?:,after=(\d+))?", spec)
    if not match:
        raise ValueError(f"{spec!r} is not a fault to inject; write FAULT@rank=N,after=STEPS, for example hang@rank=1,after=20")
    registry.describe("faults", match[1])
    return match[1], int(match[2]), int(match[3] or 0)

"""Reduce over another process group than the other ranks."""

from __future__ import annotations

from dataclasses import replace

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same call in the other group that this rank is in."""
    if call.operation != "all_reduce" or call.group.other is None:
        return None
    return [replace(call, group=call.group.other)]

"""Take the maximum where the other ranks sum: it completes, and the ranks hold different results."""

from __future__ import annotations

from dataclasses import replace

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same tensor, another reduction."""
    if call.operation != "all_reduce" or call.reduce != "sum":
        return None
    return [replace(call, reduce="max")]

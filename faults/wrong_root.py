"""Take another rank for the root of a broadcast: who should send receives, or the other way round."""

from __future__ import annotations

from dataclasses import replace

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """The same broadcast from the next rank."""
    if call.operation != "broadcast":
        return None
    return [replace(call, root=(call.root + 1) % call.group.size)]

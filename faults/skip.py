"""Skip one collective that all other ranks issue: from then on this rank is one ahead of them."""

from __future__ import annotations

from ncclcheck.collective import Collective

EXPECT = "collective-mismatch"
SAFE = True
STRIKES = "call"


def alter(call: Collective) -> list[Collective] | None:
    """Nothing."""
    return []

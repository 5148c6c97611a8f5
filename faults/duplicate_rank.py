"""Give one rank the number of another, as a start command copied to the next node does."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "duplicate-rank"
SAFE = True
STRIKES = "start"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK of the rank before."""
    return {"RANK": str((int(environ["RANK"]) - 1) % int(environ["WORLD_SIZE"]))}

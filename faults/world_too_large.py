"""Tell one rank that the job has one rank more than it has: it waits for somebody who never comes."""

from __future__ import annotations

from collections.abc import Mapping

EXPECT = "world-size-mismatch"
SAFE = True
STRIKES = "start"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """WORLD_SIZE + 1."""
    return {"WORLD_SIZE": str(int(environ["WORLD_SIZE"]) + 1)}

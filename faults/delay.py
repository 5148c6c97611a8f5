"""Hold what the node sends to the others for 25 ms, as a detour through another site does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck import obstruct
from ncclcheck.fault import Place

EXPECT = "slow-network"
SAFE = False
STRIKES = "node"
NEEDS = ("two-nodes",)
BLAMES = "link"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """Nothing is lost or reordered; a round trip takes 25 ms more."""
    with obstruct.late(place, 0.025):
        yield

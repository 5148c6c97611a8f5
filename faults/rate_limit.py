"""Let the node send 2 MB/s, as a port that fell back to a slower mode, or a neighbour who fills the cable."""

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
    """What is sent waits for its turn; nothing need be lost."""
    with obstruct.throttled(place.interface, 2_000_000):
        yield

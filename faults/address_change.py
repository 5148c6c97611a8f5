"""Give the node another address in the midst of the job, as a DHCP server that lost its leases does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck import obstruct
from ncclcheck.fault import Place

EXPECT = "network-unreachable"
SAFE = False
STRIKES = "node"
NEEDS = ("two-nodes",)
BLAMES = "link"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """Connections from and to the old address are dead; the new one works."""
    with obstruct.readdressed(place):
        yield

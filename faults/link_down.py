"""Take the node's network interface down, as a pulled cable, a failed port or an administrator does."""

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
    """Other users of the interface lose it, too."""
    with obstruct.down(place.interface):
        yield

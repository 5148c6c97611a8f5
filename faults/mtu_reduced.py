"""Make the node's MTU smaller than that of the others, as a jumbo-frame setting that one host missed: small packets pass, large ones vanish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck import obstruct
from ncclcheck.fault import Place

EXPECT = "mtu-mismatch"
SAFE = False
STRIKES = "node"
NEEDS = ("two-nodes",)
BLAMES = "link"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """9000 becomes 1500, 1500 becomes 1280."""
    with obstruct.small_mtu(place):
        yield

"""Lose every packet between the node and the others, as a dead switch or a wrong VLAN does: its link stays up, and nothing refuses."""

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
    """In both directions."""
    with obstruct.cut(place):
        yield

"""Lose what the node sends to the others, while it still hears them: a transceiver with a dead laser, a route back that is wrong."""

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
    """Without a word to the senders, who retransmit."""
    with obstruct.cut(place, incoming=False):
        yield

"""Lose one packet in twenty between the node and the others, as a dirty fibre or a bent cable does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck.fault import Place
from ncclcheck.sieve import Sieve, taken

EXPECT = "slow-network"
SAFE = False
STRIKES = "node"
NEEDS = ("two-nodes",)
BLAMES = "link"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """By chance, in both directions."""
    with taken(place.interface, Sieve(place.peers, share=0.05)):
        yield

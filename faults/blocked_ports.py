"""Drop TCP and UDP between the node and the others but for the ports of rendezvous and agents: a firewall opened for MASTER_PORT only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ncclcheck.fault import Place
from ncclcheck.sieve import Sieve, taken

EXPECT = "blocked-port"
SAFE = False
STRIKES = "node"
NEEDS = ("two-nodes",)
BLAMES = "link"


@contextmanager
def inject(place: Place) -> Iterator[None]:
    """Connections that are there already are dropped, too; ping goes on."""
    with taken(place.interface, Sieve(place.peers, protocols=(socket.IPPROTO_TCP, socket.IPPROTO_UDP), spare=place.ports)):
        yield

"""What one agent knows of the network around it: how it was when all was well, and how it is when something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from ncclcheck import paths
from ncclcheck.bounded import bounded
from ncclcheck.collect import infiniband, interface
from ncclcheck.echo import Echo
from ncclcheck.model import Fact
from ncclcheck.wire import Peer

BOUND = 2.0  # seconds in which the kernel has told of the interfaces


class Neighbourhood:
    """`peers` are the nodes that this one tries, `node0` is where its agent's messages go; node 0 tells both."""

    def __init__(self, host: str, echo: Echo) -> None:
        self._host = host
        self._echo = echo
        self._node_rank = -1
        self._before: interface.Snapshot | None = None
        self._losses: dict[str, int] = {}  # RDMA port -> how often it had lost its link
        self._healthy: dict[str, Fact] = {}  # host -> the best that was measured of the way to it
        self._measuring: asyncio.Task[None] | None = None
        self.peers: Sequence[Peer] = ()
        self.node0: Peer | None = None

    def learn(self, node_rank: int, peers: Sequence[Peer], node0: Peer | None) -> None:
        """Node 0 has said who is around."""
        self._node_rank, self.peers = node_rank, peers
        self.node0 = node0 if node_rank > 0 else None

    def begin(self) -> None:
        """A launch starts, and its ranks do not use the network yet: note how all is. It goes on in the background."""
        self.rest()
        if self._echo.port:
            self._measuring = asyncio.ensure_future(self._measure())

    async def _measure(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._losses = await bounded(infiniband.link_losses, BOUND)
            self._before = await bounded(interface.with_address, BOUND, self._echo.address) or self._before
        for fact in await paths.try_all(self._host, self.peers, {}):
            if better := paths.better(self._healthy.get(str(fact.get("peer"))), fact):
                self._healthy[str(fact.get("peer"))] = better

    def rest(self) -> None:
        """Measure no more."""
        if self._measuring:
            self._measuring.cancel()

    async def look(self, lost: Sequence[Peer] = ()) -> list[Fact]:
        """How the interface and the ways to the peers are now, and the ways to those who are lost; at most about 4 s."""
        self.rest()
        asked = {peer.host: peer for peer in (*self.peers, *lost) if peer.port and peer.host != self._host}
        facts, mine = await asyncio.gather(paths.try_all(self._host, list(asked.values()), self._healthy), self._interface())
        ends = {host: peer.node_rank for host, peer in asked.items()}
        told = [replace(fact, fields={**fact.fields, "control": 0 in (self._node_rank, ends[str(fact.get("peer"))])}) for fact in facts]
        return [*mine, *told]

    async def outages(self) -> list[Fact]:
        """Links of this node that were lost since the launch began, also where they are back, and answers that TCP awaited in vain.

        Facts of kind "outage"; fields interface, losses, timeouts.
        """
        found = {str(fact.get("interface")): (fact.get("carrier_losses", 0), fact.get("timeouts", 0)) for fact in await self._interface()}
        with contextlib.suppress(OSError, TimeoutError):
            now = await bounded(infiniband.link_losses, BOUND) if self._losses else {}
            found |= {port: (count - self._losses.get(port, count), 0) for port, count in now.items()}
        return [
            Fact("outage", self._host, fields={"interface": name, "losses": losses, "timeouts": timeouts})
            for name, (losses, timeouts) in found.items()
            if losses > 0 or timeouts > 0
        ]

    async def _interface(self) -> list[Fact]:
        if self._before:
            with contextlib.suppress(OSError, TimeoutError):
                now = await bounded(interface.named, BOUND, self._before.name)
                return [interface.fact(self._host, self._echo.address, self._before, now)]
        return []

"""One node's part in trying every way: it tries what it is told to, and says how it was."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ncclcheck import datagrams, paths, wire
from ncclcheck.bounded import bounded
from ncclcheck.collect import master
from ncclcheck.doors import Doors
from ncclcheck.model import Fact

WHOLE = paths.WHOLE + 1.5  # seconds for one way, with what is asked where it fails
UNANSWERED = 0.6  # seconds after which it is looked whether the host is alive at all
DEAF = 2  # ways on which no datagram was answered, after which none is waited for any more
NAMES_BOUND = 8.0  # seconds in which names must have been looked up: a name server that does not answer takes 5 for each
DEAD = ("timeout", "unreachable", "refused")


def told_of(node_rank: int, target: wire.Target) -> dict[str, Any]:
    """What is known of a way before it is tried."""
    return {
        "node_rank": node_rank,
        "peer": target.peer.host,
        "peer_rank": target.peer.node_rank,
        "network": target.network,
        "main": target.main,
        "control": target.main and 0 in (node_rank, target.peer.node_rank),
        "interface": target.interface,
        "source": target.source,
        "peer_interface": target.peer_interface,
        "address": target.peer.address,
        "port": target.peer.port,
        "mtu": target.mtu,
    }


class Trier:
    """`node_rank` is this node's number, and `host` its name."""

    def __init__(self, host: str, doors: Doors) -> None:
        self._host, self._doors = host, doors
        self._deaf: Counter[str] = Counter()  # our address -> ways from there on which no datagram was answered; below 0: one was
        self._names: asyncio.Task[Mapping[str, Any]] | None = None

    async def answer(self, order: wire.Try, node_rank: int) -> wire.Tried:
        """Do as ordered."""
        if order.names:
            self._names = asyncio.create_task(_look_up(order.names))
        facts = list(await asyncio.gather(*(self._try(target, order.nbytes, node_rank) for target in order.targets)))
        if order.closing and self._names:
            facts.append(Fact("names", self._host, fields={"node_rank": node_rank, **await self._names}))
        return wire.Tried(order.round, facts, self._doors.heard() if order.closing else [])

    def rest(self) -> None:
        """Look up nothing more."""
        if self._names:
            self._names.cancel()

    async def _try(self, target: wire.Target, nbytes: int, node_rank: int) -> Fact:
        fields = told_of(node_rank, target)
        if not target.peer.port:
            return Fact("way", self._host, fields={**fields, "answer": "no-echo", "text": f"nobody could listen on {target.peer.address}"})
        try:
            async with asyncio.timeout(WHOLE):
                fields |= await self._way(target, nbytes)
        except TimeoutError:
            fields |= {"answer": "unsure", "text": f"no end in {WHOLE:g} s"}
        return Fact("way", self._host, fields=fields)

    async def _way(self, target: wire.Target, nbytes: int) -> dict[str, Any]:
        """The same way by a connection and by datagrams; and whether the host is alive, where the connection fails."""
        peer = target.peer
        connection = asyncio.create_task(paths.measure(peer, target.source, nbytes))
        sizes = asyncio.create_task(datagrams.try_sizes(target.source, peer, target.mtu))
        life: asyncio.Task[dict[str, Any]] | None = None
        try:
            await asyncio.wait([connection], timeout=UNANSWERED)
            if not connection.done() or connection.result()["answer"] in DEAD:
                life = asyncio.create_task(_life(target))
            told = await connection
            if self._deaf[target.source] < DEAF or sizes.done() or life:
                passed = await sizes
                self._deaf[target.source] = -1 if passed.small else self._deaf[target.source] + (self._deaf[target.source] >= 0)
                told |= {"datagrams": passed.small, "path_mtu": passed.largest}
            if life:
                told |= await life if told["answer"] in DEAD else {}
            return told
        finally:
            for task in (connection, sizes, life):
                if task:
                    task.cancel()


async def _life(target: wire.Target) -> dict[str, Any]:
    """Whether the host behind a way answers anything: a ping, or a connection to a port of others, by accepting or by refusing it."""
    asked = (master.connect(target.peer.address, port, target.source) for port in master.OTHER_PORTS)
    answered, others = await asyncio.gather(datagrams.ping(target.source, target.peer.address), asyncio.gather(*asked))
    words = {"open": "accepts", "refused": "refuses"}
    told = [f"port {port} {words[kind]}" for port, (kind, _) in zip(master.OTHER_PORTS, others, strict=True) if kind in words]
    return {"ping": answered, "others": told}


async def _look_up(names: Sequence[str]) -> Mapping[str, Any]:
    """`resolved`: name -> addresses; `failed`: name -> why; `late`: those for which there was no time."""
    resolved: dict[str, list[str]] = {}
    failed: dict[str, str] = {}

    def work() -> None:
        for name in names:
            try:
                infos = socket.getaddrinfo(name, None, 0, socket.SOCK_STREAM)
                resolved[name] = list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in infos))
            except (OSError, UnicodeError) as error:
                failed[name] = str(error)

    with contextlib.suppress(TimeoutError):
        await bounded(work, NAMES_BOUND)
    done_well, done_ill = dict(resolved), dict(failed)  # (a thread that is late goes on)
    return {"resolved": done_well, "failed": done_ill, "late": [name for name in names if name not in done_well and name not in done_ill]}

"""An agent, and on node 0 what has the ways between all of them tried, without the rest of a run.

python agents.py NODE NNODES MASTER PORT FOLDER

Node 0 prints the facts that came of it as JSON. With FOLDER/break there, it first says `met` and goes on when FOLDER/go is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ncclcheck import transport, ways, wire
from ncclcheck.agent import Agent
from ncclcheck.cluster import Cluster
from ncclcheck.collect import host, master
from ncclcheck.doors import Doors
from ncclcheck.members import Members
from ncclcheck.model import Fact
from ncclcheck.options import Options
from ncclcheck.permissions import Permissions
from ncclcheck.rollcall import Roll

KEY = bytes(32)
BOUND = 120.0  # seconds for everything


async def live(node: int, nnodes: int, address: str, port: int, folder: Path) -> list[Fact]:
    """One node's part; on node 0 what was found."""
    cluster = Cluster(nnodes, node, address, port, 1)
    server = transport.Server(KEY, 2 * nnodes) if node == 0 else None
    doors = Doors()
    if server:
        server.bind(address, port)
    await doors.open(master.address_towards(address))
    hello = wire.Hello(
        wire.PROTOCOL, "test", nnodes, node, 1, host.name(), os.getpid(), "flags", host.addresses(), [], {}, False, None,
        (doors.first.address, doors.first.port), doors.found, doors.secret,
    )  # fmt: skip
    client = server.local() if server else transport.Client(f"tcp://{address}:{port}", KEY)
    agent = asyncio.create_task(Agent(client, hello, folder, lambda _: None, Permissions(Options([])), address, doors).run())
    try:
        async with asyncio.timeout(BOUND):
            if server:
                return await _lead(Members(server, roll := Roll(cluster), lambda _: b""), roll, address, folder)
            await agent
            return []
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
        await client.close()
        doors.close()
        if server:
            await server.close()


async def _lead(members: Members, roll: Roll, address: str, folder: Path) -> list[Fact]:
    members.open()
    try:
        while not roll.complete():
            await members.until(roll.complete, 0.2)
        members.settle("run")
        if (folder / "break").exists():
            print("met", flush=True)
            while not (folder / "go").exists():
                await members.until(lambda: (folder / "go").exists(), 0.1)
        began = time.monotonic()
        facts = await ways.try_all(members, members.hellos(), [address])
        print(f"{time.monotonic() - began:.2f} s for {len(members.hellos())} nodes", file=sys.stderr)
        await members.publish(b"")
        return facts
    finally:
        members.close()


def main(arguments: Sequence[str]) -> None:
    node, nnodes, address, port, folder = arguments
    with contextlib.suppress(KeyboardInterrupt):
        facts = asyncio.run(live(int(node), int(nnodes), address, int(port), Path(folder)))
        if node == "0":
            print(msgspec.json.encode(facts).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

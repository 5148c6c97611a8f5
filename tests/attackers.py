"""Hostile peers that speak the real transport, for tests: python attackers.py SCENE ADDRESS PORT [ARGUMENT]. The token is NCCLCHECK_TOKEN.

Each says `met` once it has what it came for, and ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ncclcheck import documents, handshake, run_token, transport, wire
from ncclcheck.secure_channel import Asker, agree

BOUND = 60.0  # seconds that any of them lives
KEY = run_token.derive_key(os.environ["NCCLCHECK_TOKEN"])
RUN = "20260101-000000-abcdef"
PROBE = "bandwidth"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
Raw = Mapping[str, Any] | bytes


def order(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def welcome(run_id: str = RUN, number: int = 1, **more: Any) -> dict[str, Any]:
    return order("Welcome", run_id=run_id, node_rank=number, **more)


def launch(name: str = "01-bandwidth", probe: str = PROBE, **more: Any) -> dict[str, Any]:
    return order("Launch", **{"id": name, "probes": [probe], "port": 29999, "nnodes": 2, "nproc_per_node": 1, **more})


def report(status: str = "ready", summary: str = "ready: 2 ranks on 2 nodes passed", **more: Any) -> dict[str, Any]:
    probe = {"name": PROBE, "status": "pass", "detail": "well", "seconds": 1.0, "samples": [], "facts": []}
    whole = {
        "schema": 1, "status": status, "summary": summary, "seconds": 1.0, "findings": [], "emulated": False, "environment": {},
        "probes": [probe], "nodes": [], "ranks": [], "run": {"id": RUN},
    }  # fmt: skip
    return whole | more


def result(document: Any) -> dict[str, Any]:
    return order("Result", report=document if isinstance(document, bytes) else documents.pack(document))


def finding(**more: Any) -> dict[str, Any]:
    return {"cause": "insufficient-evidence", "title": "so", "evidence": [{"file": "x", "line": 1, "text": "y"}], "remedy": "z"} | more


def attempt(address: str, port: int, source: str) -> dict[str, Any]:
    peer = {"node_rank": 0, "host": "node-a", "address": address, "port": port}
    target = {"peer": peer, "peer_interface": "x", "interface": "x", "source": source, "mtu": 1500, "main": True, "network": "n"}
    return order("Try", round=1, targets=[target], nbytes=8)


def bomb() -> bytes:
    """1 MiB that grows to 900."""
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(b'"' + bytes(2**20)), *(packer.compress(bytes(2**20)) for _ in range(899)), packer.flush()])


FORGED = result(report())
QUIET: Raw = order("Beat")
ORDERS: Mapping[str, Callable[[str], list[Raw]]] = {  # what a hostile node 0 sends once a node is there; with an argument of the test
    "forged ready": lambda _: [FORGED],
    "forged ready after a welcome": lambda _: [welcome(), FORGED],
    "ready without a probe": lambda _: [welcome(), result(report(probes=[]))],
    "forged degraded": lambda _: [welcome(), result(report("degraded", "degraded: a little"))],
    "forged healthy": lambda _: [welcome(), result(report("healthy", "all well"))],
    "run id up": lambda _: [welcome("../../../escaped")],
    "run id absolute": lambda folder: [welcome(f"{folder}/escaped")],
    "run id of two lines": lambda _: [welcome("a\nb")],
    "launch id up": lambda _: [welcome(), launch("../../../escaped")],
    "launch id absolute": lambda folder: [welcome(), launch(f"{folder}/escaped")],
    "launch id of two lines": lambda _: [welcome(), launch("a\nb")],
    "probe that was not asked for": lambda _: [welcome(), launch(probe="training")],
    "probe by a path": lambda _: [welcome(), launch(probe="../../tmp/x")],
    "fault that was not asked for": lambda _: [welcome(), launch(fault={"name": "link_down", "rank": 1})],
    "strike without a launch": lambda _: [welcome(), order("Strike", launch="01-bandwidth", others=["10.77.0.1"], ports=[29600]), FORGED],
    "section that was not asked for": lambda _: [welcome(), order("Survey", sections=["os"], peers=[])],
    "section by a path": lambda _: [welcome(), order("Survey", sections=["../../x"], peers=[])],
    "jobs that were not to be looked at": lambda _: [welcome(), order("Examine")],
    "way to loopback": lambda port: [welcome(), attempt("127.0.0.1", int(port), "10.77.0.2")],
    "way from elsewhere": lambda port: [welcome(), attempt("10.77.0.1", int(port), "127.0.0.1")],
    "way to a service": lambda _: [welcome(), attempt("10.77.0.1", 22, "10.77.0.2")],
    "peers on loopback": lambda port: [welcome(peers=[{"node_rank": 0, "host": "x", "address": "127.0.0.1", "port": int(port)}])],
    "thousands of peers": lambda _: [welcome(peers=[{"node_rank": 0, "host": "x", "address": "10.77.0.1", "port": 2000}] * 5000)],
    "welcome twice": lambda _: [welcome(), welcome(number=0), welcome("other", 1), FORGED],
    "another number": lambda _: [welcome(number=0)],
    "number of nobody": lambda _: [welcome(number=7)],
    "huge counts": lambda _: [welcome(), launch(nnodes=65536, nproc_per_node=65536)],
    "absurd counts": lambda _: [welcome(), launch(nnodes=2**62)],
    "size beyond reason": lambda _: [welcome(), launch(sizes={"budget": 1e300})],
    "bomb": lambda _: [welcome(), result(bomb())],
    "deep": lambda _: [welcome(), result(zlib.compress(b"[" * 10**6))],
    "millions of values": lambda _: [welcome(), result(zlib.compress(b"[" + b"[]," * 5 * 10**6 + b"1]"))],
    "as many values as pass": lambda _: [welcome(), result(report(nodes=[{str(n): [] for n in range(100)} for _ in range(1700)]))],
    "garbage document": lambda _: [welcome(), result(os.urandom(10**6))],
    "garbage": lambda _: [welcome(), os.urandom(10**6)],
    "nothing": lambda _: [welcome(), b""],
    "report without a run": lambda _: [welcome(), result(report("unknown", run={"folders": {}}))],
    "report with samples of another form": lambda _: [
        welcome(), result(report("unknown", probes=[{"name": PROBE, "status": "unknown", "samples": [{"rank": 1}]}])),
    ],
    "cause that does not exist": lambda _: [welcome(), result(report("unknown", findings=[finding(cause="no-such")]))],
    "surveys without end": lambda _: [welcome(), *[order("Survey", sections=[], peers=[])] * 2000],
    "launches without end": lambda _: [welcome(), *[launch(f"{number:02}") for number in range(100)]],
    "orders without end": lambda _: [welcome(), *[order("Stop", launch="x")] * 10**5],
    "rosters without end": lambda _: [*[order("Roster", there=["x" * 500] * 1000, missing=[], seconds_left=1.0)] * 300, FORGED],
    "progress without end": lambda _: [welcome(), *[order("Progress", launch="x", slots=[], lines=[], beats={}, facts=EMPTY)] * 60, FORGED],
    "environment": lambda folder: [
        welcome(),
        launch(
            env={"PYTHONWARNINGS": "all:0:antigravity.x:0:0", "BROWSER": f"touch {folder}/owned #%s"}, environment={"X": "y"}, command="x",
            path=folder,
        ),
    ],
    "escapes": lambda _: [
        welcome(), result(report("unknown", ESCAPES, findings=[finding(title=ESCAPES, remedy=ESCAPES, evidence=[{
            "file": ESCAPES, "line": 1, "text": ESCAPES}])], run={"id": RUN, "simulated_link": "x", "directory": ESCAPES})),
    ],
}  # fmt: skip
EMPTY = [{"kind": "x", "fields": {"": [[]] * 100_000}}] * 4


async def node0(scene: str, address: str, port: int, argument: str = "") -> None:
    """Be node 0: meet a node, send it what the scene says, and then only signs of life."""
    server = transport.Server(KEY)
    server.bind(address, port)
    print("listens", flush=True)
    async with asyncio.timeout(BOUND):
        peer, _ = await server.receive()
    print("met", flush=True)
    draining = asyncio.create_task(drain(server))
    for each in ORDERS[scene](argument):
        data = each if isinstance(each, bytes) else msgspec.msgpack.encode(each)
        line = server._peers.get(peer)
        while line and getattr(line, "_queued", 0) > 2 * wire.MAX_MESSAGE:  # it is not dropped for what it has not read
            await asyncio.sleep(0.01)
            line = server._peers.get(peer)
        if line is None:
            break
        line.send(data)
    end = time.monotonic() + BOUND
    while peer in server._peers and time.monotonic() < end:
        server.send(peer, wire.Beat())
        await asyncio.sleep(0.2)
    draining.cancel()
    await server.close()


async def drain(server: transport.Server) -> None:
    while True:
        await server.receive()


# -- a hostile node ------------------------------------------------------------------------------------------------------

NAN = float("nan")
HELLO: dict[str, Any] = {
    "type": "Hello", "protocol": wire.PROTOCOL, "version": "1", "nnodes": 2, "node_rank": 1, "nproc_per_node": 1, "host": "node-b", "pid": 7,
    "source": "flags", "addresses": {"eth0": ["10.77.0.2"]}, "gpus": [], "versions": {"torch": "2.11.0"}, "nvidia": False,
    "echo": ["10.77.0.2", 40000],
    "doors": [{"interface": "eth0", "address": "10.77.0.2", "port": 40000, "mtu": 1500, "prefixlen": 24, "state": "up"}],
    "permits": {"probes": ["host", "wiring", "bandwidth", "reachability"]},
}  # fmt: skip
SLOT: dict[str, Any] = {
    "pid": 7, "rank": 1, "seq": 5, "nbytes": 8, "entered": 1.0, "left": None, "bound": 2.0, "local": False, "opaque": False, "done": False,
    "worked": 1.0, "waited": 1.0, "signature": 1, "since": 1, "writes": 9, "name": "all_reduce", "group": "world", "dtype": "float32",
}  # fmt: skip


def line(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rank": 1, "kind": kind, "at": 1.0, "seq": 1, "fields": fields, "file": "rank1.jsonl", "number": 1}


def fact(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "host": "node-b", "rank": 1, "fields": fields}


def progress(name: str, **parts: Any) -> dict[str, Any]:
    return order("Progress", **{"launch": name, "slots": [], "lines": [], "beats": {}, "facts": [], **parts})


HELLOS: Mapping[str, dict[str, Any]] = {  # what a hostile node says of itself
    "node 7 of 2": HELLO | {"node_rank": 7},
    "node -1": HELLO | {"node_rank": -1},
    "gpus without a name": HELLO | {"gpus": [{}]},
    "task of nothing": HELLO | {"task": {}},
    "task of another's rank": HELLO | {"task": {"rank": 0, "local_rank": 0, "node_rank": 0, "world_size": 2, "local_world_size": 1}},
    "port 10**9": HELLO | {"echo": ["10.77.0.2", 10**9]},
    "long host name": HELLO | {"host": "x" * 900_000},
    "host name with escapes": HELLO | {"host": f"node-b{ESCAPES}"},
    "host name with a path": HELLO | {"host": "../../../escaped"},
    "hello of 1 MiB": HELLO | {"addresses": {str(number): [] for number in range(100_000)}},
    "hello of nothing": {"type": "Hello"},
}
REPORTS: Mapping[str, Callable[[str], list[Raw]]] = {  # and what it reports of the launch that it is told of
    "not a number": lambda name: [progress(name, slots=[SLOT | {"worked": NAN}])],
    "number out of range": lambda name: [progress(name, slots=[SLOT | {"seq": -5}])],
    "title that is a list": lambda name: [progress(name, facts=[fact("fail", cause="data-corruption", title=["x"], ranks=[0])])],
    "cause of nothing": lambda name: [progress(name, facts=[fact("fail", cause="no-such-cause", title="x")])],
    "probe of nobody": lambda name: [progress(name, lines=[line("probe", name="vllm_engine")])],
    "sample of text": lambda name: [progress(name, lines=[line("sample", name="x", nbytes="many")])],
    "fact without end": lambda name: [progress(name, facts=EMPTY)] * 100,
    "lines without end": lambda name: [progress(name, lines=[line("local", step="x" * 9)] * 4000)] * 100,
    "claims without end": lambda name: [
        progress(name, lines=[
            line("claim", host="node-b", pid=1, local_rank=number, environment={"RANK": "1"}, interfaces=[]) for number in range(at, at + 3000)
        ]) for at in range(0, 300_000, 3000)
    ],
    "blocks without end": lambda name: [progress(name, blocks={1: [(number, 1) for number in range(100_000)]})] * 100,
    "garbage": lambda name: [os.urandom(10_000)],
}  # fmt: skip
HARMLESS: Mapping[str, Callable[[str], list[Raw]]] = {  # of others: it is left out, and the run goes on without what the node should have said
    "of others": lambda name: [
        progress(name, slots=[SLOT | {"rank": 0}], facts=[fact("gone", code=-9) | {"rank": 0}, fact("error", type="E", message="m") | {"rank": 0}]),
        order("Collected", launch="not-asked", facts=[fact("gone", code=-9)] * 1000), order("Stopped", launch="x", facts=[]),
        order("Goodbye", reason="it is done"),
    ],
}  # fmt: skip


class Line:
    """A connection to node 0, on which anything may be said."""

    def __init__(self, address: str, port: int) -> None:
        self.client = transport.Client(f"tcp://{address}:{port}", KEY)

    async def say(self, each: Raw) -> bool:
        """Whether there was somebody to hear it; what waits is bounded."""
        data = each if isinstance(each, bytes) else msgspec.msgpack.encode(each)
        for _ in range(500):
            there = self.client._connection
            if there and there._queued < 2 * wire.MAX_MESSAGE:
                there.send(data)
                return True
            await asyncio.sleep(0.01)
        return False

    async def until(self, kind: type, said: Raw) -> Any:
        """Say something every so often until node 0 sends a message of this type."""
        end = time.monotonic() + BOUND
        while time.monotonic() < end:
            await self.say(said)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        if isinstance(message := wire.decode(await self.client.receive()), kind):
                            return message
        raise TimeoutError(f"no {kind.__name__}")


async def hello(scene: str, address: str, port: int) -> None:
    """Say of itself what the scene says, until node 0 has had enough."""
    there = Line(address, port)
    await there.say(HELLOS[scene])
    print("met", flush=True)
    await asyncio.sleep(1)
    await there.client.close()


async def node(scene: str, address: str, port: int) -> None:
    """Take part, and report of the launch what the scene says."""
    there = Line(address, port)
    await there.until(wire.Welcome, HELLO)
    told = await there.until(wire.Launch, order("Beat"))
    print("met", flush=True)
    for each in (REPORTS | HARMLESS)[scene](told.id):
        await there.say(each)
    await asyncio.sleep(3)
    await there.client.close()


async def inventory(scene: str, address: str, port: int) -> None:
    """Take part, and say of the node what no node has."""
    there = Line(address, port)
    await there.until(wire.Welcome, HELLO)
    told = await there.until(wire.Survey, order("Beat"))
    print("met", flush=True)
    name = next(iter(told.sections), "x")
    bombs = {
        "bomb": bomb(), "deep": zlib.compress(b"[" * 10**6), "values": documents.pack({name: {"x": [[]] * 500_000}}),
        "other values": documents.pack({name: {str(at): [NAN, "x", {"y": -1}] for at in range(300)} for name in told.sections}),
    }  # fmt: skip
    await there.say(order("Surveyed", inventory=bombs[scene]))
    while not isinstance(told, wire.Result):
        told = await there.until(wire.Result, order("Beat"))
    await there.client.close()


async def crowd_of_hellos(scene: str, address: str, port: int) -> None:
    """Say hello under a thousand names, each a member of its own."""
    end = time.monotonic() + float(scene)
    print("met", flush=True)
    number = 0
    while time.monotonic() < end:
        lines = [Line(address, port) for _ in range(8)]
        for each in lines:
            number += 1
            await each.say(HELLO | {"host": f"evil-{number}", "node_rank": None})
        await asyncio.gather(*(each.client.close() for each in lines))


async def bundles(scene: str, address: str, port: int) -> None:
    """Send parts of a bundle without end."""
    there = Line(address, port)
    await there.until(wire.Welcome, HELLO)
    await there.until(wire.Examine, order("Beat"))
    print("met", flush=True)
    for number in range(int(scene)):
        await there.say(order("Examined", part=number % 400, count=400, data=bytes(2**19), error=""))
    await there.say(order("Examined", part=10**9, count=1, data=b"x", error=ESCAPES.join("ab")))
    await there.until(wire.Result, order("Beat"))
    await there.client.close()


# -- strangers -------------------------------------------------------------------------------------------------------------


async def stranger(scene: str, address: str, port: int) -> None:
    """Be first at node 0's place without the token."""
    if scene == "another token":
        server = transport.Server(os.urandom(32))
        server.bind(address, port)
    else:
        said = {"noise": os.urandom(4096), "version": b"ncclcheck 9999\n" * 9, "echo": b"", "hello": handshake.LINE + os.urandom(48) * 9}[scene]

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(said)
                while data := await reader.read(1000):
                    writer.write(data if scene == "echo" else said)
                    await writer.drain()

        await asyncio.start_server(answer, address, port)
    print("met", flush=True)
    await asyncio.sleep(BOUND)


async def crowd(scene: str, address: str, port: int) -> None:
    """Connect without end and without the token, and say everything that is none, for so many seconds."""
    loop, end = asyncio.get_running_loop(), time.monotonic() + float(scene)
    wrong = [handshake.LINE + Asker(agree(handshake.LINE, os.urandom(32))).hello for _ in range(20)]
    old = handshake.LINE + Asker(agree(handshake.LINE, KEY)).hello  # as if it was heard on the way; said again and again
    other = handshake.MAGIC + b"9999\n" + os.urandom(48)
    said = [b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(500), old, old, other, handshake.LINE, *wrong]
    print("met", flush=True)
    held: list[socket.socket] = []
    while time.monotonic() < end:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await loop.sock_connect(sock, (address, port))
                await loop.sock_sendall(sock, random.choice(said))
        held.append(sock)
        while len(held) > 400:
            held.pop(random.randrange(len(held))).close()


def main() -> None:
    kind, *words = sys.argv[1:]
    scene, address, port, *more = words
    with contextlib.suppress(TimeoutError, KeyboardInterrupt):
        asyncio.run(globals()[kind](scene, address, int(port), *more))


if __name__ == "__main__":
    main()

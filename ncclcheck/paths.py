"""Try the way from this node to its neighbours: does it carry a connection, a small message, large ones, and how fast?

A try goes to the peer's echo (see echo.py): a random port of its data address, where NCCL's and Gloo's connections go, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ncclcheck import datagrams, ticket
from ncclcheck.echo import HEAD, LARGEST, MAGIC
from ncclcheck.model import Fact
from ncclcheck.wire import Peer

CONNECT = 1.2  # seconds for one connection: the kernel repeats what opens it after 1 s
TRIES = 2  # connections, before silence is believed
SMALL = 1.0  # seconds for a small message and its echo
LARGE = 0.8  # seconds for the large messages: what arrived until then is what the rate is worked out from
SIZES = 1.0  # seconds to find the largest packet that passes
WHOLE = 4.5  # seconds for everything together; a path that takes longer is left unsure
AGAIN = 2**24  # bytes/s below which a way is measured twice: the other process may just have waited for a core
AHEAD = (1, 2, 4)  # the neighbours that a node tries, as distances along the ring of nodes
_TCP_INFO = struct.Struct("=8x24I4Q6I4Q2I2QI")  # linux/tcp.h: struct tcp_info up to tcpi_dsack_dups


def neighbourhoods(nodes: Sequence[Peer]) -> dict[int, list[Peer]]:
    """Node -> whom it tries: a few others along the ring of hosts, so that each is tried by several and nobody by all.

    Of the agents that share an address the first stands for the host; the others, which try nobody, are left out.
    """
    hosts = list({node.address: node for node in reversed(sorted(nodes, key=lambda node: node.node_rank)) if node.port}.values())[::-1]
    ahead = {place: {(place + step) % len(hosts) for step in AHEAD} - {place} for place in range(len(hosts))}
    return {node.node_rank: [hosts[other] for other in sorted(ahead[place])] for place, node in enumerate(hosts)}


async def try_all(host: str, peers: Sequence[Peer], before: Mapping[str, Fact]) -> list[Fact]:
    """The ways to these peers, all at once; `before`: peer -> what was measured when all was well."""
    return list(await asyncio.gather(*(try_path(host, peer, before.get(peer.host)) for peer in peers)))


async def try_path(host: str, peer: Peer, before: Fact | None = None) -> Fact:
    """A fact of kind "path": how this way is now, beside how it was.

    `answer`: ok; refused (something there answers); silent (it connects, and no process answers); timeout; unreachable; large-lost
    (small messages pass and large ones vanish: out_lost, in_lost, and path_mtu, the largest packet that reaches it); unsure. Rates
    are the best of several rounds, so that a process that had to wait for a core does not look like a slow way.
    """
    fields: dict[str, Any] = {"peer": peer.host, "address": peer.address, "port": peer.port}
    try:
        async with asyncio.timeout(WHOLE):
            fields |= await measure(peer)
    except TimeoutError:
        fields |= {"answer": "unsure", "text": f"no end in {WHOLE:g} s"}
    if fields["answer"] == "large-lost" and fields["out_lost"]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SIZES):
                fields["path_mtu"] = (await datagrams.try_sizes("", peer, datagrams.LARGEST)).largest
    if before:
        fields |= {f"{name}_before": before.get(name) for name in ("rtt_ms", "out_bytes_per_s", "in_bytes_per_s") if before.get(name)}
    return Fact("path", host, fields=fields)


def better(one: Fact | None, other: Fact) -> Fact | None:
    """What two looks at a way show of it when it is healthy: the best of each number."""
    if one is None or other.get("answer") != "ok":
        return one or (other if other.get("answer") == "ok" else None)
    best: dict[str, Any] = {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in ("out_bytes_per_s", "in_bytes_per_s")}
    return Fact("path", other.host, fields={**other.fields, **best, "rtt_ms": min(one.get("rtt_ms", 1e9), other.get("rtt_ms", 1e9))})


async def measure(peer: Peer, source: str = "", nbytes: int = LARGEST) -> dict[str, Any]:
    """What a connection to this peer carries, as fields (see `try_path`); from one of our own addresses, where `source` names one.

    Its `answer` is no-source where that address cannot be had.
    """
    there = await _connect(peer, source)
    if isinstance(there, dict):
        return there
    outward = await _measure(peer, source, nbytes, 0, there)
    inward = await _measure(peer, source, 0, nbytes)  # not at once: where one direction is slow, the other's acknowledgements wait there
    if outward is None or inward is None:
        return {"answer": "silent", "text": f"{peer.address}:{peer.port} accepts connections, and no process there answers"}
    fields = {
        "answer": "ok",
        "rtt_ms": min(outward["rtt_ms"], inward["rtt_ms"]),
        "out_bytes_per_s": outward["rate"],
        "in_bytes_per_s": inward["rate"],
        "segments": outward["segments"],
        "retransmits": outward["retransmits"],
    }
    lost = {"out_lost": not outward["bytes"], "in_lost": not inward["bytes"]}
    if any(lost.values()):
        answers = await _another(peer, source, 0, 0)  # it did before, too: nobody there just had to wait for a core
        which = " and ".join(words for name, words in (("out_lost", "to it"), ("in_lost", "from it")) if lost[name])
        text = f"small messages pass, and nothing of a large one {which} in {LARGE:g} s"
        fields |= lost | {"answer": "large-lost" if answers else "unsure", "text": text}
    return fields


async def _measure(peer: Peer, source: str, out: int, back: int, there: socket.socket | None = None) -> dict[str, Any] | None:
    """One transfer; or the better of two, where something arrived, and slowly or not at the first go."""
    one = await (_transfer(there, peer.secret, out, back) if there else _another(peer, source, out, back))
    if one is None or not one["bytes"] or (one["rate"] >= AGAIN and not one["retransmits"]):
        return one
    if (two := await _another(peer, source, out, back)) is None:
        return one
    fewer = min(one, two, key=lambda each: float(each["retransmits"]))
    return {**fewer, "rate": max(one["rate"], two["rate"]), "rtt_ms": min(one["rtt_ms"], two["rtt_ms"])}


async def _connect(peer: Peer, source: str) -> socket.socket | dict[str, Any]:
    """A connection; or why there is none."""
    place, loop = f"{peer.address}:{peer.port}", asyncio.get_running_loop()
    for _ in range(TRIES):
        sock = socket.socket(socket.AF_INET6 if ":" in peer.address else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if source and (refused := datagrams.bind(sock, source)):
            sock.close()
            return {"answer": "no-source", "errno": refused.errno, "text": f"{source} cannot be had: {os.strerror(refused.errno or 0)}"}
        try:
            async with asyncio.timeout(CONNECT):
                await loop.sock_connect(sock, (peer.address, peer.port))
            return sock
        except TimeoutError:
            sock.close()
        except (OSError, OverflowError) as error:  # whoever told of the peer may have told nonsense
            sock.close()
            if not isinstance(error, OSError):
                return {"answer": "unsure", "text": f"{place} is no place: {error}"}
            answer = "refused" if isinstance(error, ConnectionRefusedError | ConnectionResetError) else "unreachable"
            return {"answer": answer, "errno": error.errno, "text": f"connect to {place}: {os.strerror(error.errno or 0)} (errno {error.errno})"}
    return {"answer": "timeout", "text": f"no answer from {place} in {TRIES} tries of {CONNECT:g} s"}


async def _another(peer: Peer, source: str, out: int, back: int) -> dict[str, Any] | None:
    """The same over a connection of its own."""
    there = await _connect(peer, source)
    return None if isinstance(there, dict) else await _transfer(there, peer.secret, out, back)


async def _transfer(sock: socket.socket, secret: bytes, out: int, back: int) -> dict[str, Any] | None:
    """Send `out` bytes, or have `back` sent, and close; None where the small message that goes first gets no echo."""
    loop = asyncio.get_running_loop()
    try:
        head = HEAD.pack(MAGIC, out, back)
        async with asyncio.timeout(SMALL):
            await loop.sock_sendall(sock, head + ticket.for_connection(secret, head))
            if await _exactly(sock, HEAD.size) != head:
                return None
        begun, before = time.perf_counter(), _told(sock)["acknowledged"]
        come, wanted = 0, back or (out and len(MAGIC))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LARGE):
                sending = loop.create_task(loop.sock_sendall(sock, bytes(out)))
                try:
                    while come < wanted and (data := await loop.sock_recv(sock, 2**18)):
                        come += len(data)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        took, told = time.perf_counter() - begun, _told(sock)
        arrived = come if back else told["acknowledged"] - before
        return {**told, "bytes": arrived, "rate": round(arrived / took)}
    except (OSError, TimeoutError, EOFError):
        return None
    finally:
        sock.close()


async def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _told(sock: socket.socket) -> dict[str, Any]:
    """What the kernel counted: it measures and acknowledges even where processes have to wait for a core."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256).ljust(_TCP_INFO.size, b"\0")
    told = _TCP_INFO.unpack_from(data)
    return {"retransmits": max(0, told[23] - told[42]), "acknowledged": told[26], "rtt_ms": round(told[31] / 1e3, 3), "segments": told[33]}

"""Which packets pass from here to a peer's echo, told by datagrams that nobody on the way may cut; whether a host answers a ping.

A datagram of a known size is one packet of a known size, on every network card and on every emulated cable; a TCP connection's packets are cut
and joined where nobody sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ncclcheck import ticket
from ncclcheck.echo import ASK, MAGIC, SHORTEST, TOLD
from ncclcheck.wire import Peer

SILENCE = 0.25  # seconds without an answer to a small datagram after which another one is sent
TRIES = 3  # datagrams of a size, before it is believed that it does not pass
GRACE = 0.02  # seconds that the answers to large datagrams may come behind that to the small one that was sent after them
PING = 0.5  # seconds for an answer to a ping, and as many for a second one
LARGEST = 9216  # bytes of the largest packet that is tried: what switches call jumbo
USUAL = (9000, 8000, 4092, 2044, 1500, 1450, 1400, 1280)  # MTUs that are set somewhere: Ethernet, InfiniBand, tunnels
AT_ONCE = 8  # packets that are on their way together: more would not fit into a socket's buffer
LEAST = 576  # bytes that every way must carry (RFC 791)
_MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}  # linux/in.h, linux/in6.h
_PROBE = 3  # IP_PMTUDISC_PROBE: never cut, and ignore what is believed of the way
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}  # bytes of the headers of IP and UDP
_BITS = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_REQUEST, _REPLY = {socket.AF_INET: 8, socket.AF_INET6: 128}, {socket.AF_INET: 0, socket.AF_INET6: 129}


_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: a port is taken when the connection is made, so that many connections find one


@dataclass(frozen=True, slots=True)
class Passed:
    """What passed of our datagrams: whether any small one was answered, and the largest packet (None: not known)."""

    small: bool
    largest: int | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """From an address of ours to a peer's echo."""

    sock: socket.socket
    peer: Peer
    source: str


def bind(sock: socket.socket, source: str) -> OSError | None:
    """Let a socket speak from this address of ours, at a port that the kernel chooses when it is needed; the error where it cannot be had."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind((source, 0))
    except OSError as error:
        return error
    return None


def family(address: str) -> socket.AddressFamily:
    """IPv6 where there is a colon."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def try_sizes(source: str, peer: Peer, mtu: int) -> Passed:
    """Whether small datagrams pass, and the largest packet up to `mtu` that does.

    Only our direction is tried: the answers are small. Where all is well it takes a round trip.
    """
    with socket.socket(family(peer.address), socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        level, option = _MTU_DISCOVER[sock.family]
        try:
            sock.setsockopt(level, option, _PROBE)
            if bind(sock, source):
                return Passed(False)
            sock.connect((peer.address, peer.port))
        except OSError:
            return Passed(False)
        way = _Way(sock, peer, sock.getsockname()[0])
        full = max(min(mtu, LARGEST), LEAST)
        came = await _arrive(way, [full])
        if came is None:
            return Passed(False)
        return Passed(True, full if full in came else await _between(way, full))


async def _between(way: _Way, lost: int) -> int:
    """The largest packet that passes, where one of `lost` bytes does not."""
    best, sizes = 0, [size for size in (*USUAL, LEAST) if size < lost]
    while sizes:
        came = await _arrive(way, sizes) or set()
        best = max(best, *came, 0)
        lost = min([size for size in sizes if size > best], default=lost)
        step = max(1, (lost - best) // (AT_ONCE + 1))
        sizes = [size for size in range(best + step, lost, step)][:AT_ONCE] if best else []
    return best


async def _arrive(way: _Way, sizes: Iterable[int]) -> set[int] | None:
    """Which packets of these sizes pass; None where not even small ones do.

    The small one is sent last: once it is answered, an answer to those before it is due.
    """
    wanted, overhead, come, heard = set(sizes), _HEADERS[way.sock.family], set[int](), False
    for _ in range(TRIES):
        number = os.urandom(8)
        for size in sorted(wanted - come, reverse=True):
            _send(way, number, size - overhead)
        _send(way, number, SHORTEST)
        until = time.monotonic() + SILENCE
        while (left := until - time.monotonic()) > 0 and not come >= wanted:
            answer = await _answer(way.sock, left)
            if answer and answer[0] == number and answer[1] == SHORTEST:
                heard, until = True, time.monotonic() + GRACE
            elif answer:  # a late one of an earlier try is one, too
                come.add(answer[1] + overhead)
        if come >= wanted:
            return come
        if not heard and not come and _ == 1:  # twice nothing at all
            return None
    return come & wanted


def _send(way: _Way, number: bytes, size: int) -> None:
    mark = ticket.for_datagram(way.peer.secret, number, size, way.source, way.peer.address, way.peer.port)
    with contextlib.suppress(OSError):  # larger than our own interface takes, or refused by the other end: it does not pass
        way.sock.send(ASK.pack(MAGIC, number, mark).ljust(size, b"\0"))


async def _answer(sock: socket.socket, seconds: float) -> tuple[bytes, int] | None:
    """The next answer: its number, and how many bytes had come."""
    try:
        async with asyncio.timeout(seconds):
            data = await asyncio.get_running_loop().sock_recv(sock, 64)
    except TimeoutError:
        return None
    except OSError:  # nobody listens at that port: so it was said
        await asyncio.sleep(min(seconds, GRACE))
        return None
    if len(data) != TOLD.size:
        return None
    magic, number, size = TOLD.unpack(data)
    return (number, size) if magic == MAGIC else None


async def ping(source: str, address: str) -> bool | None:
    """Whether the host answers an ICMP echo request; None where this process may not ask."""
    sock = _icmp(family(address))
    if sock is None:
        return None
    with sock:
        sock.setblocking(False)
        mark = os.urandom(8)
        body = struct.pack("!BBHHH", _REQUEST[sock.family], 0, 0, os.getpid() & 0xFFFF, 1) + mark
        if sock.family == socket.AF_INET:
            body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
        try:
            sock.bind((source, 0))
            for _ in range(2):
                await asyncio.get_running_loop().sock_sendto(sock, body, (address, 0))
                if await _replied(sock, mark):
                    return True
        except OSError:
            return False
    return False


async def _replied(sock: socket.socket, mark: bytes) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PING):
            while True:
                data = await asyncio.get_running_loop().sock_recv(sock, 256)
                if sock.type == socket.SOCK_RAW and sock.family == socket.AF_INET:
                    data = data[(data[0] & 15) * 4 :]  # an IPv4 header comes first
                if data[:1] == bytes([_REPLY[sock.family]]) and data.endswith(mark):
                    return True
    return False


def _icmp(kind: socket.AddressFamily) -> socket.socket | None:
    """A socket for pings: the one that anybody may have where net.ipv4.ping_group_range says so, or root's."""
    for way in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        with contextlib.suppress(OSError):
            return socket.socket(kind, way, _BITS[kind])
    return None


def _checksum(data: bytes) -> int:
    """RFC 1071; the raw socket of IPv4 wants it made, the others make it themselves."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF

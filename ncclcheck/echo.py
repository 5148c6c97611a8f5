"""What a node's neighbours speak to when they try the way to it: an echo on one of its addresses, at a port that the kernel chose.

It answers nobody but the agents of this run (see ticket.py). Over TCP it gives each no more than LARGEST bytes each way, LIVES seconds and
a place among MOST; over UDP it answers a datagram with a shorter one, and only to the address that its mark names.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import struct

from ncclcheck import ticket
from ncclcheck.crowd import Crowd, Newcomer

LARGEST = 2**20  # bytes of a large message
MOST, LIVES = 32, 3.0  # connections at a time, and seconds of each
MOST_NEWCOMERS = 64
HEAD = struct.Struct("!4sII")  # magic, bytes that come, bytes that are wanted
FIRST = HEAD.size + 2 * ticket.LENGTH  # bytes of what is said first: head and ticket
MAGIC = b"ncp2"
ASK = struct.Struct(f"!4s8s{ticket.LENGTH}s")  # how a datagram begins: magic, a number that its sender made up, mark; the rest is of any length
TOLD = struct.Struct("!4s8sH")  # the answer: the same two, and how many bytes came
SHORTEST = 2 * TOLD.size  # bytes of a datagram that is answered: there is room for ASK, and an answer is never more than half of it
MOST_HEARD = 8192  # senders of datagrams that are remembered
_PORTS = 8  # ports to try for one that is free for both


class Echo:
    """One echo, on one address."""

    def __init__(self, checker: ticket.Checker, most: int = MOST_NEWCOMERS) -> None:
        """At most so many connections at a time that have no ticket yet; the oldest goes first."""
        self.address, self.port = "", 0
        self.heard: set[str] = set()  # addresses from which datagrams came, whether or not the answers arrived there
        self._checker, self._most = checker, most
        self._crowd: Crowd | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self, address: str) -> None:
        """Listen there; where that cannot be, `port` stays 0 and nobody tries. Datagrams come to the same port."""
        with contextlib.suppress(OSError):
            for _ in range(_PORTS):
                listener = _listener(address)
                port = int(listener.getsockname()[1])
                with contextlib.suppress(OSError):
                    loop = asyncio.get_running_loop()
                    self._datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (address, port))
                    break
                listener.close()
            else:
                listener = _listener(address)  # without datagrams, then
            self.address, self.port = address, int(listener.getsockname()[1])
            self._crowd = Crowd(listener, self._most, LIVES, MAGIC, FIRST, self._judge, lambda address: None)

    def close(self) -> None:
        """Listen no more, and drop who is there."""
        if self._crowd:
            self._crowd.close()
        if self._datagrams:
            self._datagrams.abort()
        for task in self._serving:
            task.cancel()

    def expects(self, number: bytes, size: int, sender: str) -> bytes:
        """The mark of a datagram from there."""
        return ticket.for_datagram(self._checker.secret, number, size, sender, self.address, self.port)

    def _judge(self, newcomer: Newcomer) -> None:
        """Raises ValueError for who has no ticket, or for whom there is no place."""
        head = newcomer.come[: HEAD.size]
        _, coming, wanted = HEAD.unpack(head)
        if max(coming, wanted) > LARGEST or len(self._serving) >= MOST or not self._checker.admits(head, newcomer.come[HEAD.size :]):
            raise ValueError
        assert self._crowd
        sock = self._crowd.release(newcomer)
        task = asyncio.get_running_loop().create_task(_serve(sock, head, coming, wanted))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda _: sock.close())


class _Datagrams(asyncio.DatagramProtocol):
    """Notes who sends, and says how much came."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) < SHORTEST or self._transport is None:
            return
        magic, number, mark = ASK.unpack_from(data)
        if magic != MAGIC or not hmac.compare_digest(mark, self._echo.expects(number, len(data), str(addr[0]))):
            return
        if len(self._echo.heard) < MOST_HEARD:
            self._echo.heard.add(str(addr[0]))
        self._transport.sendto(TOLD.pack(MAGIC, number, min(len(data), 65535)), addr)


def _listener(address: str) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=128)
    listener.setblocking(False)
    return listener


async def _serve(sock: socket.socket, head: bytes, coming: int, wanted: int) -> None:
    """Give one caller what it asks for, in LIVES seconds."""
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(LIVES):
            await _echo(sock, head, coming, wanted)


async def _echo(sock: socket.socket, head: bytes, coming: int, wanted: int) -> None:
    """Repeat the head; take in what comes, and say when it has; send as much as is wanted."""
    loop, room = asyncio.get_running_loop(), memoryview(bytearray(min(coming, 2**17)))
    await loop.sock_sendall(sock, head)
    while coming > 0:
        count = await loop.sock_recv_into(sock, room[:coming])
        if not count:
            return
        coming -= count
        if coming == 0:
            await loop.sock_sendall(sock, MAGIC)
    await loop.sock_sendall(sock, bytes(wanted))
    await loop.sock_recv(sock, 1)  # the other end leaves first: what is on its way would be lost with us

"""What a node's neighbours speak to when they try the way to it: an echo on one of its addresses, at a port that the kernel chose.

Over TCP it gives nobody more than LARGEST bytes each way, LIVES seconds and a place among MOST; over UDP it answers a datagram with a
shorter one. A stranger gains nothing by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct

LARGEST = 2**20  # bytes of a large message
MOST, LIVES = 32, 3.0  # connections at a time, and seconds of each
HEAD = struct.Struct("!4sII")  # magic, bytes that come, bytes that are wanted
MAGIC = b"ncp1"
ASK = struct.Struct("!4s8s")  # how a datagram begins: magic, and a number that its sender made up; the rest of it is of any length
TOLD = struct.Struct("!4s8sH")  # the answer: the same, and how many bytes came
SHORTEST = 2 * TOLD.size  # bytes of a datagram that is answered: who forges a sender's address must not make more out of less
MOST_HEARD = 8192  # senders of datagrams that are remembered
_PORTS = 8  # ports to try for one that is free for both


class Echo:
    """One echo, on one address."""

    def __init__(self) -> None:
        self.address, self.port = "", 0
        self.heard: set[str] = set()  # addresses from which datagrams came, whether or not the answers arrived there
        self._server: asyncio.Server | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self, address: str) -> None:
        """Listen there; where that cannot be, `port` stays 0 and nobody tries. Datagrams come to the same port."""
        with contextlib.suppress(OSError):
            for _ in range(_PORTS):
                self._server = await asyncio.start_server(self._serve, address, 0, limit=2**17)
                self.address, self.port = address, int(self._server.sockets[0].getsockname()[1])
                with contextlib.suppress(OSError):
                    loop = asyncio.get_running_loop()
                    self._datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self.heard), (address, self.port))
                    return
                self._server.close()
            self._server = await asyncio.start_server(self._serve, address, 0, limit=2**17)  # without datagrams, then
            self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more, and drop who is there."""
        if self._server:
            self._server.close()
        if self._datagrams:
            self._datagrams.abort()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):  # (asyncio of Python 3.11 would print the last one)
                async with asyncio.timeout(LIVES):
                    await _echo(reader, writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """Notes who sends, and says how much came."""

    def __init__(self, heard: set[str]) -> None:
        self._heard = heard
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) < SHORTEST or self._transport is None:
            return
        magic, number = ASK.unpack_from(data)
        if magic != MAGIC:
            return
        if len(self._heard) < MOST_HEARD:
            self._heard.add(str(addr[0]))
        self._transport.sendto(TOLD.pack(MAGIC, number, min(len(data), 65535)), addr)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Repeat the head; take in what comes, and say when it has; send as much as is wanted."""
    head = await reader.readexactly(HEAD.size)
    magic, coming, wanted = HEAD.unpack(head)
    if magic != MAGIC or max(coming, wanted) > LARGEST:
        return
    writer.write(head)
    while coming > 0:
        data = await reader.read(coming)
        if not data:
            return
        coming -= len(data)
        if coming == 0:
            writer.write(MAGIC)
    writer.write(bytes(wanted))
    await reader.read(1)  # the other end leaves first: what is on its way would be lost with us

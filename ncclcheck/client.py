"""An agent's end of its connection to node 0: it finds its way back whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time

from ncclcheck import handshake, wire
from ncclcheck.connection import LINGER, Connection
from ncclcheck.secure_channel import Refused

MOST_QUEUED = 320 * wire.MAX_MESSAGE  # bytes that wait for node 0: a bundle of evidence is sent at once
_CONNECT = 2.0  # seconds for a connection
_PAUSE = 0.1, 1.0  # seconds between two tries to connect: the first one, doubled each time, and the longest


class Client:
    """An agent's end."""

    def __init__(self, endpoint: str, key: bytes) -> None:
        """`endpoint` is tcp://HOST:PORT. Connecting goes on in the background, for ever."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._place, self._key = (host.strip("[]"), int(port)), key
        self._identity = os.urandom(handshake.IDENTITY)  # kept over reconnections
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._connection: Connection | None = None
        self._gone, self._here = asyncio.Event(), asyncio.Event()
        self.closed: float | None = None  # when node 0's end closed the connection (monotonic)
        self.refused = 0  # connections that were closed when our hello had come: our token is not theirs
        self.wrong_version: int | None = None  # the protocol that node 0 speaks, where it is not ours
        self._work = asyncio.get_running_loop().create_task(self._keep())

    async def receive(self) -> bytes:
        """The next message of node 0."""
        return await self._inbox.get()

    def send(self, message: wire.Message) -> None:
        """Send as soon as may be; dropped where node 0 cannot be reached."""
        data = wire.encode(message)
        if self._connection:
            self._connection.send(data)

    async def connected(self) -> None:
        """Wait until node 0 is reached, if it is not now."""
        await self._here.wait()

    async def close(self) -> None:
        """Leave, after at most half a second for what is still on its way out."""
        self._work.cancel()
        if line := self._connection:
            line.finish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    await self._gone.wait()
            line.abort()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _keep(self) -> None:
        pause, longest = _PAUSE
        while True:
            with contextlib.suppress(OSError, Refused):  # TimeoutError is an OSError
                await self._meet()
                pause, _ = _PAUSE
                await self._gone.wait()
            await asyncio.sleep(random.uniform(pause, 2 * pause) / 2)
            pause = min(2 * pause, longest)

    async def _meet(self) -> None:
        """Connect and become a peer. Raises OSError or Refused."""
        sock = socket.socket(socket.AF_INET6 if ":" in self._place[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(_CONNECT):
                await asyncio.get_running_loop().sock_connect(sock, self._place)
            async with asyncio.timeout(handshake.BOUND):
                seal, unseal = await handshake.ask(sock, self._key, self._identity)
        except BaseException as error:
            sock.close()
            if isinstance(error, handshake.TokenRefused):
                self.refused += 1
            elif isinstance(error, handshake.OtherVersion):
                self.wrong_version = error.args[0]
            raise
        self.closed, self.wrong_version = None, None
        self._gone.clear()
        self._connection = Connection(sock, seal, unseal, self._inbox.put_nowait, self._end, MOST_QUEUED)
        self._here.set()

    def _end(self, line: Connection, closed: bool) -> None:
        self._connection = None
        self._here.clear()
        self._gone.set()
        if closed:
            self.closed = time.monotonic()

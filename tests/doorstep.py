"""Node 0's end of the control plane with agents, strangers and forgers before it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from running import free_port

from ncclcheck import connection, handshake, transport, wire
from ncclcheck.secure_channel import Asker, Cipher, agree

T = TypeVar("T")
BOUND = 60.0  # seconds for anything here to happen
KEY, OTHER_KEY = bytes(32), bytes(range(32))
HELLO = wire.Hello(wire.PROTOCOL, "1", 2, None, 1, "a", 7, "flags", {"lo": ["127.0.0.1"]}, [], {"torch": None}, False)


class Doorstep:
    """A server on a port of its own, what it hears, and those who speak to it."""

    def __init__(self, address: str = "127.0.0.1", most: int = 64) -> None:
        self.address, self.port = address, free_port(address)
        self.endpoint = f"tcp://[{address}]:{self.port}" if ":" in address else f"tcp://{address}:{self.port}"
        self.server = transport.Server(KEY, most)
        self.heard: list[tuple[bytes, wire.Any_]] = []
        self.clients: list[transport.Client] = []
        self._hearing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Doorstep:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._hearing:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)
        for client in self.clients:
            await client.close()
        await self.server.close()

    def open(self) -> Doorstep:
        """Listen, and note what is heard."""
        self.server.bind(self.address, self.port)
        self._hearing = asyncio.create_task(self._hear())
        return self

    async def _hear(self) -> None:
        while True:
            peer, data = await self.server.receive()
            self.heard.append((peer, wire.decode(data)))

    def client(self, key: bytes = KEY) -> transport.Client:
        """An agent."""
        self.clients.append(transport.Client(self.endpoint, key))
        return self.clients[-1]

    async def arrives(self, client: transport.Client | transport.Local, said: wire.Message) -> bytes:
        """Say it until it is heard (a client drops what it cannot send yet); who said it, as the server knows it."""

        def heard() -> bytes | None:
            client.send(said)
            return next((peer for peer, message in self.heard if message == said), None)

        return await until(heard)

    async def knock(self) -> socket.socket:
        """A connection that says nothing yet."""
        sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.address, self.port))
        return sock

    async def peer(self, identity: bytes = b"") -> Peer:
        """An agent that minds no rule of the wire but the handshake."""
        sock = await self.knock()
        return Peer(sock, *await handshake.ask(sock, KEY, identity or os.urandom(handshake.IDENTITY)))


class Peer:
    """An end of a channel, by hand."""

    def __init__(self, sock: socket.socket, seal: Cipher, unseal: Cipher) -> None:
        self.sock, self.seal, self.unseal = sock, seal, unseal

    async def say(self, data: bytes, last: bool = True) -> None:
        """One record."""
        await asyncio.get_running_loop().sock_sendall(self.sock, connection.record(self.seal, data, last))


def hello(line: bytes = handshake.LINE, key: bytes = KEY) -> bytes:
    """What an agent says first."""
    return line + Asker(agree(line, key)).hello


async def answer(sock: socket.socket, count: int = 4096) -> bytes:
    """What comes next; nothing where the other end has closed the connection, however it did."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, count), BOUND)
    return b""


async def say(sock: socket.socket, data: bytes) -> None:
    """Say something to whoever may have hung up."""
    with contextlib.suppress(ConnectionError):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def until(condition: Callable[[], T | None]) -> T:
    """The value of a condition as soon as it has one."""
    async with asyncio.timeout(BOUND):
        while not (value := condition()):
            await asyncio.sleep(0.02)
        return value


async def received(client: transport.Client | transport.Local) -> wire.Any_:
    """What a client hears next."""
    return wire.decode(await asyncio.wait_for(client.receive(), BOUND))


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def plays(scene: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test of what happens between sockets, in an event loop of its own, after which no descriptor is left."""

    @functools.wraps(scene)
    def test(*args: Any, **named: Any) -> None:
        before = descriptors()
        asyncio.run(asyncio.wait_for(scene(*args, **named), 3 * BOUND))
        assert descriptors() == before

    return test

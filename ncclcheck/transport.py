"""How messages travel between node 0 and the agents: who has the run's token opens a connection, who has not never gets an answer."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from ncclcheck import handshake, wire
from ncclcheck.client import Client as Client
from ncclcheck.connection import LINGER, Connection
from ncclcheck.newcomers import Counts, Newcomers, room
from ncclcheck.secure_channel import Cipher

SEGMENT = 1200  # bytes of the control plane's TCP segments: they pass wherever IPv6 does, which wants 1280 with its headers
MOST_QUEUED = 4 * wire.MAX_MESSAGE  # bytes that wait for a peer that does not read; then it is dropped
MOST_UNHEARD = 16 * wire.MAX_MESSAGE  # bytes of messages that nobody has received yet; then nothing more is read
MOST_ENDED = 4096  # peers that were ended and are not let in again
_TURN = 0.01


class _Line(Protocol):
    """What the server says to a peer."""

    def send(self, data: bytes) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Server:
    """Node 0's end: hears every agent."""

    def __init__(self, key: bytes, most: int = 64) -> None:
        """`key` is the run's (run_token.derive_key); more than `most` agents at a time are not let in."""
        self._key, self._most = key, most
        self._newcomers: Newcomers | None = None
        self._peers: dict[bytes, _Line] = {}
        self._addresses: dict[bytes, str] = {}
        self._ended: dict[bytes, None] = {}
        self._leaving: set[Connection] = set()
        self._inbox: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self._unheard = 0  # bytes in it
        self._paused = False
        self.closed: dict[str, float] = {}  # addresses whose last connection was ended from there, and when (monotonic)

    def bind(self, address: str, port: int) -> None:
        """Listen on this address only. Raises OSError as bind does.

        Connections to it carry small packets, in both directions: where larger ones vanish on the way, the agents can still say so.
        """
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)  # said to who connects, and inherited by what is accepted,
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as this is
            listener.bind((address, port))
            listener.listen(socket.SOMAXCONN)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._newcomers = Newcomers(listener, self._key, room(self._most), self._let_in)

    @property
    def most(self) -> int:
        """Agents that are let in at a time."""
        return self._most

    @property
    def strangers(self) -> Counts:
        """Address -> connections from there that never proved that they have the token."""
        return self._newcomers.strangers if self._newcomers else {}

    @property
    def wrong_keys(self) -> Counts:
        """Address -> those of them that tried another token."""
        return self._newcomers.wrong_keys if self._newcomers else {}

    @property
    def wrong_versions(self) -> dict[str, int]:
        """Address of an agent with our token -> the other protocol that it speaks."""
        return self._newcomers.wrong_versions if self._newcomers else {}

    def local(self) -> Local:
        """The end of node 0's own agent."""
        identity = os.urandom(handshake.IDENTITY)
        agent = Local(partial(self._hear, identity))
        self._peers[identity] = agent.line
        return agent

    def address(self, peer: bytes) -> str:
        """From where a peer came; empty for node 0's own agent, and for one that is gone."""
        return self._addresses.get(peer, "")

    async def receive(self) -> tuple[bytes, bytes]:
        """The next message, and who sent it."""
        peer, data = await self._inbox.get()
        self._unheard -= len(data)
        if self._paused and self._unheard < MOST_UNHEARD // 2:
            self._paused = False
            for line in self._peers.values():
                line.resume()
        return peer, data

    def send(self, peer: bytes, message: wire.Message) -> None:
        """Send as soon as may be; never waits (a peer that is gone is noticed by its silence)."""
        self.send_all([peer], message)

    def send_all(self, peers: Iterable[bytes], message: wire.Message) -> None:
        """Send the same to many, made once."""
        data = wire.encode(message)
        for peer in peers:
            if line := self._peers.get(peer):
                line.send(data)

    def end(self, peer: bytes) -> None:
        """Hear a peer no more, now or when it comes again; what was sent to it still goes out."""
        self._ended[peer] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self._addresses.pop(peer, None)
        line = self._peers.pop(peer, None)
        if isinstance(line, Connection):
            self._leaving.add(line)
            line.finish()
            asyncio.get_running_loop().call_later(LINGER, self._drop, line)

    async def close(self) -> None:
        """Stop listening, after at most half a second for what is still on its way out."""
        if self._newcomers:
            self._newcomers.close()
        for peer in list(self._peers):
            self.end(peer)
        until = time.monotonic() + LINGER
        try:
            while self._leaving and time.monotonic() < until:
                await asyncio.sleep(_TURN)
        finally:
            for line in list(self._leaving):
                self._drop(line)

    def _drop(self, line: Connection) -> None:
        self._leaving.discard(line)
        line.abort()

    def _let_in(self, sock: socket.socket, address: str, identity: bytes, seal: Cipher, unseal: Cipher) -> None:
        """An agent has proved that it has the token. One that was here before takes its own place: its old connection is lost."""
        old = self._peers.get(identity)
        if identity in self._ended or (old is None and len(self._peers) >= self._most):
            sock.close()
            return
        if old:
            old.abort()
        self.closed.pop(address, None)
        self._addresses[identity] = address
        line = Connection(sock, seal, unseal, partial(self._hear, identity), partial(self._gone, identity), MOST_QUEUED)
        self._peers[identity] = line
        if self._paused:
            line.pause()

    def _hear(self, peer: bytes, data: bytes) -> None:
        self._inbox.put_nowait((peer, data))
        self._unheard += len(data)
        if self._unheard > MOST_UNHEARD and not self._paused:
            self._paused = True
            for line in self._peers.values():
                line.pause()

    def _gone(self, peer: bytes, line: Connection, closed: bool) -> None:
        self._leaving.discard(line)
        if self._peers.get(peer) is line:
            del self._peers[peer]
            address = self._addresses.pop(peer)
            if closed:
                self.closed[address] = time.monotonic()


class Local:
    """The end of node 0's own agent: it speaks to the server without the network."""

    closed: float | None = None  # see Client
    refused = 0
    wrong_version: int | None = None

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self.line = _Here()
        self._hear = hear

    async def receive(self) -> bytes:
        """The next message of node 0."""
        return await self.line.inbox.get()

    def send(self, message: wire.Message) -> None:
        """Say something to node 0."""
        self._hear(wire.encode(message))

    async def connected(self) -> None:
        """Wait for nothing: node 0 is here."""

    async def close(self) -> None:
        """Say no more."""
        self._hear = lambda data: None


class _Here:
    """What the server says to its own agent."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, data: bytes) -> None:
        self.inbox.put_nowait(data)

    def pause(self) -> None:
        pass

    resume = finish = abort = pause

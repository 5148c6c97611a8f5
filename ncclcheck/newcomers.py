"""The crowd at the door: connections to node 0 that have not proved yet that they have the run's token.

There is room for a few hundred, and little time. When it is full the oldest one goes, so that an agent, which proves itself in
milliseconds, always gets in. None of them has an object in the event loop: they share one descriptor of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import socket
import time
from collections.abc import Callable

from ncclcheck.connection import opened
from ncclcheck.handshake import BOUND, HELLO, LINE, LOOKING, MAGIC, PROOF, version
from ncclcheck.secure_channel import Cipher, Refused, agree, answer, heard

MOST = 512  # connections, unless descriptors are few
LEAST = 16
MOST_NAMED = 256  # addresses that are remembered
OTHERS = "others"  # stands for the rest
_RESERVE = 256  # descriptors that are left for the run itself
_AT_ONCE = 64  # connections that are looked at before something else gets its turn
_SWEEP = 0.25  # seconds between two looks for those whose time is over
_REST = 0.1  # seconds in which nobody is let in where there is no descriptor
_LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Counts = dict[str, int]  # address -> how often


def count(counts: Counts, address: str) -> None:
    """Count one more from an address."""
    name = address if address in counts or len(counts) < MOST_NAMED else OTHERS
    counts[name] = counts.get(name, 0) + 1


def room(most: int) -> int:
    """For how many newcomers there are descriptors beside `most` agents; the limit is raised where it is too low for all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) + most + _RESERVE
    if taken + MOST > soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return MOST if soft == resource.RLIM_INFINITY else max(LEAST, min(MOST, soft - taken))


class _Newcomer:
    __slots__ = ("address", "channel", "come", "since", "sock")

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock, self.address, self.since = sock, address, time.monotonic()
        self.come = b""
        self.channel: tuple[Cipher, Cipher] | None = None  # once we have answered its hello


class Newcomers:
    """Lets in who comes to a listening socket, until `close`."""

    def __init__(
        self, listener: socket.socket, key: bytes, most: int, on_proved: Callable[[socket.socket, str, bytes, Cipher, Cipher], None]
    ) -> None:
        """`on_proved` gets the connection of an agent: its address, its identity, what we seal with, what we open with."""
        self._loop = asyncio.get_running_loop()
        self._listener, self._key, self._most, self._on_proved = listener, key, most, on_proved
        self._agreed = agree(LINE, key)
        self._poll = select.epoll()
        self._silent: dict[int, _Newcomer] = {}  # descriptor -> who has not said a hello, the oldest first
        self._answered: dict[int, _Newcomer] = {}  # who has: it has the token, or repeats what somebody said who has
        self._sweeping: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None
        self.strangers: Counts = {}  # who never proved itself
        self.wrong_keys: Counts = {}  # those of them who said a hello with another token
        self.wrong_versions: dict[str, int] = {}  # address of who has our token -> the protocol that it speaks
        self._loop.add_reader(self._poll.fileno(), self._look)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listener.fileno() < 0:
            return
        for timer in (self._sweeping, self._resting):
            if timer:
                timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._loop.remove_reader(self._poll.fileno())
        for newcomer in (*self._silent.values(), *self._answered.values()):
            newcomer.sock.close()
        self._poll.close()

    def _accept(self) -> None:
        self._sweeping = self._sweeping or self._loop.call_later(_SWEEP, self._sweep)
        for _ in range(_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LACK and not self._drop_oldest(self._silent) and not self._drop_oldest(self._answered):
                    self._loop.remove_reader(self._listener)
                    self._resting = self._loop.call_later(_REST, self._loop.add_reader, self._listener, self._accept)
                    return
                continue  # or: who came is gone already
            sock.setblocking(False)
            if len(self._silent) >= self._most:
                self._drop_oldest(self._silent)
            self._silent[sock.fileno()] = _Newcomer(sock, str(address[0]).removeprefix("::ffff:"))
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _sweep(self) -> None:
        """Drop those whose time is over."""
        end = time.monotonic() - BOUND
        for crowd in (self._silent, self._answered):
            while crowd and next(iter(crowd.values())).since < end:
                self._drop_oldest(crowd)
        waiting = self._silent or self._answered
        self._sweeping = self._loop.call_later(_SWEEP, self._sweep) if waiting else None

    def _drop_oldest(self, crowd: dict[int, _Newcomer]) -> bool:
        """Whether there was one."""
        for newcomer in crowd.values():
            self._turn_away(newcomer)
            return True
        return False

    def _turn_away(self, newcomer: _Newcomer) -> None:
        count(self.strangers, newcomer.address)
        self._leave(newcomer).close()

    def _leave(self, newcomer: _Newcomer) -> socket.socket:
        """It is no newcomer any more."""
        number = newcomer.sock.fileno()
        (self._answered if newcomer.channel else self._silent).pop(number)
        self._poll.unregister(number)  # a process that was forked meanwhile may hold the connection, and with it what is polled
        return newcomer.sock

    def _look(self) -> None:
        for number, _ in self._poll.poll(0, _AT_ONCE):
            if newcomer := self._silent.get(number) or self._answered.get(number):
                self._hear(newcomer)

    def _hear(self, newcomer: _Newcomer) -> None:
        """Take in what it says, and not more than it has to say."""
        wanted = PROOF if newcomer.channel else HELLO
        try:
            data = newcomer.sock.recv(wanted - len(newcomer.come))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        newcomer.come += data
        if not data or (not newcomer.channel and not newcomer.come.startswith(MAGIC[: len(newcomer.come)])):
            self._turn_away(newcomer)
        elif len(newcomer.come) == wanted:
            try:
                if newcomer.channel:
                    self._prove(newcomer, *newcomer.channel)
                else:
                    self._answer(newcomer, newcomer.come[: len(LINE)], newcomer.come[len(LINE) :])
            except (Refused, OSError):
                self._turn_away(newcomer)

    def _answer(self, newcomer: _Newcomer, line: bytes, hello: bytes) -> None:
        """Raises Refused or OSError."""
        number = version(line)
        if number is None:
            raise Refused
        try:
            after = heard(self._agreed if line == LINE else agree(line, self._key), hello)
        except Refused:
            count(self.wrong_keys, newcomer.address)
            raise
        if line != LINE:
            if len(self.wrong_versions) < MOST_NAMED:
                self.wrong_versions[newcomer.address] = number
            newcomer.sock.send(LINE)
            self._leave(newcomer).close()
            return
        said, seal, unseal = answer(after, hello)
        newcomer.sock.send(said)
        del self._silent[newcomer.sock.fileno()]
        newcomer.channel, newcomer.come = (seal, unseal), b""
        if len(self._answered) >= self._most:
            self._drop_oldest(self._answered)
        self._answered[newcomer.sock.fileno()] = newcomer

    def _prove(self, newcomer: _Newcomer, seal: Cipher, unseal: Cipher) -> None:
        """Raises Refused."""
        identity, last = opened(unseal, newcomer.come[2:])
        if not last:
            raise Refused
        sock = self._leave(newcomer)
        if identity == LOOKING:
            sock.close()
        else:
            self._on_proved(sock, newcomer.address, identity, seal, unseal)

"""Connections that have not proved yet that they belong to the run.

There is room for so many, and little time. When it is full the oldest one goes, so that an agent, which proves itself in
milliseconds, always gets in. None of them has an object in the event loop: they share one descriptor of it.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Any

_AT_ONCE = 64  # connections that are looked at before something else gets its turn
_SWEEP = 0.25  # seconds between two looks for those whose time is over
_REST = 0.1  # seconds in which nobody is let in where there is no descriptor
_LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Newcomer:
    """Somebody who came, and what was heard of it; `advanced` once we have answered."""

    __slots__ = ("address", "advanced", "come", "since", "sock", "state", "wanted")

    def __init__(self, sock: socket.socket, address: str, wanted: int) -> None:
        self.sock, self.address, self.wanted, self.since = sock, address, wanted, time.monotonic()
        self.come = b""
        self.advanced = False
        self.state: Any = None  # for `judge`


class Crowd:
    """Accepts who comes to a listening socket, until `close`, which closes that, too."""

    def __init__(
        self, listener: socket.socket, most: int, seconds: float, begins: bytes, wanted: int, judge: Callable[[Newcomer], None],
        on_stranger: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Who has said `wanted` bytes, which begin so, is for `judge`, which may `advance` it or `release` it, or raises ValueError or OSError.

        `on_stranger` is told the address of everybody who is turned away, or leaves without a proof.
        """
        self._loop = asyncio.get_running_loop()
        self._listener, self._most, self._seconds = listener, most, seconds
        self._begins, self._wanted, self._judge, self._on_stranger = begins, wanted, judge, on_stranger
        self._poll = select.epoll()
        self._silent: dict[int, Newcomer] = {}  # descriptor -> who has not said enough, the oldest first
        self._advanced: dict[int, Newcomer] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._poll.fileno(), self._look)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._poll.closed:
            return
        for timer in (self._sweeping, self._resting):
            if timer:
                timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._loop.remove_reader(self._poll.fileno())
        for newcomer in (*self._silent.values(), *self._advanced.values()):
            newcomer.sock.close()
        self._poll.close()

    def advance(self, newcomer: Newcomer, wanted: int) -> None:
        """It has said enough to be answered, and is to say so much more. These have a room of their own."""
        del self._silent[newcomer.sock.fileno()]
        newcomer.advanced, newcomer.come, newcomer.wanted = True, b"", wanted
        if len(self._advanced) >= self._most:
            self._drop_oldest(self._advanced)
        self._advanced[newcomer.sock.fileno()] = newcomer

    def release(self, newcomer: Newcomer) -> socket.socket:
        """It is no newcomer any more."""
        number = newcomer.sock.fileno()
        (self._advanced if newcomer.advanced else self._silent).pop(number)
        self._poll.unregister(number)  # a process that was forked meanwhile may hold the connection, and with it what is polled
        return newcomer.sock

    def _accept(self) -> None:
        self._sweeping = self._sweeping or self._loop.call_later(_SWEEP, self._sweep)
        for _ in range(_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LACK and not self._drop_oldest(self._silent) and not self._drop_oldest(self._advanced):
                    self._loop.remove_reader(self._listener)
                    self._resting = self._loop.call_later(_REST, self._loop.add_reader, self._listener, self._accept)
                    return
                continue  # or: who came is gone already
            sock.setblocking(False)
            if len(self._silent) >= self._most:
                self._drop_oldest(self._silent)
            self._silent[sock.fileno()] = Newcomer(sock, str(address[0]).removeprefix("::ffff:"), self._wanted)
            self._poll.register(sock.fileno(), select.EPOLLIN)

    def _sweep(self) -> None:
        """Drop those whose time is over."""
        end = time.monotonic() - self._seconds
        for crowd in (self._silent, self._advanced):
            while crowd and next(iter(crowd.values())).since < end:
                self._drop_oldest(crowd)
        waiting = self._silent or self._advanced
        self._sweeping = self._loop.call_later(_SWEEP, self._sweep) if waiting else None

    def _drop_oldest(self, crowd: dict[int, Newcomer]) -> bool:
        """Whether there was one."""
        for newcomer in crowd.values():
            self._turn_away(newcomer)
            return True
        return False

    def _turn_away(self, newcomer: Newcomer) -> None:
        self.release(newcomer).close()
        self._on_stranger(newcomer.address)

    def _look(self) -> None:
        for number, _ in self._poll.poll(0, _AT_ONCE):
            if newcomer := self._silent.get(number) or self._advanced.get(number):
                self._hear(newcomer)

    def _hear(self, newcomer: Newcomer) -> None:
        """Take in what it says, and not more than it has to say."""
        try:
            data = newcomer.sock.recv(newcomer.wanted - len(newcomer.come))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        newcomer.come += data
        if not data or not (newcomer.advanced or newcomer.come.startswith(self._begins[: len(newcomer.come)])):
            self._turn_away(newcomer)
        elif len(newcomer.come) == newcomer.wanted:
            try:
                self._judge(newcomer)
            except (ValueError, OSError):
                self._turn_away(newcomer)

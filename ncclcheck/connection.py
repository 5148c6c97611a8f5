"""A connection whose two ends have proved the run's token: whole messages, sealed, over a non-blocking socket.

A message travels in records, so that a large one is sealed piece by piece, each when the socket can take it: what waits for a slow peer
is a reference to bytes that all peers share. A record is the length of what follows (2 bytes), and, sealed, whether it is the last of
its message (1 byte) and its part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

from ncclcheck.secure_channel import TAG, Cipher, Refused
from ncclcheck.wire import MAX_MESSAGE

RECORD = 2**14  # bytes of a message that a record carries
LINGER = 0.5  # seconds for what is still on its way out when an end is closed
_LENGTH = 2  # bytes
_MORE, _LAST = b"\0", b"\1"
_room = bytearray(2**16)  # what is read at a time


def record(seal: Cipher, data: bytes | memoryview, last: bool = True) -> bytes:
    """Data as it travels."""
    sealed = seal.seal((_LAST if last else _MORE) + data)
    return len(sealed).to_bytes(_LENGTH, "big") + sealed


def opened(unseal: Cipher, sealed: bytes | bytearray) -> tuple[bytes, bool]:
    """What a record carries (without its length), and whether it is the last of its message. Raises Refused."""
    text = unseal.open(bytes(sealed))
    if text[:1] not in (_MORE, _LAST):
        raise Refused
    return text[1:], text[:1] == _LAST


class Connection:
    """One end. It reads and writes by itself until one of the two ends it."""

    __slots__ = (
        "_ended", "_finishing", "_heard", "_loop", "_most", "_on_end", "_on_message", "_parts", "_queue", "_queued", "_reading",
        "_rest", "_seal", "_sending", "_size", "_sock", "_unseal", "_writing",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        seal: Cipher,
        unseal: Cipher,
        on_message: Callable[[bytes], None],
        on_end: Callable[[Connection, bool], None],
        most: int,
    ) -> None:
        """`on_end` is called once, unless we `abort`: with whether the other end closed the connection, or it failed.

        `most` bytes may wait for a peer that does not read; then it is dropped.
        """
        self._loop = asyncio.get_running_loop()
        self._sock, self._seal, self._unseal = sock, seal, unseal
        self._on_message, self._on_end, self._most = on_message, on_end, most
        self._queue: deque[bytes] = deque()  # messages, the first of which may be sent in part
        self._queued = self._sending = 0  # bytes of them; of the first one, those that are sealed
        self._rest = b""  # of the record that is being sent
        self._heard = bytearray()  # of the record that is being received
        self._parts: list[bytes] = []  # of the message that is
        self._size = 0
        self._ended = self._finishing = self._reading = self._writing = False
        self.resume()

    def send(self, data: bytes) -> None:
        """Send a message as soon as may be. A peer that leaves too much unread is dropped."""
        if self._ended or self._finishing:
            return
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > self._most:
            self._end(False)
        elif not self._writing:
            self._write()

    def pause(self) -> None:
        """Read no more for now."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Read on."""
        if not self._reading and not self._ended:
            self._reading = True
            self._loop.add_reader(self._sock, self._read)

    def finish(self) -> None:
        """Close the connection when all is sent; nothing more is heard. `on_end` says when the other end has done so, too."""
        self._finishing = True
        self.resume()
        if not self._writing:
            self._write()

    def abort(self) -> None:
        """Close the connection now."""
        if not self._ended:
            self._ended = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._queue.clear()

    def _end(self, closed: bool) -> None:
        if not self._ended:
            self.abort()
            self._on_end(self, closed)

    # -- sending -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Send what the socket takes now, at most a record: nobody keeps the others waiting."""
        try:
            if not self._rest and self._queue:
                self._rest = self._next_record()
            if self._rest:
                self._rest = self._rest[self._sock.send(self._rest) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            return self._end(_closed_there(error))
        left = bool(self._rest or self._queue)
        if left and not self._writing:
            self._loop.add_writer(self._sock, self._write)
        elif not left and self._writing:
            self._loop.remove_writer(self._sock)
        self._writing = left
        if self._finishing and not left:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _next_record(self) -> bytes:
        message = self._queue[0]
        end = self._sending + RECORD
        last = end >= len(message)
        sealed = record(self._seal, memoryview(message)[self._sending : end], last)
        self._sending = end
        if last:
            self._queue.popleft()
            self._queued -= len(message)
            self._sending = 0
        return sealed

    # -- receiving -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take in what has come, at most a little at a time."""
        try:
            count = self._sock.recv_into(_room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._end(_closed_there(error))
        if not count:
            return self._end(True)
        if self._finishing:
            return
        self._heard += memoryview(_room)[:count]
        try:
            used = self._records()
        except Refused:
            return self._end(False)
        if used == len(self._heard):
            self._heard = bytearray()  # (one that was emptied keeps its room)
        else:
            del self._heard[:used]

    def _records(self) -> int:
        """Take in the whole records that have come; how many bytes they are. Raises Refused."""
        at, come = 0, self._heard
        while not self._ended and len(come) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(come[at : at + _LENGTH], "big")
            if end - at - _LENGTH > RECORD + TAG + 1:
                raise Refused
            if len(come) < end:
                break
            part, last = opened(self._unseal, come[at + _LENGTH : end])
            at = end
            self._parts.append(part)
            self._size += len(part)
            if self._size > MAX_MESSAGE or not (part or last):
                raise Refused
            if last:
                message = b"".join(self._parts)
                self._parts, self._size = [], 0
                self._on_message(message)
        return at


def _closed_there(error: OSError) -> bool:
    """Whether the other end ended the connection, not the network between."""
    return isinstance(error, ConnectionResetError | BrokenPipeError)

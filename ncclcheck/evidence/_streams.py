"""Streams that end, and say why, where others fail: damaged, cut off, or so large that to read on would do harm."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ncclcheck.units import bytes_text

EXPANDED = 20 << 30  # bytes that one file may unpack to: a large job's logs fit, and to read more takes longer than anybody waits
RATIO = 500  # how many times larger than itself: logs shrink to a tenth or, if they repeat one line, to a hundredth
RATIO_FROM = 1 << 30  # bytes unpacked before the ratio counts: what is small does no harm
MEMBERS = 100_000  # of one file, over all its layers
PIECE = 1 << 18  # bytes unpacked at once
# what the standard library raises for damage; NotImplementedError, a RuntimeError, is a way of packing that zipfile does not know
DAMAGE = (EOFError, OSError, ValueError, RuntimeError, LookupError, struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


class Stream(Protocol):
    """Anything that reads like an open binary file."""

    def read(self, size: int, /) -> bytes: ...


class Refused(Exception):
    """To read on could do harm; says why."""


class Late(Refused):
    """There is no time to read on; says which."""


@dataclass(slots=True)
class Allowance:
    """What may still be unpacked of one file. `size` says how large that file is, in bytes, or how much of it was read."""

    size: Callable[[], int]
    alive: Callable[[], None] = lambda: None  # called whenever something was unpacked; may raise Late
    expanded: int = 0
    members: int = 0
    refused: str = ""

    def unpack(self, nbytes: int) -> None:
        """Count bytes that were unpacked. Raises Refused over the limits."""
        self.alive()
        self.expanded += nbytes
        if self.expanded > EXPANDED:
            self._refuse(f"it unpacks to more than {bytes_text(EXPANDED)}")
        if self.expanded > RATIO_FROM and self.expanded > RATIO * self.size():
            self._refuse(f"it unpacks to more than {RATIO} times its size, as only a bomb does")

    def member(self) -> None:
        """Count a member. Raises Refused over the limit."""
        self.members += 1
        if self.members > MEMBERS:
            self._refuse(f"it holds more than {MEMBERS} files")

    def _refuse(self, why: str) -> None:
        self.refused = f"{why}; the rest was not read"
        raise Refused(self.refused)


@dataclass(slots=True)
class Source:
    """One file's bytes, wherever they come from. They end early where they are damaged or refused; `problem` then says so."""

    name: str
    rest: Stream
    note: str = ""  # what else is to be said about it
    problem: str = ""
    unsafe: bool = False
    late: bool = False
    nbytes: int = 0
    head: bytes = field(default=b"", repr=False)

    def peek(self, size: int) -> bytes:
        """The first bytes; reading still begins with them."""
        while len(self.head) < size and (piece := self._next(size - len(self.head))):
            self.head += piece
        return self.head[:size]

    def read(self, size: int, /) -> bytes:
        """At most this many bytes; b"" is the end. Never raises for what is in it."""
        piece, self.head = (self.head[:size], self.head[size:]) if self.head else (self._next(size), b"")
        self.nbytes += len(piece)
        return piece

    def _next(self, size: int) -> bytes:
        if self.problem:
            return b""
        try:
            return self.rest.read(size)
        except Refused as error:
            self.late = isinstance(error, Late)
            self.problem, self.unsafe = str(error), not self.late
        except DAMAGE as error:
            self.problem = f"it is damaged after {bytes_text(self.nbytes + len(self.head))}: {said(error)}"
        return b""


@dataclass(slots=True)
class Stored:
    """A tar's member; unlike tarfile's own reader it gives what is there of one that is cut off."""

    archive: Stream
    left: int

    def read(self, size: int, /) -> bytes:
        piece = self.archive.read(min(size, self.left)) if self.left else b""
        if self.left and not piece:
            raise EOFError("it ends in the middle")
        self.left -= len(piece)
        return piece


@dataclass(slots=True)
class Counted:
    """An archive's member that expands while it is read."""

    rest: Stream
    allowance: Allowance

    def read(self, size: int, /) -> bytes:
        piece = self.rest.read(min(size, PIECE))
        self.allowance.unpack(len(piece))
        return piece


def said(error: BaseException) -> str:
    """What an exception says, or else is."""
    return str(error) or type(error).__name__

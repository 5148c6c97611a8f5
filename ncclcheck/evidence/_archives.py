"""What lies in a file: itself, or what was packed into it, layer by layer. Nothing is ever written anywhere."""

from __future__ import annotations

import bz2
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, cast

from ncclcheck.evidence.source import Reading
from ncclcheck.units import bytes_text

EXPANDED = 20 << 30  # bytes that one file may unpack to: a large job's logs fit, and to read more takes longer than anybody waits
RATIO = 500  # how many times larger than itself: logs shrink to a tenth or, if they repeat one line, to a hundredth
RATIO_FROM = 1 << 30  # bytes unpacked before the ratio counts: what is small does no harm
MEMBERS = 100_000  # of one file, over all its layers
DEPTH = 3  # archives in archives
LONGEST_NAME = 1000  # characters
SPOOL = 256 << 20  # bytes of a zip inside something else, which must be held as a whole
PIECE = 1 << 18  # bytes unpacked at once
_BLOCK = tarfile.BLOCKSIZE
# NotImplementedError, a RuntimeError: a way of packing that zipfile does not know
_DAMAGE = (EOFError, OSError, ValueError, RuntimeError, LookupError, struct.error, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


class Stream(Protocol):
    """Anything that reads like an open binary file."""

    def read(self, size: int, /) -> bytes: ...


class Refused(Exception):
    """To read on could do harm; says why."""


@dataclass(slots=True)
class Allowance:
    """What may still be unpacked of one file. `size` says how large that file is, in bytes, or how much of it was read."""

    size: Callable[[], int]
    alive: Callable[[], None] = lambda: None  # called whenever something was unpacked
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
            self.problem, self.unsafe = str(error), True
        except _DAMAGE as error:
            self.problem = f"it is damaged after {bytes_text(self.nbytes + len(self.head))}: {_said(error)}"
        return b""


def sources(
    stream: Stream, name: str, allowance: Allowance, whole: BinaryIO | None = None, depth: int = 0, note: str = ""
) -> Iterator[Source | Reading]:
    """Every source in a file, each to be read before the next is asked for, and a Reading for what cannot be or was left out.

    `whole` is the same file for reading in any order, where there is one (a zip's table of contents stands at its end).
    """
    packed = Source(name, stream, note)
    inner = packed
    if unpacker := _unpacker(packed.peek(6)):
        if isinstance(unpacker, str):
            yield _not_read(name, unpacker)
            return
        inner = Source(name, _Unpacked(packed, unpacker, allowance), note)
        whole = None
    head = inner.peek(_BLOCK)
    archive = _tar if _is_tar(head) else _zip if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else None
    if archive is None and (inner is packed or not _unpacker(head)):
        yield inner
        return
    if depth == DEPTH:
        yield _not_read(name, f"archives in archives are read {DEPTH} deep, and this is deeper", unsafe=True)
        return
    if archive is None:
        yield from sources(inner, name, allowance, None, depth + 1, note)
        return
    yield from archive(inner, name, allowance, whole, depth)
    if inner.problem:
        yield _not_read(name, inner.problem, inner.unsafe)


def _tar(stream: Source, name: str, allowance: Allowance, whole: BinaryIO | None, depth: int) -> Iterator[Source | Reading]:
    skipped: list[str] = []
    try:
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", bufsize=PIECE) as archive:
            for info in archive:
                allowance.member()
                if info.issparse():
                    file = archive.extractfile(info)
                    assert file is not None
                    yield from _member(_Counted(file, allowance), name, info.name, allowance, depth)
                elif info.isreg():
                    yield from _member(_Stored(cast(Stream, archive.fileobj), info.size), name, info.name, allowance, depth)
                elif not info.isdir():
                    skipped.append(info.name)
    except Refused as error:
        yield _not_read(name, str(error), unsafe=True)
    except _DAMAGE as error:
        if not stream.problem:
            yield _not_read(name, f"the archive is damaged: {_said(error)}; what came before was read")
    yield from _left_out(name, skipped)


def _zip(stream: Source, name: str, allowance: Allowance, whole: BinaryIO | None, depth: int) -> Iterator[Source | Reading]:
    skipped: list[str] = []
    try:
        with zipfile.ZipFile(whole or _spooled(stream)) as archive:
            for info in archive.infolist():
                allowance.member()
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    skipped.append(info.filename)
                elif info.flag_bits & 1:
                    yield _not_read(_inside(name, info.filename), "it is encrypted; unpack it with its password and triage what comes out")
                else:
                    yield from _zipped(archive, info, name, allowance, depth)
                if allowance.refused:
                    break
    except Refused as error:
        yield _not_read(name, str(error), unsafe=True)
    except _DAMAGE as error:
        yield _not_read(name, f"the archive is damaged: {_said(error)}")
    yield from _left_out(name, skipped)


def _zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, allowance: Allowance, depth: int) -> Iterator[Source | Reading]:
    try:
        file = archive.open(info)
    except _DAMAGE as error:
        yield _not_read(_inside(name, info.filename), f"it cannot be unpacked: {_said(error)}")
        return
    with file:
        yield from _member(_Counted(file, allowance), name, info.filename, allowance, depth)


def _member(stream: Stream, archive: str, name: str, allowance: Allowance, depth: int) -> Iterator[Source | Reading]:
    outside = name.startswith("/") or ".." in name.split("/")
    note = "its name leads out of the archive; it was read, and nothing was written" if outside else ""
    yield from sources(stream, _inside(archive, name), allowance, None, depth + 1, note)


def _inside(archive: str, name: str) -> str:
    return f"{archive}/{printable_name(name)}"


def printable_name(name: str) -> str:
    """A file's name as text that can be encoded; bytes that are not UTF-8 become U+FFFD, and what is too long is cut."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def _left_out(name: str, skipped: list[str]) -> Iterator[Reading]:
    if skipped:
        names = ", ".join(printable_name(each) for each in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        yield _not_read(name, f"links and devices in it were left out ({len(skipped)}): {names}")


def _spooled(stream: Source) -> BinaryIO:
    """A zip that came through a pipe or out of another archive, in memory."""
    memory = io.BytesIO()
    while piece := stream.read(PIECE):
        memory.write(piece)
        if memory.tell() > SPOOL:
            raise Refused(f"a zip inside something else is read up to {bytes_text(SPOOL)}; unpack it and triage the folder")
    return memory


def _not_read(name: str, problem: str, unsafe: bool = False) -> Reading:
    return Reading(name, "not read", problem=problem, unsafe=unsafe)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


@dataclass(slots=True)
class _Stored:
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
class _Counted:
    """An archive's member that expands while it is read."""

    rest: Stream
    allowance: Allowance

    def read(self, size: int, /) -> bytes:
        piece = self.rest.read(min(size, PIECE))
        self.allowance.unpack(len(piece))
        return piece


class _Unpacker(Protocol):
    """What bz2 and lzma have, and zlib is made to have."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """zlib's decompressor of gzip's format, with bz2's and lzma's interface."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Unpacked:
    """The content of a compressed stream: of all its parts, if several were written one after the other."""

    def __init__(self, packed: Source, unpacker: Callable[[], _Unpacker], allowance: Allowance) -> None:
        self._packed, self._make, self._allowance = packed, unpacker, allowance
        self._current: _Unpacker | None = unpacker()

    def read(self, size: int, /) -> bytes:
        while self._current is not None:
            if self._current.eof:
                self._begin_next(self._current.unused_data)
                continue
            data = self._packed.read(PIECE) if self._current.needs_input else b""
            if piece := self._current.decompress(data, min(size, PIECE)):
                self._allowance.unpack(len(piece))
                return piece
            if not data and self._current.needs_input and not self._current.eof:
                raise (Refused if self._packed.unsafe else EOFError)(self._packed.problem or "it ends in the middle")
        return b""

    def _begin_next(self, rest: bytes) -> None:
        """Another part, or the zeros that pad to a block's end, or garbage."""
        while not (rest := rest.lstrip(b"\0")) and (more := self._packed.read(PIECE)):
            rest = more
        if len(rest) < 6:
            rest += self._packed.read(6)
        self._current = None
        if not rest:
            return
        if _unpacker(rest) is not self._make:
            raise ValueError("something else follows its end")
        self._packed.head = rest + self._packed.head
        self._current = self._make()


def _unpacker(head: bytes) -> Callable[[], _Unpacker] | str | None:
    """What unpacks a file that begins so; a text says why nothing does."""
    if head.startswith(b"\x1f\x8b\x08"):
        return _Gzip
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
        except ImportError:
            return "it is packed with zstd, which this Python cannot unpack: zstd -d it and triage what comes out"
        unpacker: Callable[[], _Unpacker] = zstd.ZstdDecompressor
        return unpacker
    return None


def _is_tar(head: bytes) -> bool:
    if len(head) < _BLOCK or not head[0]:
        return False
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, LookupError):
        return False
    return True

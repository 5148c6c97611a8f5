"""The content of what gzip, bzip2, xz or zstd packed, as a stream."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from ncclcheck.evidence._streams import PIECE, Allowance, Late, Refused, Source


class Unpacker(Protocol):
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


class Unpacked:
    """The content of a compressed stream: of all its parts, if several were written one after the other."""

    def __init__(self, packed: Source, unpacker: Callable[[], Unpacker], allowance: Allowance) -> None:
        self._packed, self._make, self._allowance = packed, unpacker, allowance
        self._current: Unpacker | None = unpacker()

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
                kind = Late if self._packed.late else Refused if self._packed.unsafe else EOFError
                raise kind(self._packed.problem or "it ends in the middle")
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
        if unpacker_of(rest) is not self._make:
            raise ValueError("something else follows its end")
        self._packed.head = rest + self._packed.head
        self._current = self._make()


def unpacker_of(head: bytes) -> Callable[[], Unpacker] | str | None:
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
        unpacker: Callable[[], Unpacker] = zstd.ZstdDecompressor
        return unpacker
    return None

"""What lies in a file: itself, or what was packed into it, layer by layer. Nothing is ever written anywhere."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from ncclcheck.evidence._streams import DAMAGE, PIECE, Allowance, Counted, Late, Refused, Source, Stored, Stream, said
from ncclcheck.evidence._unpack import Unpacked, unpacker_of
from ncclcheck.evidence.source import Reading
from ncclcheck.units import bytes_text

DEPTH = 3  # archives in archives
LONGEST_NAME = 1000  # characters
SPOOL = 256 << 20  # bytes of a zip inside something else, which must be held as a whole
_BLOCK = tarfile.BLOCKSIZE


def sources(
    stream: Stream, name: str, allowance: Allowance, whole: BinaryIO | None = None, depth: int = 0, note: str = ""
) -> Iterator[Source | Reading]:
    """Every source in a file, each to be read before the next is asked for, and a Reading for what cannot be or was left out.

    `whole` is the same file for reading in any order, where there is one (a zip's table of contents stands at its end).
    """
    packed = Source(name, stream, note)
    inner = packed
    if unpacker := unpacker_of(packed.peek(6)):
        if isinstance(unpacker, str):
            yield _not_read(name, unpacker)
            return
        inner = Source(name, Unpacked(packed, unpacker, allowance), note)
        whole = None
    head = inner.peek(_BLOCK)
    archive = _tar if _is_tar(head) else _zip if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else None
    if archive is None and (inner is packed or not unpacker_of(head)):
        yield inner
        return
    if depth == DEPTH:
        yield _not_read(name, f"archives in archives are read {DEPTH} deep, and this is deeper", unsafe=True)
        return
    if archive is None:
        yield from sources(inner, name, allowance, None, depth + 1, note)
        return
    empty = True
    for each in archive(inner, name, allowance, whole, depth):
        empty = False
        yield each
    if inner.problem or empty:
        yield _not_read(name, inner.problem or "it holds no files", inner.unsafe, inner.late)


def _tar(stream: Source, name: str, allowance: Allowance, whole: BinaryIO | None, depth: int) -> Iterator[Source | Reading]:
    skipped: list[str] = []
    try:
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", bufsize=PIECE) as archive:
            for info in archive:
                allowance.member()
                if info.issparse():
                    file = archive.extractfile(info)
                    assert file is not None
                    yield from _member(Counted(file, allowance), name, info.name, allowance, depth)
                elif info.isreg():
                    yield from _member(Stored(cast(Stream, archive.fileobj), info.size), name, info.name, allowance, depth)
                elif not info.isdir():
                    skipped.append(info.name)
    except Refused as error:
        yield _not_read(name, str(error), not isinstance(error, Late), isinstance(error, Late))
    except DAMAGE as error:
        if not stream.problem:
            yield _not_read(name, f"the archive is damaged: {said(error)}; what came before was read")
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
        yield _not_read(name, str(error), not isinstance(error, Late), isinstance(error, Late))
    except DAMAGE as error:
        yield _not_read(name, f"the archive is damaged: {said(error)}")
    yield from _left_out(name, skipped)


def _zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, allowance: Allowance, depth: int) -> Iterator[Source | Reading]:
    try:
        file = archive.open(info)
    except DAMAGE as error:
        yield _not_read(_inside(name, info.filename), f"it cannot be unpacked: {said(error)}")
        return
    with file:
        yield from _member(Counted(file, allowance), name, info.filename, allowance, depth)


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


def _not_read(name: str, problem: str, unsafe: bool = False, unread: bool = False) -> Reading:
    return Reading(name, "not read", problem=problem, unsafe=unsafe, unread=unread)


def _is_tar(head: bytes) -> bool:
    if len(head) < _BLOCK or not head[0]:
        return False
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, LookupError):
        return False
    return True

"""A heap of whatever somebody has: files, folders, archives, standard input; which sources there are, and what each is called."""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from ncclcheck import registry
from ncclcheck.evidence import _archives, source, text, workers
from ncclcheck.evidence._archives import printable_name
from ncclcheck.evidence._streams import Allowance, Refused, Source
from ncclcheck.evidence.source import Reading
from ncclcheck.units import bytes_text

ENDLESS = 64 << 30  # bytes read of one path: more is no log, and takes half an hour
MOST_FILES = 100_000  # under one path
_LEFT_OUT = frozenset({".git"})
WRITER_BOUND = 60.0  # seconds in which something must have come into a pipe
_POLL_MS = 200  # while a pipe's writer is waited for


@dataclass(frozen=True, slots=True)
class _Found:
    """A path to read. `given`: it was named on the command line, so it may also be a pipe."""

    path: str
    name: str
    given: bool = False


def read(paths: Sequence[str], patience: float = workers.PATIENCE) -> Iterator[Reading]:
    """Every source under these paths, in the order of the paths and then of their names.

    A file given alone is called by its own name; what lies in a folder given alone, by its path in there. Of several
    paths, all names are relative to the folder that holds them all. What lies in an archive is called `bundle.tar.gz/member`.
    What cannot be read, or only in part, is a Reading with a `problem`. A source is given up when nothing is read of it for
    `patience` seconds; the writer of a pipe is waited for.
    """
    found = list(_under(paths))
    if not found:
        return
    begins = _begins(found[0])
    if begins != b"\x80":  # what reads text is made once, before the workers are forked; a heap of dumps can do without
        text.everything()

    def work(job: int, skip: int, watch: workers.Watch) -> Iterator[Reading]:
        each = found[job]
        return iter([each][skip:]) if isinstance(each, Reading) else _read(each, skip, watch)

    def lost(job: int, name: str, why: str, gave_up: bool) -> Reading:
        rest = "; what else it holds was not read" if gave_up and name != found[job].name else ""
        return Reading(name or found[job].name, "not read", problem=why + rest, unsafe=True)

    yield from workers.Pool(len(found), work, lost, patience, meanwhile=registry.load_rules).results()


def _begins(found: _Found | Reading) -> bytes:
    """The first byte of an ordinary file, if it can be read."""
    if isinstance(found, _Found) and Path(found.path).is_file():
        with contextlib.suppress(OSError), open(found.path, "rb") as stream:
            return stream.read(1)
    return b""


def _read(found: _Found, skip: int, watch: workers.Watch) -> Iterator[Reading]:
    try:
        stream = _opened(found, watch)
    except OSError as error:
        if not skip:
            yield _not_read(found.name, f"it cannot be read: {error.strerror or error}")
        return
    with stream.file:
        allowance = Allowance(stream.size, watch.alive)
        for number, each in enumerate(_archives.sources(stream, found.name, allowance, stream.whole)):
            if number < skip:
                continue
            watch.begin(each.name)
            yield each if isinstance(each, Reading) else reading(each)


def reading(each: Source) -> Reading:
    """Read one source, and say what is to be said about it."""
    result = source.read(each, each.name)
    problems = [text for text in (each.problem, result.problem if not each.problem else "", each.note) if text]
    return replace(result, problem="; ".join(problems), unsafe=result.unsafe or each.unsafe) if problems else result


class _Input:
    """An open path that says whenever something was read of it, and ends where it is endless."""

    def __init__(self, file: io.FileIO, watch: workers.Watch) -> None:
        self.file, self._watch = file, watch
        self._status = os.fstat(file.fileno())
        self._read = 0
        self._ended = False

    @property
    def mode(self) -> int:
        """Its type and permissions."""
        return self._status.st_mode

    @property
    def whole(self) -> BinaryIO | None:
        """The file for reading in any order, if it is one that can be."""
        return cast(BinaryIO, self.file) if stat.S_ISREG(self.mode) else None

    def size(self) -> int:
        """Bytes that it has, or that came so far."""
        return max(self._status.st_size, self._read)

    def read(self, size: int, /) -> bytes:
        """At most this many bytes. Raises Refused where there is no end to them."""
        piece = None if not self._ended else b""
        while piece is None:
            piece = self._some(size)
            self._watch.alive()
        self._ended = not piece  # a terminal would go on after its end
        self._read += len(piece)
        if self._read > ENDLESS:
            raise Refused(f"it is longer than {bytes_text(ENDLESS)}; the rest was not read")
        return piece

    def _some(self, size: int) -> bytes | None:
        """None: nothing came yet."""
        if self.whole is None:
            poll = select.poll()
            poll.register(self.file, select.POLLIN)
            if not poll.poll(_POLL_MS):
                return None
        with contextlib.suppress(BlockingIOError):
            return os.read(self.file.fileno(), size)
        return None


def _opened(found: _Found, watch: workers.Watch) -> _Input:
    """Raises OSError for what cannot be opened, and for what should not be: reading a device may do something."""
    if found.path == "-":
        return _Input(io.FileIO(0, closefd=False), watch)
    _check(os.stat(found.path).st_mode, found.given)
    stream = _Input(io.FileIO(found.path, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)), watch)
    try:
        _check(stream.mode, found.given)  # it may be another one by now
        if stat.S_ISFIFO(stream.mode):
            _await_writer(stream.file, watch)
    except OSError:
        stream.file.close()
        raise
    return stream


def _await_writer(pipe: io.FileIO, watch: workers.Watch) -> None:
    """Until something came, or a writer came and went. Raises OSError where neither happens in time."""
    poll, end = select.poll(), time.monotonic() + WRITER_BOUND
    poll.register(pipe, select.POLLIN)
    while not poll.poll(_POLL_MS):
        if time.monotonic() > end:
            raise OSError(f"nothing was written into it within {WRITER_BOUND:g} s")
        watch.alive()


def _check(mode: int, given: bool) -> None:
    if not (stat.S_ISREG(mode) or (given and stat.S_ISFIFO(mode))):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
        raise OSError(f"it is {next((name for is_one, name in kinds if is_one(mode)), 'a device')}")


def _under(paths: Sequence[str]) -> Iterator[_Found | Reading]:
    """What there is to read under these paths, each once."""
    once = list(dict.fromkeys(paths))
    real = [path for path in once if path != "-" and not is_pipe(path)]
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in real]) if len(once) > 1 and real else None
    for path in once:
        alone = Path(path).name or path
        name = path if path not in real else alone if base is None else os.path.relpath(os.path.abspath(path), base)
        if stat.S_ISDIR(_mode(path)) and path != "-":
            prefix = "" if base is None else f"{name}/" * (name != ".")
            yield from _folder(path, prefix)
        else:
            yield _Found(path, printable_name(name), given=True)


def is_pipe(path: str) -> bool:
    """Whether what is read there comes from another program, for which it must be waited."""
    return stat.S_ISFIFO(_mode(path))


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _folder(top: str, prefix: str) -> Iterator[_Found | Reading]:
    """The files in a folder, sorted by name. Links are not followed: what they lead to in this folder is read under its own name."""
    count = 0
    waiting = [(top, prefix)]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield _not_read(prefix or folder, f"the folder cannot be read: {error.strerror}")
            continue
        folders = []
        for entry in entries:
            name = prefix + entry.name
            if entry.is_symlink():
                try:
                    target = os.path.realpath(entry.path)
                except OSError as error:
                    yield _not_read(name, f"where the link leads cannot be read: {error.strerror}")
                    continue
                if not _inside(target, top):
                    yield _not_read(name, f"it is a link to {printable_name(target)}, outside of the folder; name that to have it read")
            elif entry.is_dir(follow_symlinks=False):
                folders += [(entry.path, f"{name}/")] * (entry.name not in _LEFT_OUT)
            else:
                count += 1
                if count > MOST_FILES:
                    yield _not_read(name, f"more than {MOST_FILES} files lie in the folder; this one and the rest were not read")
                    return
                yield _Found(entry.path, printable_name(name))
        waiting += reversed(folders)


def _inside(target: str, top: str) -> bool:
    return os.path.commonpath([target, os.path.realpath(top)]) == os.path.realpath(top)


def _not_read(name: str, problem: str) -> Reading:
    return Reading(printable_name(name), "not read", problem=problem)

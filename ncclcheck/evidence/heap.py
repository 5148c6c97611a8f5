"""A heap of whatever somebody has: files, folders, archives, standard input; which sources there are, and what each is called."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import select
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from ncclcheck import registry
from ncclcheck.evidence import _archives, source, text, workers
from ncclcheck.evidence._archives import printable_name
from ncclcheck.evidence._bounds import Bounds, Meter
from ncclcheck.evidence._streams import Allowance, Late, Refused, Source, Stream
from ncclcheck.evidence.source import Reading
from ncclcheck.units import bytes_text

ENDLESS = 64 << 30  # bytes read of one path: more is no log, and takes half an hour
MOST_FILES = 100_000  # under one path
MOST_FACTS = 1_000_000  # that are kept of all sources, before each gives few
_NAMED_SO = re.compile(r"rank|nccl|log\b|err|out\b|dmesg|kern|stack|trace|slurm|dump|spy", re.IGNORECASE)  # what tells most
_LEFT_OUT = frozenset({".git"})
WRITER_BOUND = 60.0  # seconds in which something must have come into a pipe
_POLL_MS = 200  # while a pipe's writer is waited for


@dataclass(frozen=True, slots=True)
class _Found:
    """A path to read. `given`: it was named on the command line, so it may also be a pipe."""

    path: str
    name: str
    given: bool = False
    nbytes: int = 0
    changed: float = 0.0  # when it was last written


def read(
    paths: Sequence[str],
    patience: float = workers.PATIENCE,
    bounds: Bounds | None = None,
    progress: Callable[[str, int], object] | None = None,
) -> Iterator[Reading]:
    """Every source under these paths, in the order of the paths and then of their names.

    A file given alone is called by its own name; what lies in a folder given alone, by its path in there. Of several
    paths, all names are relative to the folder that holds them all. What lies in an archive is called `bundle.tar.gz/member`.
    What cannot be read, or only in part, is a Reading with a `problem`. A source is given up when nothing is read of it for
    `patience` seconds; the writer of a pipe is waited for. What tells most is read first, should the time not be enough.
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

    def lost(job: int, loss: workers.Loss) -> Reading:
        each = found[job]
        size = f"; it has {bytes_text(each.nbytes)}" if loss.late and isinstance(each, _Found) and each.nbytes else ""
        rest = "; what else it holds was not read" if loss.gave_up and loss.name not in ("", each.name) else size
        return Reading(loss.name or each.name, "not read", problem=loss.why + rest, unsafe=not loss.late, unread=True)

    order = sorted(range(len(found)), key=lambda job: _telling(found[job]))
    room = MOST_FACTS
    for each in workers.Pool(len(found), work, lost, patience, bounds, order, meanwhile=registry.load_rules, progress=progress).results():
        room -= len(each.facts)
        yield each if room >= 0 else _shortened(each)


def _telling(found: _Found | Reading) -> tuple[bool, float]:
    """What is to be read first: logs, dumps and the like, then the rest; of each the newest."""
    if isinstance(found, Reading):
        return False, 0.0
    return not _NAMED_SO.search(found.name), -found.changed


def _shortened(reading: Reading) -> Reading:
    """The reading with the first few facts of each kind: more sources than that say the same, or are hostile."""
    count = Counter[str]()
    facts = [fact for fact in reading.facts if count.update((fact.kind,)) or count[fact.kind] <= text.FEW]
    if len(facts) == len(reading.facts):
        return reading
    said = f"all sources together say more than {MOST_FACTS} things; of each kind only the first {text.FEW} of this source were kept"
    return replace(reading, facts=facts, problem="; ".join(filter(None, [reading.problem, said])), unread=True)


def _begins(found: _Found | Reading) -> bytes:
    """The first byte of an ordinary file, if it can be read."""
    if isinstance(found, _Found) and Path(found.path).is_file():
        with contextlib.suppress(OSError), open(found.path, "rb") as stream:
            return stream.read(1)
    return b""


def _read(found: _Found, skip: int, watch: workers.Watch) -> Iterator[Reading]:
    if watch.bounds.over():
        yield Reading(found.name, "not read", problem=watch.bounds.why(), unread=True)
        return
    watch.until = watch.bounds.until(time.monotonic())  # its beginning may have to be waited for
    try:
        stream = _opened(found, watch)
    except OSError as error:
        if not skip:
            yield _not_read(found.name, f"it cannot be read: {error.strerror or error}")
        return
    with stream.file:
        allowance = Allowance(stream.size, lambda: watch.alive(stream.nbytes))
        for number, each in enumerate(_archives.sources(stream, found.name, allowance, stream.whole)):
            if number < skip:
                continue
            watch.begin(each.name)
            yield each if isinstance(each, Reading) else reading(each, watch.bounds, stream.share)
            if each.name != found.name and watch.bounds.over() and stream.share() != "all":
                yield Reading(found.name, "not read", problem=f"{watch.bounds.why()}; {stream.share()} of it was read", unread=True)
                return


def reading(each: Source, bounds: Bounds | None = None, share: Callable[[], str] = lambda: "a part") -> Reading:
    """Read one source, and say what is to be said about it. `share` says how much was read of the file that it came from."""
    bounds = bounds or Bounds()
    until = bounds.until(time.monotonic())
    stream, meter = _Timed(each, until), Meter(until)
    if until < math.inf:
        meter.start()
    result = source.read(stream, each.name, meter)
    late = ""
    if stream.late or meter.over:
        late = f"{bounds.why()}; its first {bytes_text(result.nbytes)} were read ({share()} of the file)"
    problems = [text for text in (each.problem, result.problem if not each.problem else "", each.note, late) if text]
    if not problems:
        return result
    unread = result.unread or each.late or bool(late)
    return replace(result, problem="; ".join(problems), unsafe=result.unsafe or each.unsafe, unread=unread)


class _Timed:
    """A stream that ends when the time is up."""

    def __init__(self, rest: Stream, until: float) -> None:
        self._rest, self._until = rest, until
        self.late = False  # something was left

    def read(self, size: int, /) -> bytes:
        piece = self._rest.read(size)
        self.late = self.late or (bool(piece) and time.monotonic() >= self._until)
        return b"" if self.late else piece


class _Input:
    """An open path that says whenever something was read of it, and ends where it is endless."""

    def __init__(self, file: io.FileIO, watch: workers.Watch) -> None:
        self.file, self._watch = file, watch
        self._status = os.fstat(file.fileno())
        self.nbytes = 0  # that came
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
        return max(self._status.st_size, self.nbytes)

    def share(self) -> str:
        """How much of it was read: `41 %`, or `all`."""
        if self._ended or (self.whole and self.nbytes >= self._status.st_size):
            return "all"
        return f"{100 * self.nbytes // max(self.size(), 1)} %" if self.whole else "a part"

    def read(self, size: int, /) -> bytes:
        """At most this many bytes. Raises Refused where there is no end to them, Late where there is no time."""
        piece = None if not self._ended else b""
        while piece is None:
            piece = self._some(size)
            self._watch.alive(self.nbytes)
            if piece is None and time.monotonic() >= self._watch.until:
                raise Late(f"{self._watch.bounds.why()}; nothing more was written into it")
        self._ended = not piece  # a terminal would go on after its end
        self.nbytes += len(piece)
        if self.nbytes > ENDLESS:
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
            yield _found(path, printable_name(name), given=True)


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
                yield _found(entry.path, printable_name(name))
        waiting += reversed(folders)


def _found(path: str, name: str, given: bool = False) -> _Found:
    try:
        status = os.stat(path)
    except OSError:
        return _Found(path, name, given)
    return _Found(path, name, given, status.st_size, status.st_mtime)


def _inside(target: str, top: str) -> bool:
    return os.path.commonpath([target, os.path.realpath(top)]) == os.path.realpath(top)


def _not_read(name: str, problem: str) -> Reading:
    return Reading(printable_name(name), "not read", problem=problem)

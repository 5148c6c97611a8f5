"""A rank's record of itself: text lines per step and one slot of shared memory per iteration, which outlive the rank.

The slot is a fixed-size record in a memory-mapped file: writing it costs about a microsecond, and the map survives
SIGKILL, SIGSTOP and a hang. Only ranks write here; the agent reads, and needs no cooperation from a stuck rank.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck.model import Fact, Sample, Step

# sequence lock, pid, rank, collective seq, bytes, entered, left, bound, flags, progress, name, group, dtype, sequence lock
_RECORD = struct.Struct("<Q i i q q d d d I Q 64s 32s 16s Q")
_LOCK = struct.Struct("<Q")
_TAIL = _RECORD.size - _LOCK.size
RECORD_BYTES = 256
MAX_LINE = 2**16  # bytes of one event in the text journal
SLOT_BYTES = 2 * RECORD_BYTES  # written in turn: a rank that is killed or stopped amid one leaves the other whole
_LOCAL, _OPAQUE, _DONE = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one rank is. Times are the host's monotonic clock in seconds.

    `bound` is how many seconds without progress anywhere are normal in this step. `opaque` marks a step whose inside
    announces nothing (an engine loading); CPU time and log growth count as its progress. `done`: the rank left in order.
    """

    pid: int
    rank: int
    seq: int
    nbytes: int
    entered: float
    left: float | None
    bound: float
    local: bool
    opaque: bool
    done: bool
    writes: int  # changes with every write: two equal values mean no progress
    name: str
    group: str
    dtype: str

    @property
    def step(self) -> Step:
        """The step this slot announces."""
        return Step(self.rank, self.seq, self.name, self.entered, self.left, self.group, self.nbytes, self.dtype, self.local)


class SlotWriter:
    """The rank's side of the shared map."""

    def __init__(self, path: Path, index: int, rank: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._offset = index * SLOT_BYTES
        self._rank = rank
        self._pid = os.getpid()
        self._writes = 0

    def write(self, seq: int, name: bytes, nbytes: int, entered: float, left: float, bound: float, flags: int, group: bytes, dtype: bytes) -> None:
        """Publish where this rank is; `left` 0.0 means inside."""
        self._writes = count = self._writes + 1
        where = (self._pid, self._rank, seq, nbytes, entered, left, bound, flags, count, name, group, dtype)
        _RECORD.pack_into(self._map, self._offset + count % 2 * RECORD_BYTES, count, *where, count)


def create_slots(path: Path, count: int) -> None:
    """Make the map for `count` ranks of this node; the agent does this before it starts them."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, count * SLOT_BYTES)  # on a full disk an error here, not a SIGBUS in a rank


class SlotReader:
    """The agent's side of the shared map."""

    def __init__(self, path: Path, count: int) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), count * SLOT_BYTES, access=mmap.ACCESS_READ)
        self._count = count

    def read(self) -> list[Slot | None]:
        """One entry per local rank; None where the rank has not announced itself (or writes all the time: ask again)."""
        return [self._slot(index * SLOT_BYTES) for index in range(self._count)]

    def _slot(self, offset: int) -> Slot | None:
        for _ in range(3):
            whole = [record for half in (0, RECORD_BYTES) if (record := self._record(offset + half))]
            if whole:
                break
        else:
            return None
        _, pid, rank, seq, nbytes, entered, left, bound, flags, writes, name, group, dtype, _ = max(whole)
        text = [raw.rstrip(b"\0").decode("utf-8", "replace") for raw in (name, group, dtype)]
        local, opaque, done = (bool(flags & flag) for flag in (_LOCAL, _OPAQUE, _DONE))
        return Slot(pid, rank, seq, nbytes, entered, left or None, bound, local, opaque, done, writes, *text)

    def _record(self, offset: int) -> tuple[Any, ...] | None:
        """A record that nobody wrote to while it was read: its end, which is written last, is read first, and its beginning last."""
        (end,) = _LOCK.unpack_from(self._map, offset + _TAIL)
        record = _RECORD.unpack_from(self._map, offset)
        (beginning,) = _LOCK.unpack_from(self._map, offset)
        return record if end == beginning != 0 else None


class Journal:
    """The rank's own account: `rank3.jsonl` (a line per event) and its slot. Both are local files."""

    def __init__(self, folder: Path | None, rank: int, local_rank: int) -> None:
        """`folder` is the launch's folder made by the agent; None keeps nothing (a probe run alone)."""
        self._file = open(folder / f"rank{rank}.jsonl", "ab", buffering=0) if folder else None  # noqa: SIM115 (open as long as the rank lives)
        self._slot = SlotWriter(folder / "slots", local_rank, rank) if folder else None
        self.seq = 0
        self._now: tuple[bytes, int, float, float, int, bytes, bytes] = (b"", 0, 0.0, 2.0, 0, b"", b"")

    def enter(
        self, name: str, *, nbytes: int = 0, bound: float = 2.0, local: bool = False, opaque: bool = False, group: str = "world", dtype: str = ""
    ) -> None:
        """Announce an operation before entering it. A collective (not `local`) advances seq."""
        if not local:
            self.seq += 1
        flags = (_LOCAL if local else 0) | (_OPAQUE if opaque else 0)
        self._now = (name.encode()[:64], nbytes, time.monotonic(), bound, flags, group.encode()[:32], dtype.encode()[:16])
        self._publish(0.0)

    def again(self) -> None:
        """Announce the next iteration of the same operation: one memory write and nothing else."""
        if not self._now[4] & _LOCAL:
            self.seq += 1
        name, nbytes, _, bound, flags, group, dtype = self._now
        self._now = (name, nbytes, time.monotonic(), bound, flags, group, dtype)
        self._publish(0.0)

    def expect(self, bound: float) -> None:
        """From the next announcement on, `bound` seconds without progress are normal in this operation."""
        name, nbytes, entered, _, flags, group, dtype = self._now
        self._now = (name, nbytes, entered, bound, flags, group, dtype)

    def leave(self) -> None:
        """Announce that the operation's completion was seen by the host."""
        self._publish(time.monotonic())

    def done(self) -> None:
        """The rank leaves in order."""
        name, nbytes, entered, bound, flags, group, dtype = self._now
        self._now = (name, nbytes, entered, bound, flags | _DONE, group, dtype)
        self._publish(time.monotonic())
        self.line("done")

    def line(self, kind: str, **fields: Any) -> None:
        """Write one event; on disk before the next instruction runs. Raises ValueError for one that is too large."""
        if self._file:
            record = {"kind": kind, "at": round(time.monotonic(), 6), "seq": self.seq, **fields}
            data = msgspec.json.encode(record, enc_hook=str)
            if len(data) > MAX_LINE:
                raise ValueError(f"a {kind} of {len(data)} bytes; a journal line holds at most {MAX_LINE}")
            self._file.write(data + b"\n")

    def _publish(self, left: float) -> None:
        if self._slot:
            name, nbytes, entered, bound, flags, group, dtype = self._now
            self._slot.write(self.seq, name, nbytes, entered, left, bound, flags, group, dtype)


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a rank's text journal, with where it stands."""

    rank: int
    kind: str
    at: float
    seq: int
    fields: dict[str, Any]
    file: str
    number: int


class Tail:
    """Follow the text journals of one launch; `more()` yields what was added since the last call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, tuple[int, int]] = {}  # path -> (bytes read, lines read)

    def more(self) -> Iterator[Line]:
        """New complete lines. A line that is not an event (a torn write) is skipped."""
        for path in sorted(self._folder.glob("rank*.jsonl")):
            offset, number = self._offsets.get(path, (0, 0))
            with open(path, "rb") as file:
                file.seek(offset)
                block = file.read()
            for raw in block[: block.rfind(b"\n") + 1].splitlines(keepends=True):
                offset, number = offset + len(raw), number + 1
                try:
                    record = msgspec.json.decode(raw, type=dict[str, Any])
                    kind, at, seq = record.pop("kind"), record.pop("at"), record.pop("seq")
                except (msgspec.DecodeError, KeyError):
                    continue
                yield Line(int(path.stem[4:]), kind, at, seq, record, path.name, number)
            self._offsets[path] = offset, number


def sample_fields(sample: Sample) -> dict[str, Any]:
    """A sample as it stands in the journal and in JSON: its fields plus the derived figures."""
    return {
        "name": sample.name,
        "nbytes": sample.nbytes,
        "dtype": sample.dtype,
        "ranks": sample.ranks,
        "bus_factor": sample.bus_factor,
        "correct": sample.correct,
        "seconds": [round(second, 9) for second in sample.seconds],
        "latency_min": min(sample.seconds),
        "latency_median": sample.median,
        "latency_p99": sample.percentile(99),
        "algbw": sample.algbw,
        "busbw": sample.busbw,
    }


def fact_fields(fact: Fact) -> dict[str, Any]:
    """A fact as it stands in the journal."""
    return {"fact": fact.kind, "fields": dict(fact.fields)}

"""A rank's record of itself: text lines per step and one slot of shared memory per iteration, which outlive the rank.

The slot lies in a memory-mapped file: announcing one of many iterations costs half a microsecond, and the map survives
SIGKILL, SIGSTOP and a hang. Only ranks write here; the agent reads, and needs no cooperation from a stuck rank.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from ncclcheck import history, safe_files, secrets
from ncclcheck.model import Fact, Sample, Step
from ncclcheck.units import bytes_text

# First what each announcement changes, word by word: the announcement that was left, the one that was entered, when, when left, worked, waited.
# Then two records of what the operation is: lock, pid, rank, bytes, bound, signature, flags, its first announcement, the seq of that, name,
# group, dtype, lock. They are written in turn, and a new one counts once its announcement is entered: a rank that is killed or stopped amid
# writing leaves what was before.
_LEFT, _ENTERED, _ENTERED_AT, _LEFT_AT, _WORKED, _WAITED = range(6)
_NOW = struct.Struct("<q q d d d d")
_RECORD, _LOCK = struct.Struct("<Q i i q d Q Q q q 64s 32s 16s Q"), struct.Struct("<Q")
_TAIL = _RECORD.size - _LOCK.size
NOW_BYTES = 64
RECORD_BYTES = 256
SLOT_BYTES = NOW_BYTES + 2 * RECORD_BYTES
MAX_LINE = 2**16  # bytes of one event in the text journal
_LOCAL, _OPAQUE, _DONE = 1, 2, 4
_clock = time.monotonic  # on Linux the clock of perf_counter, too
What = tuple[int, float, int, int, bytes, bytes, bytes]  # bytes, bound, signature, flags, name, group, dtype


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one rank is. Times are the host's monotonic clock in seconds; of what is repeated, those of the first iteration until the last is over.

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
    worked: float  # seconds outside of collectives since the first one
    waited: float  # seconds inside of them
    signature: int  # of the last collective: equal on all ranks that issue the same
    since: int  # seq of the first one of a row of the same: the history may not hold them yet
    writes: int  # changes with every write: two equal values mean no progress
    name: str
    group: str
    dtype: str

    @property
    def step(self) -> Step:
        """The step this slot announces."""
        return Step(self.rank, self.seq, self.name, self.entered, self.left, self.group, self.nbytes, self.dtype, self.local)


class SlotWriter:
    """The rank's side of the shared map. `integers` and `doubles` are its words: announcements are stored there."""

    def __init__(self, path: Path | None, index: int, rank: int) -> None:
        """None: it writes to memory that nobody else sees."""
        with open(path, "r+b") if path else contextlib.nullcontext() as file:
            whole = memoryview(mmap.mmap(file.fileno() if file else -1, 0 if file else (index + 1) * SLOT_BYTES))
        slot = whole[index * SLOT_BYTES :][:SLOT_BYTES]
        self.integers, self.doubles = slot[:NOW_BYTES].cast("q"), slot[:NOW_BYTES].cast("d")
        self._records = slot[NOW_BYTES:]
        self._ids = os.getpid(), rank
        self._written = self._first = self._half = 0

    def describe(self, what: What, first: int, seq: int) -> None:
        """Say what the operation is from announcement number `first` on, the next one, which is number `seq` of the collectives."""
        if first != self._first:  # else the last record has not counted yet
            self._first, self._half = first, 1 - self._half
        self._written = count = self._written + 1
        _RECORD.pack_into(self._records, self._half * RECORD_BYTES, count, *self._ids, *what[:4], first, seq, *what[4:], count)


def create_maps(folder: Path, count: int) -> None:
    """Make the shared maps for `count` ranks of this node; the agent does this before it starts them."""
    for name, each in (("slots", SLOT_BYTES), ("calls", history.RANK_BYTES)):
        with open(folder / name, "wb", opener=safe_files.private) as file:
            os.posix_fallocate(file.fileno(), 0, count * each)  # on a full disk an error here, not a SIGBUS in a rank


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
        halves = [offset + NOW_BYTES, offset + NOW_BYTES + RECORD_BYTES]
        for _ in range(5):
            locks = self._locks(halves)
            records = [self._record(half) for half in halves]
            # what was left is read first: a leave is never seen without its enter
            left_number, number, entered, left, worked, waited = _NOW.unpack_from(self._map, offset)
            known = [record for record in records if record[0] == record[-1] != 0 and record[7] <= number]
            if known and self._locks(halves) == locks:  # nothing was written meanwhile
                break
        else:
            return None
        _, pid, rank, nbytes, bound, signature, flags, first, seq, name, group, dtype, _ = max(known)
        local, opaque, done = (bool(flags & flag) for flag in (_LOCAL, _OPAQUE, _DONE))
        outside = left_number == number
        return Slot(
            pid=pid,
            rank=rank,
            seq=seq if local else seq + number - first,
            nbytes=nbytes,
            entered=entered,
            left=left if outside else None,
            bound=bound,
            local=local,
            opaque=opaque,
            done=done,
            worked=worked,
            waited=waited,
            signature=signature,
            since=seq,
            writes=2 * number + outside,
            name=_text(name),
            group=_text(group),
            dtype=_text(dtype),
        )

    def _record(self, offset: int) -> tuple[Any, ...]:
        return _RECORD.unpack_from(self._map, offset)

    def _locks(self, halves: Sequence[int]) -> list[tuple[Any, ...]]:
        return [_LOCK.unpack_from(self._map, half + at) for half in halves for at in (0, _TAIL)]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


class Journal:
    """The rank's own account: `rank3.jsonl` (a line per event), its slot, and its history of calls. All are local files."""

    def __init__(self, folder: Path | None, rank: int, local_rank: int) -> None:
        """`folder` is the launch's folder made by the agent; None keeps nothing (a probe run alone)."""
        self._file = open(folder / f"rank{rank}.jsonl", "ab", 0, opener=safe_files.private) if folder else None  # noqa: SIM115 (open as long as the rank lives)
        self._slot = SlotWriter(folder / "slots" if folder else None, local_rank, rank)
        self._calls = history.words(folder / "calls" if folder else None, local_rank)
        self._signatures: dict[tuple[str, ...], int] = {}
        self._signature = 0  # of the last collective
        self.seq = 0
        self._what: What = (0, 2.0, 0, 0, b"", b"", b"")
        self._local = False  # the operation is none of all ranks
        self._number = 0  # of the last announcement
        self._entered = 0.0
        self._left = 0.0  # when the last collective was left; 0.0: there was none, or one is open
        self._worked = self._waited = 0.0

    def enter(
        self,
        name: str,
        *,
        nbytes: int = 0,
        bound: float = 2.0,
        local: bool = False,
        opaque: bool = False,
        group: str = "world",
        dtype: str = "",
        detail: str = "",
    ) -> None:
        """Announce an operation before entering it. A collective (not `local`) advances seq.

        `detail` is what else must be equal on all ranks: the shape, the root, what is summed.
        """
        now = _clock()
        self._local = local
        if not local:
            self._signature = self._sign(name, group, dtype, str(nbytes), detail)
            self._issue(now)
        flags = (_LOCAL if local else 0) | (_OPAQUE if opaque else 0)
        self._describe((nbytes, bound, self._signature, flags, name.encode()[:64], group.encode()[:32], dtype.encode()[:16]), self.seq)
        self._announce(now)

    def again(self) -> None:
        """Announce the next iteration of the same operation: a few writes to memory and nothing else."""
        now = _clock()
        if not self._local:
            self._issue(now)
        self._announce(now)

    def repeat(
        self, operation: Callable[[], object], iterations: int, before: Callable[[int], None] | None, *, opened: bool, slow: float
    ) -> list[float]:
        """Run an operation that returns when it is done, announcing each iteration; the seconds of each. One of more than `slow` seconds is the last.

        `opened`: the first belongs to the announcement that is open. `before` is called with the seq that an iteration will have.
        This loop is between the collectives that are measured, so it makes do with one store for each (tests/bench/announcements.py): an iteration
        is announced as left when the next is, or before anything that may take long.
        """
        integers = self._slot.integers
        entered, step = self._number, 0 if self._local else 1
        first = entered if opened else entered + 1
        seconds: list[float] = []
        began = _clock()
        try:
            for number in range(first, first + iterations):
                if before and number != entered:
                    integers[_LEFT] = number - 1
                    before(self.seq + (number - entered) * step)
                integers[_ENTERED] = number
                start = _clock()
                operation()
                took = _clock() - start
                seconds.append(took)
                if took > slow:
                    break
        finally:
            number = integers[_ENTERED]  # the last that was
            seq = self.seq + (number - entered) * step
            if step:
                history.fill(self._calls, max(self.seq + 1, seq - history.KEPT + 1), seq, self._signature)
            self.seq, self._number = seq, number
        if seconds:
            integers[_LEFT] = number
        if seconds and step:
            inside, end = sum(seconds), start + took
            self._waited += inside
            self._worked += end - (began if opened else self._left or began) - inside
            self._left = self._slot.doubles[_LEFT_AT] = end
            self._account()
        return seconds

    def expect(self, bound: float) -> None:
        """From the next announcement on, `bound` seconds without progress are normal in this operation."""
        nbytes, _, *rest = self._what
        self._describe(cast(What, (nbytes, bound, *rest)), self.seq + (not self._local))

    def leave(self) -> None:
        """Announce that the operation's completion was seen by the host."""
        now = _clock()
        if not self._local:
            if not self._left:  # else it was announced already
                self._waited += now - self._entered
            self._left = now
            self._account()
        self._slot.doubles[_LEFT_AT] = now
        self._slot.integers[_LEFT] = self._number

    def done(self) -> None:
        """The rank leaves in order."""
        nbytes, bound, signature, flags, *texts = self._what
        self._local = True  # an announcement that is none of a collective
        self._describe(cast(What, (nbytes, bound, signature, flags | _DONE, *texts)), self.seq)
        self._announce(_clock())
        self.leave()
        self.line("done")

    def line(self, kind: str, **fields: Any) -> None:
        """Write one event; on disk before the next instruction runs. Raises ValueError for one that is too large."""
        if self._file:
            record = {"kind": kind, "at": round(time.monotonic(), 6), "seq": self.seq, **secrets.mask_all(fields)}
            data = msgspec.json.encode(record, enc_hook=str)
            if len(data) > MAX_LINE:
                raise ValueError(f"a {kind} of {len(data)} bytes; a journal line holds at most {MAX_LINE}")
            self._file.write(data + b"\n")

    def _sign(self, *call: str) -> int:
        """The number that stands for a call in the history; what it means is said once, in a line."""
        signature = self._signatures.get(call)
        if signature is None:
            signature = self._signatures[call] = history.signature(call)
            name, group, dtype, nbytes, detail = call
            size = bytes_text(int(nbytes)) if int(nbytes) else ""
            text = " ".join(filter(None, (name, detail, dtype, size, f"of {group}" if group != "world" else "")))
            self.line("call", signature=signature, text=text)
        return signature

    def _issue(self, now: float) -> None:
        self.seq = seq = self.seq + 1
        self._calls[seq % history.KEPT] = self._signature
        if self._left:
            self._worked += now - self._left
            self._left = 0.0
            self._account()

    def _describe(self, what: What, seq: int) -> None:
        """It counts from the next announcement on, which has this seq."""
        self._what = what
        self._slot.describe(what, self._number + 1, seq)

    def _announce(self, now: float) -> None:
        self._entered = self._slot.doubles[_ENTERED_AT] = now
        self._number = self._slot.integers[_ENTERED] = self._number + 1

    def _account(self) -> None:
        self._slot.doubles[_WORKED], self._slot.doubles[_WAITED] = self._worked, self._waited


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

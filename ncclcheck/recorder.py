"""What a flight recorder's dump holds, small enough to keep that of every rank, and where the ranks' sequences differ."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ncclcheck.model import Evidence

SCHEDULED, STARTED, COMPLETED, ABORTED = range(4)
STATES = ("scheduled", "started", "completed", "completed after its time-out")


class Signature(NamedTuple):
    """What a call was: in words, what every member of the group must agree on, and for send and recv the (source, target) in the group."""

    operation: str  # all_reduce
    text: str  # [1048576] Float
    must: str  # all_reduce 1048576 Float
    pair: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """One rank's calls in one group, oldest first, as columns of equal length."""

    seqs: array[int]  # collective_seq_id, or p2p_seq_id for send and recv; strictly increasing for collectives
    kinds: array[int]  # index into the dump's signatures
    states: bytes
    records: array[int]  # place in the dump's entries, from 1

    def __len__(self) -> int:
        return len(self.seqs)

    def find(self, seq: int) -> int | None:
        """The index of a sequence number."""
        at = bisect_left(self.seqs, seq)
        return at if at < len(self.seqs) and self.seqs[at] == seq else None

    def pending(self) -> int | None:
        """The index of the oldest call that did not complete in time."""
        at = len(self.states) - len(self.states.lstrip(bytes([COMPLETED])))
        return at if at < len(self.states) else None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A process group as one rank saw it. `enqueued` and `completed` are its last sequence numbers; None = not told.

    `countable` is False where its collectives have no numbers to compare: before torch 2.4, once a ring with sends and receives wrapped.
    """

    name: str
    desc: str
    ranks: tuple[int, ...] | None
    enqueued: int | None
    completed: int | None
    collectives: Calls
    p2p: Calls
    countable: bool = True

    def __str__(self) -> str:
        return self.desc if self.desc not in ("", "undefined") else f"group {self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """One rank's dump."""

    name: str
    rank: int | None
    host: str | None
    groups: Mapping[str, Group]
    signatures: tuple[Signature, ...]
    sites: Mapping[int, str]  # record -> the user's line that issued it, for some records

    def quote(self, calls: Calls, at: int) -> Evidence:
        """One record, in one line."""
        kind, record, seq = self.signatures[calls.kinds[at]], calls.records[at], calls.seqs[at]
        site = f", {self.sites[record]}" if record in self.sites else ""
        return Evidence(self.name, record, f"{kind.operation} #{seq} {kind.text} {STATES[calls.states[at]]}{site}")

    def newest(self) -> Evidence:
        """The last record."""
        every = [(calls.records[-1], calls) for group in self.groups.values() for calls in (group.collectives, group.p2p) if len(calls)]
        if not every:
            return Evidence(self.name, 0, f"no record in {self.name}")
        calls = max(every, key=lambda pair: pair[0])[1]
        return self.quote(calls, len(calls) - 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first sequence number at which members of a group issued different calls. `odd` is the minority; with a tie, everybody."""

    group: str
    seq: int
    odd: tuple[int, ...]
    common: Signature | None  # what the majority issued; None with a tie
    issued: Mapping[int, Signature]  # rank -> what it issued there


Key = tuple[str, tuple[int, ...] | None]  # a group over all dumps: split groups share a name, so its members belong to its identity


@lru_cache(maxsize=2)
def by_rank(dumps: tuple[Dump, ...]) -> Mapping[int, Dump]:
    """The dumps whose rank is known or follows from the only one that is missing; of two of one rank the one that got further."""
    result: dict[int, Dump] = {}
    for dump in dumps:
        if dump.rank is not None and (dump.rank not in result or _reach(dump) > _reach(result[dump.rank])):
            result[dump.rank] = dump
    nameless = [dump for dump in dumps if dump.rank is None]
    members = {rank for dump in dumps for group in dump.groups.values() for rank in group.ranks or ()}
    if len(nameless) == 1 and len(missing := members - set(result)) == 1:
        only = missing.pop()
        result[only] = replace(nameless[0], rank=only)
    return result


def _reach(dump: Dump) -> int:
    return max((group.enqueued or 0 for group in dump.groups.values()), default=0)


@lru_cache(maxsize=2)
def members(dumps: tuple[Dump, ...]) -> Mapping[Key, Mapping[int, Group]]:
    """Every group with the ranks that have a dump and know it."""
    result: dict[Key, dict[int, Group]] = {}
    for rank, dump in by_rank(dumps).items():
        for group in dump.groups.values():
            if group.ranks is None or rank in group.ranks:
                result.setdefault((group.name, group.ranks), {})[rank] = group
    return result


@lru_cache(maxsize=2)
def differences(dumps: tuple[Dump, ...]) -> tuple[Difference, ...]:
    """Where sequences differ, per group. Only sequence numbers that are still in both rings are compared."""
    ranked = by_rank(dumps)
    found = (
        _difference(name, {rank: (ranked[rank], group.collectives) for rank, group in groups.items()}) for (name, _), groups in members(dumps).items()
    )
    return tuple(difference for difference in found if difference is not None)


def _difference(name: str, calls: Mapping[int, tuple[Dump, Calls]]) -> Difference | None:
    same: dict[tuple[tuple[Signature, ...], bytes, bytes], list[int]] = {}  # ranks with equal columns are compared once
    for rank, (dump, of) in calls.items():
        if len(of):
            same.setdefault((dump.signatures, of.seqs.tobytes(), of.kinds.tobytes()), []).append(rank)
    demands: dict[str, int] = {}
    rows: list[tuple[int, array[int], list[int]]] = []  # (first seq, what each seq demands: 0 where there is no record, ranks)
    for ranks in same.values():
        dump, of = calls[ranks[0]]
        numbers = [demands.setdefault(signature.must, len(demands) + 1) for signature in dump.signatures]
        rows.append((of.seqs[0], _dense(of, numbers), ranks))
    rows.sort(key=lambda row: (-len(row[2]), -len(row[1])))
    seqs = [seq for row in rows[1:] if (seq := _first(rows[0], row)) is not None]
    if not seqs:
        return None
    seq = min(seqs)
    issued = {rank: signature for rank, (dump, of) in calls.items() if (signature := _at(dump, of, seq)) is not None}
    counts = Counter(signature.must for signature in issued.values())
    (common, most), (_, second) = counts.most_common(2)
    tie = most == second
    odd = tuple(sorted(rank for rank, signature in issued.items() if tie or signature.must != common))
    return Difference(name, seq, odd, None if tie else next(s for s in issued.values() if s.must == common), issued)


def _dense(calls: Calls, numbers: Sequence[int]) -> array[int]:
    """What each sequence number from the first to the last demands."""
    demanded = array("I", (numbers[kind] for kind in calls.kinds))
    span = calls.seqs[-1] - calls.seqs[0] + 1
    if span == len(calls) or span > 64 * len(calls):  # too many holes to be one sequence: only its oldest stretch is compared
        return demanded[: next((at for at, seq in enumerate(calls.seqs) if seq != calls.seqs[0] + at), len(calls))]
    dense = array("I", bytes(4 * span))
    for seq, demand in zip(calls.seqs, demanded, strict=True):
        dense[seq - calls.seqs[0]] = demand
    return dense


def _first(one: tuple[int, array[int], list[int]], other: tuple[int, array[int], list[int]]) -> int | None:
    """The first sequence number in both rows at which they differ; where one has no record there is nothing to compare."""
    low, high = max(one[0], other[0]), min(one[0] + len(one[1]), other[0] + len(other[1]))
    left, right = one[1][low - one[0] : max(high - one[0], 0)], other[1][low - other[0] : max(high - other[0], 0)]
    if left == right:
        return None
    return next((low + at for at, (a, b) in enumerate(zip(left, right, strict=True)) if a != b and a and b), None)


def _at(dump: Dump, calls: Calls, seq: int) -> Signature | None:
    at = calls.find(seq)
    return None if at is None else dump.signatures[calls.kinds[at]]

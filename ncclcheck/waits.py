"""Who waits for whom: from the ranks' places in each process group's sequence to those that wait for nobody."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ncclcheck import positions, recorder
from ncclcheck.edges import Edges
from ncclcheck.model import Evidence, Run
from ncclcheck.positions import Position
from ncclcheck.recorder import COMPLETED, Dump, Group, Key, Signature


@dataclass(frozen=True, slots=True)
class Wait:
    """Ranks of one group that wait in a call, and the members that have not issued it (`behind`) or of which nothing is known (`unknown`)."""

    group: str
    seq: int
    what: str
    waiting: tuple[int, ...]
    behind: tuple[int, ...]
    unknown: tuple[int, ...]
    evidence: tuple[Evidence, ...]
    inside: Mapping[int, int]  # rank -> number of the oldest call that it is inside of

    def __str__(self) -> str:
        who = f"rank {self.waiting[0]} waits" if len(self.waiting) == 1 else f"{len(self.waiting)} ranks wait"
        return f"{who} in {self.what or 'the collective'} #{self.seq} of {self.group}"


@dataclass(frozen=True, slots=True)
class Message:
    """A send or recv of `rank` that its peer has no counterpart for (`other` is None), or one of another size."""

    rank: int
    peer: int
    sends: bool
    other: Signature | None
    evidence: Evidence

    def __str__(self) -> str:
        return f"rank {self.rank} {'sends to' if self.sends else 'receives from'} rank {self.peer}"


@dataclass(frozen=True, slots=True)
class Waits:
    """What follows from the sequence numbers of all groups together."""

    waits: tuple[Wait, ...]
    messages: tuple[Message, ...]  # sends and receives that wait for a peer which does not answer them
    waiting: frozenset[int]  # ranks inside some call
    idle: tuple[int, ...]  # ranks that others wait for, and that wait for nobody
    absent: tuple[int, ...]  # ranks that others wait for, and of which neither a dump nor a position is known
    circle: tuple[int, ...]  # ranks that wait for each other
    odd: int | None  # the one of the circle that most ranks wait for
    stale: tuple[int, ...]  # ranks whose dump is older than the others': the job went on while they were written
    held: Wait | None  # a call that all its members are in, and at which every chain of waits ends
    positions: Mapping[int, Position]  # of each rank, in the group that tells most

    def of(self, rank: int) -> Wait | None:
        """The wait in which most ranks wait for this one."""
        return max((wait for wait in self.waits if rank in wait.behind or rank in wait.unknown), key=lambda wait: len(wait.waiting), default=None)


Places = Mapping[Key, Mapping[int, Position]]


def of(run: Run) -> Waits:
    """The waits of a run, from its flight recorders and from what its watchdogs say."""
    return run.once(_of)


def _of(run: Run) -> Waits:
    dumps = recorder.by_rank(tuple(run.dumps))
    seen = recorder.members(tuple(run.dumps))
    told = positions.of(run, dumps, seen)
    shared = [(places, _shared(places)) for places in told.values()]
    stale = {rank for places, newest in shared for rank, place in places.items() if rank in dumps and place.enqueued < newest}
    groups = {key: {rank: place for rank, place in places.items() if rank not in stale} for key, places in told.items()}
    of_key = {key: wait for key, places in groups.items() if (wait := _wait(key, places, stale, run)) is not None}
    waits = tuple(of_key.values())
    messages = () if stale else tuple(_messages(dumps, seen))
    sending = {rank for rank, dump in dumps.items() if any(group.p2p.pending() is not None for group in dump.groups.values())}
    sending |= {fact.rank for fact in run.of("timeout") if fact.rank is not None and positions.message(fact)}
    waiting = frozenset(sending | {rank for places in groups.values() for rank, place in places.items() if place.pending is not None})
    known = {rank for places in groups.values() for rank in places} | set(dumps)
    edges = Edges(groups.values(), ((message.rank, message.peer) for message in messages if message.other is None))
    heads = _heads(groups)
    waited = {rank for wait in waits for rank in wait.behind} | {message.peer for message in messages if message.other is None}
    idle = () if stale else tuple(sorted(rank for rank in waited - waiting if rank in known))
    circle = () if stale or idle else edges.circle()
    explained = [not edges.waiting.isdisjoint(wait.behind) for wait in waits]  # its members wait elsewhere: so the end of the chain is there
    unknown = {rank for wait, elsewhere in zip(waits, explained, strict=True) if not elsewhere for rank in wait.unknown}
    unknown |= {rank for rank in waited if rank not in known}
    unknown = set() if stale or idle or circle else unknown - waiting
    if not (stale or idle or circle or unknown):
        circle = edges.circle(_queued(groups, heads, edges))
    return Waits(
        waits,
        messages,
        waiting,
        idle,
        tuple(sorted(unknown - dumps.keys())),
        circle,
        edges.odd(circle),
        tuple(sorted(stale)),
        None if stale or idle or circle or unknown else _held(of_key, heads, edges),
        _most_telling(groups),
    )


def _shared(places: Mapping[int, Position]) -> int:
    """The newest call that somebody completed and that nobody completes before all have issued it."""
    return max((place.shared for place in places.values()), default=0)


def _queued(groups: Places, heads: Mapping[int, Key], edges: Edges) -> Iterator[tuple[int, int]]:
    """Who waits for whom to begin a call that stands behind another one there."""
    for key, places in groups.items():
        later: dict[int, list[int]] = {}
        for rank, place in places.items():
            if place.pending is not None and (heads[rank] is not key or place.record is None) and rank in edges.waiting:
                later.setdefault(place.pending, []).append(rank)
        for rank, place in places.items():
            if place.pending is not None and heads[rank] is key and rank in edges.waited:
                yield from ((rank, peer) for peer in later.get(place.pending, ()) if edges.between(peer, rank))


def _heads(groups: Places) -> dict[int, Key]:
    """The group of the oldest call that each rank is inside of."""
    oldest: dict[int, tuple[float, Key]] = {}
    for key, places in groups.items():
        for rank, place in places.items():
            order = math.inf if place.record is None else place.record
            if place.pending is not None and (rank not in oldest or order < oldest[rank][0]):
                oldest[rank] = (order, key)
    return {rank: key for rank, (_, key) in oldest.items()}


def _held(waits: Mapping[Key, Wait], heads: Mapping[int, Key], edges: Edges) -> Wait | None:
    """The oldest call of all who wait for nobody to issue theirs, if it is one and the same."""
    keys = {id(key): key for rank, key in heads.items() if rank not in edges.waiting}  # by id: to hash the members for every rank is slow
    wait = waits[keys.popitem()[1]] if len(keys) == 1 else None
    return None if wait is None or wait.behind or wait.unknown else wait


def _most_telling(groups: Places) -> Mapping[int, Position]:
    result: dict[int, Position] = {}
    for places in groups.values():
        for rank, place in places.items():
            if rank not in result or (place.pending is not None and result[rank].pending is None):
                result[rank] = place
    return result


def _wait(key: Key, places: Mapping[int, Position], stale: Container[int], run: Run) -> Wait | None:
    pending = {rank: place.pending for rank, place in places.items() if place.pending is not None}
    if not pending:
        return None
    name, ranks = key
    behind = tuple(sorted(rank for rank, place in places.items() if place.pending is None and place.enqueued < max(pending.values())))
    seq = max(pending.values()) if behind else min(pending.values())
    waiting = tuple(sorted(rank for rank, at in pending.items() if not behind or at <= seq))
    unknown = tuple(rank for rank in ranks or () if rank not in places and rank not in stale)
    first = [places[rank] for rank in waiting if pending[rank] == seq]
    what = next((place.what for place in first if place.what), "")
    return Wait(_label(name, run), seq, what, waiting, behind, unknown, tuple(place.evidence for place in first[:4]), pending)


def _label(name: str, run: Run) -> str:
    return next((str(group) for dump in run.dumps if (group := dump.groups.get(name)) is not None), name)


def _messages(dumps: Mapping[int, Dump], members: Mapping[Key, Mapping[int, Group]]) -> Iterable[Message]:
    """The oldest open send or recv of each rank with each peer that has no open counterpart there, or one of another size."""
    openings: dict[tuple[Key, int, int, bool], tuple[int, Signature, Evidence]] = {}
    for key, seen in members.items():
        ranks = key[1]
        for rank, group in seen.items():
            calls = group.p2p
            for at, state in enumerate(calls.states):
                signature = dumps[rank].signatures[calls.kinds[at]]
                if state == COMPLETED or signature.pair is None:
                    continue
                source, target = (ranks[end] if ranks and end < len(ranks) else end for end in signature.pair)
                opening = (rank, signature, dumps[rank].quote(calls, at))
                openings.setdefault((key, source, target, signature.operation.startswith("send")), opening)
    for (key, source, target, sends), (rank, signature, evidence) in openings.items():
        other = openings.get((key, source, target, not sends))
        if other is None:
            yield Message(rank, target if sends else source, sends, None, evidence)
        elif sends and other[1].must != signature.must and other[1].must and signature.must:
            yield Message(rank, target, sends, other[1], evidence)

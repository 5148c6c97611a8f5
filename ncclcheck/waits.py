"""Who waits for whom: from the ranks' places in each process group's sequence to those that wait for nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ncclcheck import recorder
from ncclcheck.model import Evidence, Fact, Run
from ncclcheck.recorder import COMPLETED, Dump, Group, Key, Signature

_LARGEST = 1 << 16  # ranks; a larger number is misread


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rank is in one group: the last call it issued, and the oldest that has not completed (None: it waits for nothing here)."""

    enqueued: int
    pending: int | None
    what: str  # all_reduce [1048576] Float, where it is known
    evidence: Evidence


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
    circle: bool  # everybody waits, and some for each other
    positions: Mapping[int, Position]  # of each rank, in the group that tells most

    def of(self, rank: int) -> Wait | None:
        """The wait in which most ranks wait for this one."""
        return max((wait for wait in self.waits if rank in wait.behind or rank in wait.unknown), key=lambda wait: len(wait.waiting), default=None)

    @property
    def together(self) -> Wait | None:
        """The call in which every rank is, if nobody is behind, absent or elsewhere."""
        if self.idle or self.absent or self.messages or self.circle or len(self.waits) != 1:
            return None
        return self.waits[0]


def of(run: Run) -> Waits:
    """The waits of a run, from its flight recorders and from what its watchdogs say."""
    dumps = recorder.by_rank(tuple(run.dumps))
    seen = recorder.members(tuple(run.dumps))
    groups = _positions(run, dumps, seen)
    waits = tuple(wait for key, places in groups.items() if (wait := _wait(key, places, run)) is not None)
    messages = tuple(_messages(dumps, seen))
    sending = {rank for rank, dump in dumps.items() if any(group.p2p.pending() is not None for group in dump.groups.values())}
    waiting = frozenset(sending | {rank for places in groups.values() for rank, place in places.items() if place.pending is not None})
    known = {rank for places in groups.values() for rank in places} | set(dumps)
    waited = {rank for wait in waits for rank in wait.behind} | {message.peer for message in messages if message.other is None}
    idle = tuple(sorted(rank for rank in waited - waiting if rank in known))
    absent = () if idle else tuple(sorted({rank for wait in waits for rank in wait.unknown} | {rank for rank in waited if rank not in known}))
    positions: dict[int, Position] = {}
    for places in groups.values():
        for rank, place in places.items():
            if rank not in positions or (place.pending is not None and positions[rank].pending is None):
                positions[rank] = place
    return Waits(waits, messages, waiting, idle, absent, bool(waited) and not idle and not absent, positions)


def _positions(run: Run, dumps: Mapping[int, Dump], members: Mapping[Key, Mapping[int, Group]]) -> dict[Key, dict[int, Position]]:
    """Every group with the places of those of its members that are known; a watchdog's word counts where there is no dump."""
    result: dict[Key, dict[int, Position]] = {}
    for key, seen in members.items():
        places = {rank: _of_group(dumps[rank], group) for rank, group in seen.items()}
        for rank in set(key[1] or ()) & set(dumps) - set(seen):  # its recorder knows nothing of this group: it issued no call there
            places[rank] = Position(0, None, "", dumps[rank].newest())
        result[key] = places
    names = {name: key for key, seen in members.items() for group in seen.values() for name in (group.name, group.desc)}
    if "0" in names:
        names.setdefault("default_pg", names["0"])
    seen_ranks = [fact.rank for fact in run.of("position") + run.of("timeout") if fact.rank is not None and fact.rank < (run.world_size or _LARGEST)]
    everybody = tuple(range(max(run.world_size or 0, max(seen_ranks, default=-1) + 1))) or None  # where rank 3 speaks there are ranks 0 to 2
    for fact in [*run.of("position"), *run.of("timeout")]:
        if fact.rank is None or fact.source is None or (place := _of_fact(fact)) is None:
            continue
        named = (_told_group(run, fact) or "default_pg").replace(")", "").split("(")
        whole = {"default_pg", "0"} & set(named)
        key = next((names[name] for name in named if name in names), ("default_pg" if whole else named[0], everybody if whole else None))
        if fact.rank in dumps or (key[1] is not None and fact.rank not in key[1]):
            continue
        old = result.setdefault(key, {}).get(fact.rank)
        if old is None or (place.enqueued, place.what) > (old.enqueued, old.what):
            pending = place.pending if old is None or old.pending is None or place.pending is None else min(place.pending, old.pending)
            result[key][fact.rank] = Position(place.enqueued, pending, place.what or (old.what if old else ""), place.evidence)
    return result


def _told_group(run: Run, fact: Fact) -> str | None:
    """The group that a line names; a time-out without a name belongs to the group in which that rank then says to be at that number."""
    if fact.get("group") is not None:
        return str(fact.get("group"))
    seq = str(fact.get("seq"))
    said = [other for other in run.of("position") if other.rank == fact.rank and other.get("group") is not None]
    return next((str(other.get("group")) for other in said if (place := _of_fact(other)) is not None and str(place.pending) == seq), None)


def _of_group(dump: Dump, group: Group) -> Position:
    calls = group.collectives
    at = calls.pending()
    if at is not None:
        kind = dump.signatures[calls.kinds[at]]
        return Position(group.enqueued or calls.seqs[-1], calls.seqs[at], f"{kind.operation} {kind.text}".rstrip(), dump.quote(calls, at))
    if len(calls):  # all it recorded has completed
        return Position(group.enqueued or calls.seqs[-1], None, "", dump.quote(calls, len(calls) - 1))
    enqueued = group.enqueued or 0
    pending = None if group.completed is None or group.completed >= enqueued else group.completed + 1
    return Position(enqueued, pending, "", dump.newest())


def _of_fact(fact: Fact) -> Position | None:
    assert fact.source is not None
    numbers = {name: int(value) for name in ("enqueued", "completed", "seq") if str(value := fact.get(name)).lstrip("-").isdigit()}
    if "seq" in numbers:
        return Position(numbers["seq"], numbers["seq"], str(fact.get("op") or "").lower(), fact.source)
    if "enqueued" not in numbers or "completed" not in numbers:
        return None
    enqueued, completed = max(numbers["enqueued"], 0), max(numbers["completed"], 0)
    return Position(enqueued, completed + 1 if completed < enqueued else None, "", fact.source)


def _wait(key: Key, places: Mapping[int, Position], run: Run) -> Wait | None:
    pending = {rank: place.pending for rank, place in places.items() if place.pending is not None}
    if not pending:
        return None
    name, ranks = key
    behind = tuple(sorted(rank for rank, place in places.items() if place.pending is None and place.enqueued < max(pending.values())))
    seq = max(pending.values()) if behind else min(pending.values())
    waiting = tuple(sorted(rank for rank, at in pending.items() if not behind or at <= seq))
    unknown = tuple(rank for rank in ranks or () if rank not in places)
    first = [places[rank] for rank in waiting if pending[rank] == seq]
    what = next((place.what for place in first if place.what), "")
    return Wait(_label(name, run), seq, what, waiting, behind, unknown, tuple(place.evidence for place in first[:4]))


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


def culprits(messages: Sequence[Message]) -> tuple[int, ...]:
    """Whom unanswered messages speak against: one who turned to the wrong peer while the right one waits; else both sides."""
    waited = {message.peer for message in messages}
    turned = {message.rank for message in messages}
    odd = tuple(sorted(rank for rank in waited & turned if any(m.rank == rank and m.peer not in turned for m in messages)))
    return odd if len(odd) == 1 else tuple(sorted({rank for message in messages for rank in (message.rank, message.peer)}))

"""Where every rank is in the sequence of each process group: from its flight recorder, else from what its watchdog says."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from ncclcheck.model import Evidence, Fact, Run
from ncclcheck.recorder import Calls, Dump, Group, Key

_LARGEST = 1 << 16  # ranks; a larger number is misread
_SHARED = frozenset(("all_reduce", "all_reduce_barrier", "barrier", "all_gather", "_all_gather_base", "reduce_scatter", "_reduce_scatter_base"))
"""Operations that complete on no rank before every rank has issued them."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rank is in one group: the last call it issued, and the oldest that has not completed (None: it waits for nothing here)."""

    enqueued: int
    pending: int | None
    what: str  # all_reduce [1048576] Float, where it is known
    evidence: Evidence
    record: int | None = None  # place of the pending call among all that the rank issued
    shared: int = 0  # the last call that it completed and that nobody can complete before all have issued it


def of(run: Run, dumps: Mapping[int, Dump], members: Mapping[Key, Mapping[int, Group]]) -> dict[Key, dict[int, Position]]:
    """Every group with the places of those of its members that are known; a watchdog's word counts where there is no dump."""
    result: dict[Key, dict[int, Position]] = {}
    for key, seen in members.items():
        result[key] = {rank: _of_group(dumps[rank], group) for rank, group in seen.items() if group.countable}
        for rank in set(key[1] or ()) & dumps.keys() - seen.keys():  # its recorder knows nothing of this group: it issued no call there
            result[key][rank] = Position(0, None, "", dumps[rank].newest())
    names: dict[str, dict[Key, None]] = {}  # split groups share names
    for key, seen in members.items():
        for group in seen.values():
            for name in (group.name, group.desc, *(["default_pg"] if group.name == "0" else [])):
                names.setdefault(name, {})[key] = None
    seen_ranks = [rank for rank in [*run.ranks, *(fact.rank for fact in run.of("position") + run.of("timeout"))] if rank is not None]
    largest = max((rank for rank in seen_ranks if rank < (run.world_size or _LARGEST)), default=-1)
    everybody = tuple(range(max(run.world_size or 0, largest + 1))) or None  # where rank 3 speaks there are ranks 0 to 2
    candidates: dict[str, list[_Candidate]] = {}  # of each name that a line gives to its group
    for fact in [*run.of("position"), *run.of("timeout")]:
        if fact.rank is None or fact.rank in dumps or fact.source is None or message(fact) or (place := _of_fact(fact)) is None:
            continue
        said = group_of(run, fact) or "default_pg"
        if said not in candidates:
            named = said.replace(")", "").split("(")
            default = ("default_pg", everybody) if {"default_pg", "0"} & set(named) else (named[0], None)
            keys = list(dict.fromkeys(key for name in named for key in names.get(name, ()))) or [default]
            candidates[said] = [(None if key[1] is None else frozenset(key[1]), result.setdefault(key, {})) for key in keys]
        for ranks, places in candidates[said]:
            if ranks is None or fact.rank in ranks:
                places[fact.rank] = _merged(places.get(fact.rank), place)
                break
    return {key: places for key, places in result.items() if places}


_Candidate = tuple[frozenset[int] | None, dict[int, Position]]  # members, and the places that are known


def _merged(old: Position | None, new: Position) -> Position:
    """What two lines of one rank say together: the newest call it issued, the oldest it is inside of, and what that one is."""
    if old is None:
        return new
    last = new if (new.enqueued, new.what) > (old.enqueued, old.what) else old
    pending = last.pending if old.pending is None or new.pending is None else min(old.pending, new.pending)
    what = next((place.what for place in (last, old, new) if place.what and place.pending == pending), last.what)
    return Position(last.enqueued, pending, what, last.evidence)


def message(fact: Fact) -> bool:
    """Whether a time-out is that of a send or recv: their numbers are not those of the collectives."""
    return str(fact.get("op") or "").upper() in ("SEND", "RECV", "ISEND", "IRECV")


def group_of(run: Run, fact: Fact) -> str | None:
    """The group that a line names; a time-out without a name belongs to the group in which that rank says next to be at that number."""
    if fact.get("group"):
        return str(fact.get("group"))
    same = run.once(_said).get((fact.rank, str(fact.get("seq")))) if fact.source else None
    if not same or fact.source is None:
        return None
    at = bisect_left(same, (fact.source.file, fact.source.line))
    return same[at if at < len(same) else 0][2]


_Said = dict[tuple[int | None, str], list[tuple[str, int, str]]]  # (rank, number it is inside of) -> file, line and group, in order


def _said(run: Run) -> _Said:
    said: _Said = {}
    for fact in run.of("position"):
        if fact.source and fact.get("group") and (place := _of_fact(fact)) is not None:
            said.setdefault((fact.rank, str(place.pending)), []).append((fact.source.file, fact.source.line, str(fact.get("group"))))
    for places in said.values():
        places.sort()
    return said


def _of_group(dump: Dump, group: Group) -> Position:
    calls = group.collectives
    at = calls.pending()
    shared = next((calls.seqs[i] for i in range((len(calls) if at is None else at) - 1, -1, -1) if _shared(dump, calls, i)), 0)
    if at is not None:
        kind = dump.signatures[calls.kinds[at]]
        what = f"{kind.operation} {kind.text}".rstrip()
        return Position(group.enqueued or calls.seqs[-1], calls.seqs[at], what, dump.quote(calls, at), calls.records[at], shared)
    if len(calls):  # all it recorded has completed
        return Position(group.enqueued or calls.seqs[-1], None, "", dump.quote(calls, len(calls) - 1), None, shared)
    enqueued = group.enqueued or 0
    pending = None if group.completed is None or group.completed >= enqueued else group.completed + 1
    return Position(enqueued, pending, "", dump.newest())


def _shared(dump: Dump, calls: Calls, at: int) -> bool:
    return dump.signatures[calls.kinds[at]].operation in _SHARED


def _of_fact(fact: Fact) -> Position | None:
    assert fact.source is not None
    numbers = {name: int(value) for name in ("enqueued", "completed", "seq") if str(value := fact.get(name)).lstrip("-").isdigit()}
    if "seq" in numbers:
        return Position(numbers["seq"], numbers["seq"], str(fact.get("op") or "").lower(), fact.source)
    if "enqueued" not in numbers or "completed" not in numbers:
        return None
    enqueued, completed = max(numbers["enqueued"], 0), max(numbers["completed"], 0)
    return Position(enqueued, completed + 1 if completed < enqueued else None, "", fact.source)

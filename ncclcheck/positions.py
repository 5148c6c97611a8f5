"""Where every rank is in the sequence of each process group: from its flight recorder, else from what its watchdog says."""

from __future__ import annotations

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
        places = {rank: _of_group(dumps[rank], group) for rank, group in seen.items()}
        for rank in set(key[1] or ()) & set(dumps) - set(seen):  # its recorder knows nothing of this group: it issued no call there
            places[rank] = Position(0, None, "", dumps[rank].newest())
        result[key] = places
    names: dict[str, dict[Key, None]] = {}  # split groups share names
    for key, seen in members.items():
        for group in seen.values():
            for name in (group.name, group.desc, *(["default_pg"] if group.name == "0" else [])):
                names.setdefault(name, {})[key] = None
    seen_ranks = [rank for rank in [*run.ranks, *(fact.rank for fact in run.of("position") + run.of("timeout"))] if rank is not None]
    largest = max((rank for rank in seen_ranks if rank < (run.world_size or _LARGEST)), default=-1)
    everybody = tuple(range(max(run.world_size or 0, largest + 1))) or None  # where rank 3 speaks there are ranks 0 to 2
    for fact in [*run.of("position"), *run.of("timeout")]:
        if fact.rank is None or fact.source is None or message(fact) or (place := _of_fact(fact)) is None:
            continue
        named = (group_of(run, fact) or "default_pg").replace(")", "").split("(")
        whole = {"default_pg", "0"} & set(named)
        known = [key for name in named for key in names.get(name, ())]
        key = next(
            (key for key in known if key[1] is None or fact.rank in key[1]), ("default_pg" if whole else named[0], everybody if whole else None)
        )
        if fact.rank in dumps or (known and key not in known) or (key[1] is not None and fact.rank not in key[1]):
            continue
        old = result.setdefault(key, {}).get(fact.rank)
        if old is None or (place.enqueued, place.what) > (old.enqueued, old.what):
            pending = place.pending if old is None or old.pending is None or place.pending is None else min(place.pending, old.pending)
            result[key][fact.rank] = Position(place.enqueued, pending, place.what or (old.what if old else ""), place.evidence)
    return result


def message(fact: Fact) -> bool:
    """Whether a time-out is that of a send or recv: their numbers are not those of the collectives."""
    return str(fact.get("op") or "").upper() in ("SEND", "RECV", "ISEND", "IRECV")


def group_of(run: Run, fact: Fact) -> str | None:
    """The group that a line names; a time-out without a name belongs to the group in which that rank says next to be at that number."""
    if fact.get("group"):
        return str(fact.get("group"))
    seq = str(fact.get("seq"))
    said = [other for other in run.of("position") if other.rank == fact.rank and other.get("group") and other.source and fact.source]
    same = [other for other in said if (place := _of_fact(other)) is not None and str(place.pending) == seq]
    return next((str(other.get("group")) for other in sorted(same, key=lambda other: _before(other, fact))), None)


def _before(other: Fact, fact: Fact) -> bool:
    assert other.source is not None and fact.source is not None
    return (other.source.file, other.source.line) < (fact.source.file, fact.source.line)


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

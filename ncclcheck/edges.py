"""Who waits for whom, kept as thresholds: in a group of thousands a list of all pairs would fill the memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ncclcheck.positions import Position

Pair = tuple[int, int]  # who waits, for whom
Numbered = Sequence[tuple[int, int]]  # (sequence number, rank), in order


class Edges:
    """In each group who is inside of a call waits for all whose last issued call is an older one; `pairs` of ranks wait beside that."""

    def __init__(self, groups: Iterable[Mapping[int, Position]], pairs: Iterable[Pair] = ()) -> None:
        self._groups = [places for places in groups if any(place.pending is not None for place in places.values())]
        self._pairs = frozenset(pairs)
        self._issued = [sorted((place.enqueued, rank) for rank, place in places.items()) for places in self._groups]
        self._inside = [sorted((place.pending, rank) for rank, place in places.items() if place.pending is not None) for places in self._groups]
        rooms = list(zip(self._issued, self._inside, strict=True))
        self.waiting = {rank for issued, inside in rooms for pending, rank in inside if issued[0][0] < pending} | {rank for rank, _ in self._pairs}
        self.waited = {rank for issued, inside in rooms for last, rank in issued if last < inside[-1][0]} | {peer for _, peer in self._pairs}
        self._of: dict[int, list[int]] = defaultdict(list)  # rank -> the groups that know it
        for number, places in enumerate(self._groups):
            for rank in places:
                self._of[rank].append(number)

    def between(self, rank: int, peer: int) -> bool:
        """Whether this rank waits for that one."""
        return (rank, peer) in self._pairs or any(
            peer in places and (pending := places[rank].pending) is not None and places[peer].enqueued < pending
            for places in map(self._groups.__getitem__, self._of.get(rank, ()))
        )

    def _after(self, cuts: Iterable[Pair]) -> set[int]:
        return {rank for at, cut in cuts for _, rank in self._inside[at][cut:]}

    def circle(self, more: Iterable[Pair] = ()) -> tuple[int, ...]:
        """The ranks that wait for each other: first who waits for nobody, then whom nobody waits for, is taken away again and again."""
        pairs = self._pairs.union(more)
        rooms = list(zip(self._issued, self._inside, strict=True))
        left = _held([(peer, rank) for rank, peer in pairs], rooms, self.waiting | {rank for rank, _ in pairs})
        turned = [(_negative(inside), _negative(issued)) for issued, inside in rooms]
        return tuple(sorted(_held(pairs, turned, left)))

    def odd(self, ranks: Iterable[int]) -> int | None:
        """The one of these that most ranks wait for; None with a tie."""
        direct: dict[int, set[int]] = defaultdict(set)
        for rank, peer in self._pairs:
            direct[peer].add(rank)
        known: dict[tuple[Pair, ...], int] = {}  # (group, first of those inside that wait) of all groups -> how many wait
        counts: Counter[int] = Counter()
        for peer in ranks:
            cuts = tuple((at, bisect_right(self._inside[at], self._groups[at][peer].enqueued, key=_number)) for at in self._of.get(peer, ()))
            if cuts not in known:
                known[cuts] = len(self._after(cuts))
            counts[peer] = len(direct[peer] | self._after(cuts)) if peer in direct else known[cuts]
        best = (+counts).most_common(2)
        return best[0][0] if best and (len(best) == 1 or best[0][1] > best[1][1]) else None


def _number(numbered: tuple[int, int]) -> int:
    return numbered[0]


def _negative(numbered: Numbered) -> Numbered:
    return [(-number, rank) for number, rank in reversed(numbered)]


def _held(pairs: Iterable[Pair], rooms: Iterable[tuple[Numbered, Numbered]], ranks: Iterable[int]) -> set[int]:
    """What remains of the ranks when those that none of the others holds are taken away again and again.

    The first of a pair holds the second; of a room's two lists each in the first holds all in the second that have a greater number.
    """
    left = set(ranks)
    bonds: Counter[int] = Counter()  # rank -> rooms and pairs that hold it
    by_pair: dict[int, list[int]] = defaultdict(list)
    for holder, rank in pairs:
        if holder in left and rank in left:
            by_pair[holder].append(rank)
            bonds[rank] += 1
    by_room: dict[int, list[_Room]] = defaultdict(list)
    for holders, others in rooms:
        room = _Room([pair for pair in holders if pair[1] in left], [pair for pair in others if pair[1] in left])
        room.release(left)
        bonds.update(room.held())
        for _, rank in room.holders:
            by_room[rank].append(room)
    ends = [rank for rank in left if not bonds[rank]]
    while ends:
        end = ends.pop()
        left.discard(end)
        for rank in [*by_pair[end], *(rank for room in by_room[end] for rank in room.release(left))]:
            bonds[rank] -= 1
            if not bonds[rank]:
                ends.append(rank)
    return left


class _Room:
    """Holders and the ranks they hold, both by number: who is no longer held is found without looking at any of them twice."""

    def __init__(self, holders: Numbered, others: Numbered) -> None:
        self.holders, self._others = holders, others
        self._least = self._free = 0  # the first holder that is left, the first of the others that is held

    def held(self) -> list[int]:
        return [rank for _, rank in self._others[self._free :]]

    def release(self, left: set[int]) -> list[int]:
        """Whom no holder that is left holds any more."""
        while self._least < len(self.holders) and self.holders[self._least][1] not in left:
            self._least += 1
        before = self._free
        if self._least == len(self.holders):
            self._free = len(self._others)
        else:
            self._free = max(before, bisect_right(self._others, self.holders[self._least][0], lo=before, key=_number))
        return [rank for _, rank in self._others[before : self._free]]

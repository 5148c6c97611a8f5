"""Who makes the others wait, and whether the network became slower: from what each rank spent outside and inside of collectives. Pure.

A rank that is late works while the others wait. So the one that waits least is the slowest, and what it waits is what the
collectives themselves take.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ncclcheck.model import Fact

WINDOW = 3.0  # seconds that are looked at: the last ones
STRETCH = 0.5  # seconds, the best ones of all, with which they are compared
LEAST_CALLS = 10  # in a window: fewer say nothing
SLOW_FACTOR = 1.5  # a rank that works so much longer than the median of the others is slow,
SLOW_SHARE = 0.25  # if that is at least this share of the time
NETWORK_FACTOR = 2.5  # collectives that take so much longer than at their best make the network suspect,
USUAL = 0.002  # and those that take so much longer than these seconds: it may have been slow from the start


class Pace(NamedTuple):
    """One reading of one rank; seconds since it began, all of them growing. `starved`: it could have run and got no CPU."""

    now: float
    seq: int
    worked: float
    waited: float
    starved: float = 0.0

    def __sub__(self, earlier: Pace) -> Pace:
        return Pace(
            self.now - earlier.now, self.seq - earlier.seq, self.worked - earlier.worked, self.waited - earlier.waited, self.starved - earlier.starved
        )


def facts(readings: Mapping[int, Sequence[Pace]], bests: Mapping[int, float] | None = None) -> list[Fact]:
    """Kinds "slow" (a rank; fields seconds, worked, others, calls) and "slowed" (the network may be: fields usual and now, seconds a call).

    `bests`: rank -> what `let_go` said of its readings that are not kept.
    """
    lasts = {rank: _last(all_) for rank, all_ in readings.items()}
    spans = {rank: last[-1] - last[0] for rank, last in lasts.items()}
    if len(spans) < 2 or any(span.seq < LEAST_CALLS for span in spans.values()):
        return []
    halves = {rank: _halves(last) for rank, last in lasts.items()}
    persists = set(_slow({rank: one for rank, (one, _) in halves.items()}))
    persists &= _slow({rank: other for rank, (_, other) in halves.items()}).keys()  # one hiccup makes no slow rank
    found = [Fact("slow", rank=rank, fields=fields) for rank, fields in _slow(spans).items() if rank in persists]
    return [*found, *_slowed(min([*(bests or {}).values(), *(_best(all_) for all_ in readings.values())]), spans)]


def let_go(readings: list[Pace]) -> float:
    """Forget the readings from before the last WINDOW; the least seconds that a call took on average in any STRETCH of them."""
    begin = _begin(readings)
    best = _best(readings, begin)
    del readings[:begin]
    return best


def _last(readings: Sequence[Pace]) -> Sequence[Pace]:
    """The readings of the last WINDOW seconds."""
    return readings[_begin(readings) :]


def _begin(readings: Sequence[Pace]) -> int:
    """Where the last WINDOW seconds begin."""
    end = readings[-1].now
    return next((at for at in range(len(readings) - 1, -1, -1) if end - readings[at].now >= WINDOW), 0)


def _halves(readings: Sequence[Pace]) -> tuple[Pace, Pace]:
    middle = readings[len(readings) // 2]
    return middle - readings[0], readings[-1] - middle


def _best(readings: Sequence[Pace], first: int | None = None) -> float:
    """The least seconds that a call took on average in any STRETCH that begins with one of the `first` readings (all if not said).

    Infinite where there was none with enough calls.
    """
    best = math.inf
    at = 1  # what ends a stretch never comes before what ended the one before
    for begin in readings[:first]:
        while at < len(readings) and readings[at].now - begin.now < STRETCH:
            at += 1
        if at == len(readings):
            break
        end = readings[at]
        if (calls := end.seq - begin.seq) >= LEAST_CALLS:
            best = min(best, (end.waited - begin.waited) / calls)
    return best


def _slow(spans: Mapping[int, Pace]) -> dict[int, dict[str, float]]:
    """The ranks that are slow in a stretch of time, each with its figures; none where a rank has but one reading in it."""
    if any(span.now <= 0 for span in spans.values()):
        return {}
    worked = {rank: max(0.0, span.worked - span.starved) for rank, span in spans.items()}  # a rank that got no CPU is not slow itself
    ordered = sorted(worked.values())
    found = {}
    for rank, span in spans.items():
        others = _median_without(ordered, worked[rank])
        if worked[rank] >= SLOW_FACTOR * others and worked[rank] - others >= SLOW_SHARE * span.now:
            found[rank] = {"seconds": round(span.now, 2), "worked": round(worked[rank], 2), "others": round(others, 2), "calls": span.seq}
    return found


def _median_without(ordered: Sequence[float], value: float) -> float:
    """The median of sorted values without one of them, which is among them; of an even number it is the mean of the middle two."""
    at, middle = bisect_left(ordered, value), (len(ordered) - 1) // 2
    upper = ordered[middle + (middle >= at)]
    return upper if len(ordered) % 2 == 0 else (ordered[middle - 1 + (middle - 1 >= at)] + upper) / 2


def _slowed(best: float, spans: Mapping[int, Pace]) -> list[Fact]:
    before = min(USUAL, best)  # who waits least waits for the network only
    now = min(span.waited / span.seq for span in spans.values())
    seconds = max(span.now for span in spans.values())
    share = (now - before) * min(span.seq for span in spans.values()) / seconds if seconds > 0 else 0.0
    if now < NETWORK_FACTOR * before or share < SLOW_SHARE:
        return []
    return [Fact("slowed", fields={"usual": round(before, 6), "now": round(now, 6)})]

"""What can be read out of many facts of kind "way" together: which is which, and which are slow beside the others."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from ncclcheck.model import Fact
from ncclcheck.pairing import Pair

OK = "ok"
VAGUE = ("unsure", "silent")
"""Answers that say nothing of the network: a process had to wait for a core, or none was there."""
SLOWER, PAIRS = 5.0, 4  # times as slow as the middle of the others, of which there are at least so many pairs
LOOKS = 2  # at what seems slow, after the first: each must say the same
Key = tuple[int, int, str]  # node, peer, network


def key(fact: Fact) -> Key:
    """Which way it is."""
    return int(fact.get("node_rank")), int(fact.get("peer_rank")), str(fact.get("network"))


def pair(way: Key) -> Pair:
    """Between whom."""
    return min(way[:2]), max(way[:2])


def line(fact: Fact) -> str:
    """The network in which it counts: all main ways are one, whichever networks their ends are in."""
    return "" if fact.get("main") else str(fact.get("network"))


def directions(ways: Iterable[Fact]) -> dict[Key, float]:
    """Bytes/s of each direction: the better of what its two ends measured."""
    rates: dict[Key, float] = {}
    for fact in ways:
        if fact.get("answer") == OK:
            node, peer, network = key(fact)
            for way, name in (((node, peer, network), "out_bytes_per_s"), ((peer, node, network), "in_bytes_per_s")):
                rates[way] = max(rates.get(way, 0.0), float(fact.get(name, 0.0)))
    return rates


def slower(ways: Iterable[Fact]) -> list[Key]:
    """Directions that are far slower than the others of their network, each time that they were looked at; the slowest first.

    A field `looks` holds what came of each later look: the rate, and what was usual then.
    """
    facts = {key(fact): fact for fact in ways}
    by_network: dict[str, dict[Key, float]] = defaultdict(dict)
    for way, rate in directions(facts.values()).items():
        if way in facts:
            by_network[way[2]][way] = rate
    found: list[tuple[float, Key]] = []
    for rates in by_network.values():
        usual = statistics.median(rates.values())
        slow = [way for way, rate in rates.items() if rate * SLOWER < usual]
        if len({pair(way) for way in rates} - {pair(way) for way in slow}) >= PAIRS:
            found += [(rates[way], way) for way in slow if all(look["rate"] * SLOWER < look["usual"] for look in facts[way].get("looks", ()))]
    return [way for _, way in sorted(found)]


def few(pairs: Iterable[Pair], most: int, each: int) -> list[Pair]:
    """The first of these pairs, each once, and not many of one node."""
    chosen: list[Pair] = []
    times: Counter[int] = Counter()
    for one in dict.fromkeys(pairs):
        if len(chosen) < most and max(times[node] for node in one) < each:
            chosen.append(one)
            times.update(one)
    return chosen

"""Who tries the way to whom, and when: rounds of pairs in which nobody takes part twice, so that no try disturbs another."""

from __future__ import annotations

import ipaddress
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

EVERYBODY = 64  # nodes up to which every pair is tried; of more, a sample
STRIDE = 4  # a sample joins each node to those 1, 4, 16, ... further along
Pair = tuple[int, int]
Rounds = list[list[Pair]]


def rounds(nodes: Sequence[int], groups: Mapping[int, str] | None = None, *, everybody: int = EVERYBODY) -> Rounds:
    """Every pair once; of more than `everybody` nodes a sample: each node with several others, each group (switch) with each.

    `groups`: node -> the switch behind which it is, as far as that is known.
    """
    if len(nodes) <= everybody:
        return tournament(nodes)
    return packed(sample(nodes, groups or {}))


def tournament(nodes: Sequence[int]) -> Rounds:
    """The circle method: the first stays, the others move on by one place after each round; an odd one out rests."""
    ring: list[int | None] = [*nodes] + [None] * (len(nodes) % 2)
    result: Rounds = []
    for _ in range(len(ring) - 1 if len(nodes) > 1 else 0):
        half = len(ring) // 2
        met = zip(ring[:half], reversed(ring[half:]), strict=True)
        result.append([(one, other) for one, other in met if one is not None and other is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return result


def sample(nodes: Sequence[int], groups: Mapping[int, str]) -> list[Pair]:
    """Pairs along the ring of nodes, neighbours of one group side by side; then one for each two groups, by changing members."""
    ring = sorted(nodes, key=lambda node: groups.get(node, ""))
    wanted: dict[Pair, None] = {}
    stride = 1
    while stride <= len(ring) // 2:
        for place, node in enumerate(ring):
            wanted[_pair(node, ring[(place + stride) % len(ring)])] = None
        stride *= STRIDE
    members: dict[str, list[int]] = defaultdict(list)
    for node in ring:
        members[groups.get(node, "")].append(node)
    if len(members) ** 2 <= 2 * len(ring) * STRIDE:  # where nearly every node is a group of its own there is nothing to cover
        joined = {(groups.get(one, ""), groups.get(other, "")) for one, other in wanted}
        for turn, (one, other) in enumerate(itertools.combinations(members, 2)):
            if not joined & {(one, other), (other, one)}:
                wanted[_pair(members[one][turn % len(members[one])], members[other][turn % len(members[other])])] = None
    return list(wanted)


def packed(pairs: Iterable[Pair]) -> Rounds:
    """These pairs in rounds, each in the first in which neither of the two is busy yet."""
    result: Rounds = []
    busy: list[set[int]] = []
    for pair in pairs:
        at = next((number for number, names in enumerate(busy) if not names & set(pair)), len(busy))
        if at == len(busy):
            result.append([])
            busy.append(set())
        result[at].append(pair)
        busy[at].update(pair)
    return result


def group(address: str) -> str:
    """The switch behind which an address is taken to be: its /24, or its /64."""
    prefix = 64 if ":" in address else 24
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))


def _pair(one: int, other: int) -> Pair:
    return min(one, other), max(one, other)

"""By which of their addresses two nodes may speak to each other."""

from __future__ import annotations

import functools
import ipaddress
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ncclcheck.wire import Door, Hello

ROUTED = "routed"  # the ways between nodes whose main addresses are in different networks


class Way(NamedTuple):
    """From one node's door to another's. `main`: those by which they speak with node 0. `network` reads the same from both ends."""

    here: Door
    there: Door
    main: bool
    network: str


def standing(hellos: Mapping[int, Hello]) -> list[int]:
    """The nodes between which ways are tried: of agents that share an address, and so a host, the first."""
    first: dict[str, int] = {}
    for number in sorted(hellos):
        first.setdefault(hellos[number].echo[0], number)
    return sorted(number for address, number in first.items() if address)


def between(one: Hello, other: Hello) -> list[Way]:
    """The ways from one node to another: the main one, and one in each network that both are in.

    Who has several doors in one network speaks from each to the peer's of the same name, or else of the same place. An address that both
    have (docker0 has the same everywhere) leads nowhere.
    """
    result: list[Way] = []
    mains = main(one), main(other)
    if mains[0] and mains[1]:
        here, there = (of(door) or door.address for door in mains if door)
        result.append(Way(mains[0], mains[1], True, here if here == there else ROUTED))
    near, far = _by_network(one), _by_network(other)
    for network in sorted(near.keys() & far.keys()):
        several = len(near[network]) > 1 or len(far[network]) > 1
        for door, peer in _matched(near[network], far[network]):
            if door.address != peer.address and (door, peer) != mains:
                names = sorted({door.interface, peer.interface})
                result.append(Way(door, peer, False, " ".join([network, *names]) if several else network))
    return result


def main(hello: Hello) -> Door | None:
    """The door from which this node speaks to node 0."""
    return next((door for door in hello.doors if door.address == hello.echo[0]), None)


@functools.lru_cache(maxsize=2**16)  # asked for every pair of nodes that is tried
def of(door: Door) -> str:
    """The network of a door's address; empty where it has it for itself."""
    address = ipaddress.ip_address(door.address)
    if door.prefixlen in (0, address.max_prefixlen):
        return ""
    return str(ipaddress.ip_network(f"{door.address}/{door.prefixlen}", strict=False))


def _by_network(hello: Hello) -> dict[str, list[Door]]:
    found: dict[str, list[Door]] = defaultdict(list)
    for door in hello.doors:
        if network := of(door):
            found[network].append(door)
    return found


def _matched(here: Sequence[Door], there: Sequence[Door]) -> list[tuple[Door, Door]]:
    near, far = {door.interface: door for door in here}, {door.interface: door for door in there}
    if near.keys() <= far.keys() or far.keys() <= near.keys():
        return [(near[name], far[name]) for name in sorted(near.keys() & far.keys())]
    return list(zip(sorted(here, key=_place), sorted(there, key=_place), strict=False))


def _place(door: Door) -> tuple[int, str]:
    """eth2 comes before eth10."""
    return len(door.interface), door.interface

"""What a collective costs over links: latency and bandwidth, by the algorithms that NCCL and Gloo choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ncclcheck.expect.links import Link, Network


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of one collective: so many in each of so many nodes."""

    each: int
    nodes: int = 1

    @property
    def size(self) -> int:
        """All its ranks."""
        return self.each * self.nodes

    def __str__(self) -> str:
        return f"{self.size} ranks" + (f" on {self.nodes} nodes" if self.nodes > 1 else " in a node")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one operation or of many: what its latency makes of it, and what its bytes do."""

    latency: float = 0.0
    transfer: float = 0.0

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.latency + self.transfer

    def times(self, count: float) -> Cost:
        """As many of it, one after the other."""
        return Cost(self.latency * count, self.transfer * count)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.latency + other.latency, self.transfer + other.transfer)


def steps(ranks: int) -> int:
    """Messages one after the other in an all-reduce: up and down a tree, or round a ring where that is shorter."""
    return min(2 * (ranks - 1), 2 * math.ceil(math.log2(ranks))) if ranks > 1 else 0


def all_reduce(group: Group, nbytes: float, inside: Link, network: Network | None) -> Cost:
    """All-reduce of `nbytes`: within the nodes over `inside`, between them over `network`.

    Latencies add up; the bytes flow through both at once, so the slower one counts. Each rank passes on 2(n-1)/n of
    them within a node; a node passes on 2(k-1)/k of them over the adapters that the group's ranks can use.
    """
    latency, seconds = 0.0, [0.0]
    if group.each > 1:
        wire = 2 * (group.each - 1) / group.each * nbytes
        latency += inside.latency(steps(group.each))
        seconds.append(inside.seconds(0, wire) - inside.base)
    if group.nodes > 1:
        assert network is not None, "a group over nodes needs a network"
        wire = 2 * (group.nodes - 1) / group.nodes * nbytes / min(network.adapters, group.each)
        latency += network.link.latency(steps(group.nodes))
        seconds.append(network.link.seconds(0, wire) - network.link.base)
    return Cost(latency, max(seconds))


def all_gather(group: Group, nbytes: float, inside: Link, network: Network | None) -> Cost:
    """All-gather whose result has `nbytes`: half of an all-reduce, in steps and in bytes."""
    whole = all_reduce(group, nbytes, inside, network)
    bases = (inside.base if group.each > 1 else 0.0) + (network.link.base if network and group.nodes > 1 else 0.0)
    return Cost((whole.latency + bases) / 2, whole.transfer / 2)


def send(nbytes: float, link: Link) -> Cost:
    """One message from a rank to another."""
    return Cost(link.latency(1), link.seconds(0, nbytes) - link.base)

"""The roll: which agents are there, what contradicts, who is missing, and who gets which number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ncclcheck import wire
from ncclcheck.cluster import Cluster
from ncclcheck.model import Fact


class Roll:
    """The agents heard so far, by transport identity. Pure: it is told what came, and answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.hellos: dict[bytes, wire.Hello] = {}

    def add(self, peer: bytes, hello: wire.Hello) -> None:
        """An agent said hello (again)."""
        self.hellos[peer] = hello

    def drop(self, peer: bytes) -> None:
        """An agent left or fell silent."""
        self.hellos.pop(peer, None)

    def complete(self) -> bool:
        """Everybody is there and nothing contradicts."""
        return len(self.hellos) == self._cluster.nnodes and not self.conflicts()

    def conflicts(self) -> list[Fact]:
        """What makes this roll impossible, whoever else may come: facts of kind "hello" from each agent that takes part in it."""
        hellos = sorted(self.hellos.values(), key=_place)
        claims = Counter(hello.node_rank for hello in hellos if hello.node_rank is not None)
        twice = {rank for rank, count in claims.items() if count > 1}
        for field in ("protocol", "nnodes", "nproc_per_node"):
            if len({getattr(hello, field) for hello in hellos}) > 1:
                return [_fact(hello, field) for hello in hellos]
        if twice:
            return [_fact(hello, "node_rank") for hello in hellos if hello.node_rank in twice]
        if len(hellos) > self._cluster.nnodes:
            return [_fact(hello, "count") for hello in hellos]
        return []

    def too_late(self, late: Sequence[wire.Hello]) -> list[Fact]:
        """What agents contradict that come when the roll is complete: the number that they all claim and that is taken, or the count."""
        claims = {hello.node_rank for hello in late}
        same = [known for known in self.hellos.values() if known.node_rank is not None and claims == {known.node_rank}]
        if same:
            return [_fact(one, "node_rank") for one in (*same, *late)]
        return [_fact(one, "count") for one in (*self.hellos.values(), *late)]

    def numbers(self) -> dict[bytes, int]:
        """Each agent's number: the one it claims; the others in the order of the expected hosts, then of their names."""
        claimed = {peer: hello.node_rank for peer, hello in self.hellos.items() if hello.node_rank is not None}
        taken = set(claimed.values())
        free = iter(number for number in range(self._cluster.nnodes) if number not in taken)
        expected = {host: index for index, host in enumerate(self._cluster.hosts)}
        rest = sorted(
            (peer for peer in self.hellos if peer not in claimed),
            key=lambda peer: (expected.get(self.hellos[peer].host, len(expected)), self.hellos[peer].host, peer),
        )
        return claimed | dict(zip(rest, free, strict=False))  # there may be more agents than numbers: then that is a conflict

    def there(self) -> list[str]:
        """`node 0 (gpu-01)`, for each agent."""
        return [f"node {'?' if hello.node_rank is None else hello.node_rank} ({hello.host})" for hello in sorted(self.hellos.values(), key=_place)]

    def missing(self) -> list[Fact]:
        """A fact of kind "missing-node" for each node that is not there, named as well as can be."""
        numbers = set(self.numbers().values())
        hosts = self._cluster.hosts
        present = {hello.host for hello in self.hellos.values()}
        absent = Counter(host for host in hosts if host not in present)
        facts: list[Fact] = []
        for number in range(self._cluster.nnodes):
            if number not in numbers:
                named = hosts[number] if hosts and hosts[number] in absent else next(iter(absent), None)
                if named:
                    absent[named] -= 1
                    if not absent[named]:
                        del absent[named]
                facts.append(Fact("missing-node", named, fields={"node_rank": number, "nproc_per_node": self._cluster.nproc_per_node}))
        return facts


def describe_missing(facts: Sequence[Fact]) -> list[str]:
    """`node 1 (gpu-02)` or `node 1`, for each missing node."""
    return [f"node {fact.get('node_rank')}" + (f" ({fact.host})" if fact.host else "") for fact in facts]


def node_entries(numbers: Mapping[int, wire.Hello]) -> list[dict[str, object]]:
    """The nodes as they stand in the report."""
    return [
        {
            "node_rank": number,
            "host": hello.host,
            "addresses": dict(hello.addresses),
            "gpus": hello.gpus,
            "versions": dict(hello.versions),
            "nproc_per_node": hello.nproc_per_node,
        }
        for number, hello in sorted(numbers.items())
    ]


def task_fields(cluster: Cluster) -> dict[str, int] | None:
    """The part of a launcher's task that travels."""
    return asdict(cluster.task) if cluster.task else None


def _place(hello: wire.Hello) -> tuple[bool, int, str, int]:
    """By claimed number, then by host: the same roll reads the same whoever came first."""
    return hello.node_rank is None, hello.node_rank or 0, hello.host, hello.pid


def _fact(hello: wire.Hello, field: str) -> Fact:
    value = getattr(hello, field, None)
    fields = {"conflict": field, "value": value, "node_rank": hello.node_rank, "nnodes": hello.nnodes, "nproc_per_node": hello.nproc_per_node}
    return Fact("hello", hello.host, pid=hello.pid, fields=fields | {"version": hello.version, "protocol": hello.protocol, "source": hello.source})

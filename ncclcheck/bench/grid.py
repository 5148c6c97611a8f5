"""What is to be measured: layouts times loads, then one setting after the other changed, each from the same reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ncclcheck.bench.cells import Cell, Layout, Load, Server


@dataclass(frozen=True, slots=True)
class Launch:
    """One server, and the loads that are measured on it."""

    server: Server
    loads: Sequence[Load]

    @property
    def cells(self) -> list[Cell]:
        """One for each load."""
        return [Cell(self.server, load) for load in self.loads]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every launch, and the cell from which one thing at a time is changed."""

    launches: Sequence[Launch]
    reference: Cell

    @property
    def cells(self) -> list[Cell]:
        """All of them."""
        return [cell for launch in self.launches for cell in launch.cells]


def layouts(tps: Sequence[int], pps: Sequence[int], nodes: int, each: int, links: Sequence[str]) -> list[Layout]:
    """Every TP and PP on as few nodes as hold it, and on as many as it can be spread over; across nodes also over each link.

    A product that `nodes` nodes of `each` ranks cannot hold is left out. Raises ValueError, with the reason, for a TP or PP that none holds.
    """
    found: list[Layout] = []
    too_large: dict[tuple[int, int], str] = {}
    for pp in pps:
        for tp in tps:
            ranks = tp * pp
            possible = [count for count in range(1, nodes + 1) if ranks % count == 0 and ranks // count <= each]
            if not possible:
                too_large[tp, pp] = f"TP={tp} PP={pp} needs {ranks} ranks, evenly on {nodes} nodes with {each} each"
            for count in dict.fromkeys((*possible[:1], *possible[-1:])):
                found.append(Layout(tp, pp, count))
                found += [Layout(tp, pp, count, link) for link in links if count > 1]
    held = {layout.tp for layout in found}, {layout.pp for layout in found}
    for (tp, pp), reason in too_large.items():
        if tp not in held[0] or pp not in held[1]:
            raise ValueError(reason)
    return list(dict.fromkeys(found))


def loads(concurrencies: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], requests: int | None) -> list[Load]:
    """Every combination. Without `requests`, 8 for each that is there at once, and at least 16."""
    return [
        Load(concurrency, given, out, requests or max(16, 8 * concurrency)) for given in inputs for out in outputs for concurrency in concurrencies
    ]


def plan(found: Sequence[Layout], every: Sequence[Load], settings: Mapping[str, str], varied: Sequence[tuple[str, Sequence[str]]]) -> Plan:
    """The reference is the first layout under the first lengths at the largest concurrency, where settings matter most."""
    at = max((load for load in every if (load.input, load.output) == (every[0].input, every[0].output)), key=lambda load: load.concurrency)
    base = tuple(sorted(settings.items()))
    reference = Cell(Server(found[0], base), at)
    launches = [Launch(Server(layout, base), list(every)) for layout in found]
    for name, values in varied:
        launches += [Launch(reference.server.changed(name, value), [at]) for value in values if settings.get(name) != value]
    return Plan(launches, reference)

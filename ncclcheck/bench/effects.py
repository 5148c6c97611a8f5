"""What changed throughput, and by how much: cells that differ from the reference in one thing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ncclcheck.bench.cells import Cell, Layout, Result

LAYOUT, LINK, CONCURRENCY = "layout", "link", "concurrency"
WORKLOAD = ("input tokens", "output tokens")  # what users bring, nothing that can be set
BY_DEFAULT = "vLLM's own"


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that was changed, from and to what, and the two results."""

    name: str
    was: str
    now: str
    before: Result
    after: Result
    cell: Cell

    @property
    def factor(self) -> float:
        """Output tokens per second after it, as a multiple of those before; 0 where there were none before."""
        return self.after.tokens_per_second / self.before.tokens_per_second if self.before.tokens_per_second else 0.0

    @property
    def size(self) -> float:
        """How far from no effect: twice and half are alike."""
        return abs(math.log(self.factor)) if self.factor > 0 else 0.0


def of(results: Mapping[Cell, Result], reference: Cell) -> list[Effect]:
    """The effect of everything that was changed alone, largest first; of a link that is simulated, against the same layout without it."""
    found = []
    for cell, result in results.items():
        bare = _without_link(cell)
        origin = bare if bare != cell and cell.load == reference.load and cell.server.settings == reference.server.settings else reference
        if origin in results and (changed := differences(origin, cell)) and len(changed) == 1:
            ((name, (was, now)),) = changed.items()
            found.append(Effect(name, was, now, results[origin], result, cell))
    return sorted(found, key=lambda effect: -effect.size)


def winner(effects: list[Effect]) -> Effect | None:
    """What moved throughput most, of all that can be set."""
    return next((effect for effect in effects if effect.name not in WORKLOAD), None)


def differences(one: Cell, other: Cell) -> dict[str, tuple[str, str]]:
    """By name, what each of the two has."""
    left, right = _features(one), _features(other)
    names = dict.fromkeys((*left, *right))
    return {name: (left.get(name, BY_DEFAULT), right.get(name, BY_DEFAULT)) for name in names if left.get(name) != right.get(name)}


def _features(cell: Cell) -> dict[str, str]:
    layout, load = cell.server.layout, cell.load
    return {
        LAYOUT: str(Layout(layout.tp, layout.pp, layout.nodes)),
        LINK: layout.link or "as it is",
        CONCURRENCY: str(load.concurrency),
        WORKLOAD[0]: str(load.input),
        WORKLOAD[1]: str(load.output),
        **dict(cell.server.settings),
    }


def _without_link(cell: Cell) -> Cell:
    layout = cell.server.layout
    return Cell(type(cell.server)(Layout(layout.tp, layout.pp, layout.nodes), cell.server.settings), cell.load)

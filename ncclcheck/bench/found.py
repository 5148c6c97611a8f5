"""Everything that is known at the end of a measurement, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ncclcheck.bench import bound, effects, share
from ncclcheck.bench.bound import Bound
from ncclcheck.bench.cells import Cell, Layout, Load, Result
from ncclcheck.bench.effects import Effect
from ncclcheck.bench.grid import Plan
from ncclcheck.bench.share import Sent
from ncclcheck.model import Outcome
from ncclcheck.plan.curves import Curve
from ncclcheck.plan.shape import Shape


@dataclass(frozen=True, slots=True)
class Row:
    """One cell: what was measured, or why not. `kept`: it was measured before this run."""

    cell: Cell
    result: Result | None
    why: str = ""
    kept: bool = False
    changed: str = ""  # the setting that this cell alone has, in words


@dataclass(frozen=True, slots=True)
class Found:
    """A measurement, finished or not."""

    plan: Plan
    rows: Sequence[Row]
    where: Mapping[str, Any]
    shape: Shape | None = None  # of the model, where it is of a known kind
    curves: Mapping[Layout, Curve] = field(default_factory=dict)
    emulated: bool = False
    seconds: float = 0.0
    interrupted: bool = False
    insecure: bool = False  # the nodes shared no secret

    @property
    def results(self) -> dict[Cell, Result]:
        """What was measured."""
        return {row.cell: row.result for row in self.rows if row.result}

    @property
    def on_cpu(self) -> bool:
        """Whether the ranks had no GPU."""
        return bool(self.where.get("device") == "CPU")

    def sent(self, cell: Cell) -> Sent:
        """The share of communication in a cell's tokens."""
        return share.of(cell, self.results, self.shape, self.curves.get(cell.server.layout), self.on_cpu)

    def bound(self, cell: Cell) -> Bound:
        """What keeps it from being quicker."""
        return bound.of(cell, self.results[cell], self.sent(cell))

    def effects(self) -> list[Effect]:
        """What was changed alone, by its effect."""
        return effects.of(self.results, self.plan.reference)

    def of_layouts(self, load: Load) -> list[Row]:
        """One load on every layout with the settings of the reference."""
        settings = self.plan.reference.server.settings
        return [row for row in self.rows if row.cell.load == load and row.cell.server.settings == settings]

    def of_layout(self, layout: Layout) -> list[Row]:
        """Every load of one layout with the settings of the reference."""
        settings = self.plan.reference.server.settings
        return [row for row in self.rows if row.cell.server.layout == layout and row.cell.server.settings == settings]

    @property
    def layouts(self) -> list[Layout]:
        """In the order in which they are measured."""
        return list(dict.fromkeys(cell.server.layout for cell in self.plan.cells))

    @property
    def status(self) -> Outcome:
        """Healthy: all is measured; problem: some is not; unknown: nothing is, or it was interrupted."""
        if self.interrupted or not self.results:
            return Outcome.UNKNOWN
        return Outcome.HEALTHY if len(self.results) == len(self.plan.cells) else Outcome.PROBLEM

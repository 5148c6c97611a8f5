"""Keeps what was measured, a file for each cell, so that a measurement that was interrupted goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import safe_files
from ncclcheck.bench.cells import SCHEMA, Cell, Layout, Result
from ncclcheck.plan import measured
from ncclcheck.plan.curves import Curve

MOST_BYTES = 2**20  # of a cell's file
MOST_LINK_BYTES = 64 * 2**20  # of a report with all-reduces
_OF_WAYS = ("machine", "emulated", "device", "torch")  # what all-reduces depend on, of what a result does


class Kept(msgspec.Struct, frozen=True):
    """A cell's file: what it is, for people, and what was measured."""

    key: str
    cell: Cell
    where: dict[str, Any]
    result: Result


class Store:
    """One folder; `where` is everything that a result depends on beside its cell: model, versions, machine."""

    def __init__(self, folder: Path, where: Mapping[str, Any]) -> None:
        self.folder = folder
        self.where = where
        safe_files.folder(folder)

    def path(self, cell: Cell) -> Path:
        """Where a cell's result is, or will be."""
        return self.folder / f"cell-{cell.key(self.where)}.json"

    def get(self, cell: Cell) -> Result | None:
        """What was measured; None where it was not yet, or where the file is damaged: then it is measured anew."""
        try:
            with open(self.path(cell), "rb") as file:
                data = file.read(MOST_BYTES + 1)
            kept = msgspec.json.decode(data, type=Kept)
        except (OSError, msgspec.MsgspecError, RecursionError):
            return None
        return kept.result if len(data) <= MOST_BYTES and kept.key == cell.key(self.where) and kept.cell == cell else None

    def put(self, cell: Cell, result: Result) -> None:
        """Keep it; who reads meanwhile sees all of it or nothing."""
        kept = Kept(cell.key(self.where), cell, dict(self.where), result)
        safe_files.write(self.path(cell), msgspec.json.format(msgspec.json.encode(kept), indent=1))

    def ways(self, layout: Layout) -> Path:
        """Where the report is that has the all-reduces of a layout's ranks."""
        told = msgspec.json.encode([SCHEMA, layout.ranks, layout.nodes, layout.link, *(self.where.get(name) for name in _OF_WAYS)])
        return self.folder / f"ways-{hashlib.sha256(told).hexdigest()[:20]}.json"

    def curve(self, layout: Layout) -> Curve | None:
        """What all-reduces among a layout's ranks take; None where that was not measured."""
        path = self.ways(layout)
        with contextlib.suppress(OSError, measured.Unusable):
            if path.stat().st_size <= MOST_LINK_BYTES:
                return measured.read(path).curve
        return None

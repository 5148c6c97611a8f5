"""Measurements for the tests of `ncclcheck bench`: results without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ncclcheck.bench import grid
from ncclcheck.bench.cells import Cell, Result, Spread
from ncclcheck.bench.found import Found, Row
from ncclcheck.bench.grid import Plan

WHERE: Mapping[str, Any] = {"model": "models/tiny", "vllm": "0.32.0", "device": "CPU"}


def result(tokens_per_second: float = 100.0, tpot: float = 0.01, ttft: float = 0.05, **more: Any) -> Result:
    """What a cell of 32 tokens out gave."""
    e2e = ttft + 31 * tpot
    spreads = {"ttft": ttft, "tpot": tpot, "itl": tpot, "e2e": e2e}
    told: dict[str, Any] = {name: Spread(value, 2 * value, value) for name, value in spreads.items()}
    counts = {"duration": 1.0, "completed": 16, "failed": 0, "input_tokens": 2048, "output_tokens": 512}
    return Result(**{**told, **counts, "requests_per_second": tokens_per_second / 32, "tokens_per_second": tokens_per_second, **more})


def plan(links: tuple[str, ...] = (), vary: tuple[tuple[str, list[str]], ...] = ()) -> Plan:
    """TP=1, TP=2 in a node and over two, at 1 and 8 at once."""
    return grid.plan(grid.layouts([1, 2], [1], 2, 2, links), grid.loads([1, 8], [128], [32], None), {"dtype": "float32"}, vary)


def found(of: Plan, results: Mapping[Cell, Result], **more: Any) -> Found:
    """These results, and the other cells missing."""
    rows = [Row(cell, results.get(cell), "" if cell in results else "not reached") for cell in of.cells]
    return Found(of, rows, more.pop("where", WHERE), **more)

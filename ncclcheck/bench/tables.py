"""The tables of a measurement as headers and rows of text, for every format that shows tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ncclcheck.bench.cells import Cell, Spread
from ncclcheck.bench.found import Found, Row
from ncclcheck.bench.words import rate
from ncclcheck.units import seconds_text


@dataclass(frozen=True, slots=True)
class Table:
    """A title, headers, and rows of as many cells."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def of(found: Found) -> list[Table]:
    """Layouts side by side, latencies, throughput, effects, and what is missing; none that would be empty."""
    every = [_layouts(found), _latency(found), _throughput(found), _effects(found), _missing(found)]
    return [table for table in every if table.rows]


def _layouts(found: Found) -> Table:
    load = found.plan.reference.load
    rows = [row for row in found.of_layouts(load) if row.result]
    first = rows[0].result if rows else None
    made = []
    for row in rows:
        assert row.result and first
        sent = found.sent(row.cell)
        made.append([
            str(row.cell.server.layout), seconds_text(row.result.startup) if row.result.startup else "-", seconds_text(row.result.ttft.p50),
            seconds_text(row.result.tpot.p50), rate(row.result.tokens_per_second),
            f"{row.result.tokens_per_second / first.tokens_per_second:.2f}x" if first.tokens_per_second else "-",
            share(sent.by_collectives), between(sent.at_least, sent.at_most) if row.cell.server.layout.ranks > 1 else "-",
            found.bound(row.cell).word,
        ])  # fmt: skip
    title = f"layouts at {load}: medians"
    headers = ("layout", "startup", "TTFT", "TPOT", "tokens/s", "of first", "sent", "against TP=1", "bound by")
    return Table(title, headers, made)


def _latency(found: Found) -> Table:
    rows = [
        [*name(row), pair(row.result.ttft), pair(row.result.tpot), pair(row.result.e2e)]
        for row in found.rows if row.result
    ]  # fmt: skip
    return Table(f"latency: median / p99; {_LOAD}", (*_NAMES, "TTFT", "TPOT", "request"), rows)


def _throughput(found: Found) -> Table:
    rows = [
        [
            *name(row), rate(row.result.requests_per_second), rate(row.result.tokens_per_second), share(row.result.cache), count(row.result.running),
            count(row.result.waiting), count(row.result.preempted), found.bound(row.cell).word,
        ]
        for row in found.rows if row.result
    ]  # fmt: skip
    headers = (*_NAMES, "requests/s", "tokens/s", "cache", "running", "waiting", "thrown out", "bound by")
    return Table(f"throughput (tokens out), and the most that the server showed; {_LOAD}", headers, rows)


def _effects(found: Found) -> Table:
    reference = found.plan.reference
    rows = [
        [effect.name, effect.was, effect.now, f"{effect.factor - 1:+.0%}", rate(effect.after.tokens_per_second),
         _change(effect.before.ttft, effect.after.ttft), _change(effect.before.tpot, effect.after.tpot), _change(effect.before.e2e, effect.after.e2e)]
        for effect in found.effects()
    ]  # fmt: skip
    title = f"one thing changed at a time, from {describe(reference)}; largest effect on tokens/s first"
    return Table(title, ("what", "from", "to", "tokens/s", "then", "TTFT", "TPOT", "request"), rows)


def _missing(found: Found) -> Table:
    return Table("not measured", (*_NAMES, "why"), [[*name(row), row.why] for row in found.rows if not row.result])


def describe(cell: Cell) -> str:
    """A cell in words."""
    return ", ".join([str(cell.server.layout), str(cell.load), *(f"{key} {value}" for key, value in cell.server.settings)])


_NAMES = ("layout", "load")
_LOAD = "load: requests at once x tokens in + out"


def name(row: Row) -> list[str]:
    """Its first columns. A setting that was changed stands beside the layout."""
    load, failed = row.cell.load, f", {row.result.failed} failed" if row.result and row.result.failed else ""
    layout = str(row.cell.server.layout) + (f"; {row.changed}" if row.changed else "")
    return [layout, f"{load.concurrency} x {load.input}+{load.output}{failed}"]


def pair(spread: Spread) -> str:
    """`12 ms / 30 ms`."""
    return f"{seconds_text(spread.p50)} / {seconds_text(spread.p99)}"


def share(value: float | None) -> str:
    """Per cent."""
    return "-" if value is None else f"{value:.0%}"


def between(least: float | None, most: float | None) -> str:
    """`40-70%`."""
    return "-" if least is None or most is None else f"{least * 100:.0f}-{most * 100:.0f}%"


def count(value: int | None) -> str:
    """A number that may be unknown."""
    return "-" if value is None else str(value)


def _change(before: Spread, after: Spread) -> str:
    return f"{after.p50 / before.p50 - 1:+.0%}" if before.p50 else "-"

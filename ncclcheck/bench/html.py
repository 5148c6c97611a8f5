"""A measurement as one HTML file: plots, tables and answers. It loads nothing and runs nothing; all text in it is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from ncclcheck import __version__, secrets
from ncclcheck.bench import effects, share, svg, tables, text, words
from ncclcheck.bench.cells import Result
from ncclcheck.bench.found import Found
from ncclcheck.plain import plain
from ncclcheck.safe_text import printable
from ncclcheck.units import seconds_text

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#111827}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.plots{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0;flex:1 1 480px}
svg{width:100%;font:11px system-ui,sans-serif}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{border-bottom:1px solid #e5e7eb;padding:.25rem .6rem;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{background:#f9fafb}.verdict{background:#f3f4f6;border-left:4px solid #2563eb;padding:.7rem 1rem}
.legend span{margin-right:1rem;white-space:nowrap;font-size:12px}.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}
code{background:#f3f4f6;padding:.1em .3em}"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(found: Found) -> str:
    """The whole page, ending in a newline."""
    where = found.where
    setting = " ".join(found.plan.reference.server.arguments())
    about = f"{where.get('model')}, vLLM {where.get('vllm')}, {where.get('device')}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>ncclcheck bench: {_safe(str(where.get('model')))}</title><style>{_STYLE}</style></head><body>",
        f"<h1>ncclcheck bench: {_safe(about)}</h1>",
        f'<p class="verdict">{_safe(text.sentence(found))}</p>',
        f"<p>The reference: <code>{_safe(tables.describe(found.plan.reference))}</code>; <code>vllm serve {_safe(setting)}</code></p>",
    ]
    figures = [f"<figure>{plot}</figure>" for plot in plots(found) if plot]
    if figures:
        parts.append(f'<div class="plots">{"".join(figures)}</div>')
    for title, told in (("How to set it", list(words.advice(found))), ("Where the bottleneck is", list(words.bottleneck(found)))):
        parts += _list(title, told)
    for table in tables.of(found):
        parts += [f"<h2>{_safe(table.title)}</h2>", "<table><thead><tr>", *(f"<th>{_safe(header)}</th>" for header in table.headers)]
        parts += ["</tr></thead><tbody>", *("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)]
        parts.append("</tbody></table>")
    parts += [*_list("Notes", list(words.notes(found))), f"<p>ncclcheck {_safe(__version__)}</p></body></html>"]
    return "\n".join(parts) + "\n"


def plots(found: Found) -> Iterator[str]:
    """Throughput and times over concurrency, what a token's time is spent on, and effects."""
    load = found.plan.reference.load
    title = f"{load.input} tokens in, {load.output} out"
    yield svg.lines(f"throughput, {title}", "requests at once", "tokens/s", _series(found, _tokens), words.rate)
    yield svg.lines(f"time per token (TPOT, median), {title}", "requests at once", "", _series(found, _token_time), seconds_text)
    yield svg.lines(f"time to first token (median), {title}", "requests at once", "", _series(found, _first_time), seconds_text)
    spent = []
    for row in found.of_layouts(load):
        best = found.sent(row.cell).best
        if row.result and best is not None:
            token = share.per_token(row.result, row.cell)
            spent.append((printable(str(row.cell.server.layout)), (token * (1 - best), token * best), f"{seconds_text(token)}, {best:.0%} sent"))
    yield svg.stacks(f"a token's time, {load}", ("computing and the rest", "communication"), spent)
    changed = [
        (printable(f"{effect.name}: {effect.was} to {effect.now}"), effect.factor - 1, f"{effect.factor - 1:+.0%}")
        for effect in found.effects() if effect.name not in effects.WORKLOAD
    ]  # fmt: skip
    yield svg.bars("tokens/s: one thing changed at a time", changed)


def _series(found: Found, value: Callable[[Result], float]) -> dict[str, list[tuple[float, float]]]:
    load = found.plan.reference.load
    series = {}
    for layout in found.layouts:
        rows = [row for row in found.of_layout(layout) if (row.cell.load.input, row.cell.load.output) == (load.input, load.output)]
        if points := [(float(row.cell.load.concurrency), value(row.result)) for row in rows if row.result]:
            series[printable(str(layout))] = points
    return series


def _tokens(result: Result) -> float:
    return result.tokens_per_second


def _token_time(result: Result) -> float:
    return result.tpot.p50


def _first_time(result: Result) -> float:
    return result.ttft.p50


def _list(title: str, told: Sequence[str]) -> list[str]:
    return [f"<h2>{title}</h2><ul>", *(f"<li>{_safe(line)}</li>" for line in told), "</ul>"] if told else []


def _safe(value: str) -> str:
    """Secrets masked, control characters gone, markup escaped."""
    return escape(printable(plain(secrets.mask(value))), quote=True)

"""The answers of a measurement in sentences: how to set TP, batch and concurrency, what moved throughput, and where the bottleneck is."""

from __future__ import annotations

from collections.abc import Iterator

from ncclcheck.bench import effects
from ncclcheck.bench.cells import Layout, Server
from ncclcheck.bench.effects import Effect
from ncclcheck.bench.found import Found, Row
from ncclcheck.run_token import INSECURE
from ncclcheck.units import seconds_text

NEARLY = 0.9  # of the most throughput: more requests at once than it takes for that only wait longer
BUNCHED = 5  # times as long as its TPOT says a request takes for each token, where tokens arrive in bunches
CHANCE = 0.1  # smaller differences are not told from chance by one measurement


def summary(found: Found) -> str:
    """One sentence: how much was measured, what moved throughput most, and whether anybody could have taken part."""
    return f"{_measured(found)}; {INSECURE}" if found.insecure else _measured(found)


def _measured(found: Found) -> str:
    done, every = len(found.results), len(found.plan.cells)
    kept = sum(row.kept for row in found.rows)
    told = f"{done} of {every} cells measured" + (f", {kept} of them before" if kept else "")
    if found.interrupted:
        return f"{told}; interrupted: the same command goes on from here"
    best = effects.winner(found.effects())
    if best:
        return f"{told}; {most(best)}"
    missing = next((row.why for row in found.rows if row.why), "")
    return f"{told}; {missing}" if missing else told


def most(effect: Effect) -> str:
    """`concurrency moved throughput most: from 8 to 1 it fell to 21 % (880 -> 185 tokens/s)`."""
    rose = "rose to" if effect.factor >= 1 else "fell to"
    rates = f"{rate(effect.before.tokens_per_second)} -> {rate(effect.after.tokens_per_second)} tokens/s"
    if effect.size < CHANCE:
        return f"nothing that was changed moved throughput by more than chance does; most, {effect.name} to {effect.now}: {effect.factor - 1:+.0%}"
    factor = f"{effect.factor:.3g} times" if effect.factor >= 2 else f"{effect.factor:.0%}"
    return f"{effect.name} moved throughput most: from {effect.was} to {effect.now} it {rose} {factor} ({rates})"


def advice(found: Found) -> Iterator[str]:
    """How to set what was measured."""
    reference = found.plan.reference
    same = [row for row in found.of_layouts(reference.load) if row.result and not row.cell.server.layout.link]
    if len(same) > 1:
        yield f"Layout: {_layout(same)}."
    for layout in found.layouts:
        if told := _concurrency(found, layout):
            yield told
    settings = [effect for effect in found.effects() if effect.name in dict(effect.cell.server.settings)]
    if settings:
        best = max(settings, key=lambda effect: effect.factor)
        if best.factor > 1 + CHANCE:
            yield f"Settings: {best.name} {best.now} instead of {best.was} gives {best.factor - 1:+.0%} tokens/s at {reference.load}."
        else:
            names = ", ".join(dict.fromkeys(effect.name for effect in settings))
            yield f"Settings: no value that was tried of {names} gives more than {CHANCE:.0%} above the reference at {reference.load}."
    yield from _links(found)


def bottleneck(found: Found) -> Iterator[str]:
    """For each layout, what bounds it under the reference's load."""
    for row in found.of_layouts(found.plan.reference.load):
        if row.result:
            yield f"{row.cell.server.layout}: {found.bound(row.cell).word}: {found.bound(row.cell).text}."


def notes(found: Found) -> Iterator[str]:
    """What the figures rest on."""
    yield "Times are those of vLLM's own client (vllm bench serve) on node 0; p99 of few requests is nearly their longest."
    yield "The cache and the queue are read from the server five times a second: what is shorter than that is not seen."
    if any(row.result.tpot.p50 * BUNCHED < row.result.e2e.p50 / row.cell.load.output for row in found.rows if row.result):
        yield "Some answers came in bunches, as the server or its client lacked CPU: there TTFT holds what TPOT lacks; the whole request counts."
    if any(found.sent(row.cell).by_collectives is not None and row.cell.server.layout.ranks > 1 for row in found.rows if row.result):
        yield (
            "sent: so many all-reduces and gathers as a token has, each as long as it took among the same ranks without vLLM; against TP=1: from "
            "what a token takes longer than on one rank, to what it takes longer than a TP-th of that. Both: of a request's time by its tokens out."
        )
    if found.on_cpu:
        yield "Server, ranks and client share this machine's cores: compare the rows, not their absolute speed."
    yield f"One measurement of each cell: differences below {CHANCE:.0%} may be chance."


def rate(value: float) -> str:
    """Tokens or requests per second."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _layout(same: list[Row]) -> str:
    results = [(row.cell.server.layout, row.result) for row in same if row.result]
    fastest = max(results, key=lambda pair: pair[1].tokens_per_second)
    quickest = min(results, key=lambda pair: pair[1].tpot.p50)
    for_each = max(results, key=lambda pair: pair[1].tokens_per_second / pair[0].ranks)
    told = f"{fastest[0]} gives most tokens/s ({rate(fastest[1].tokens_per_second)} at {same[0].cell.load})"
    if quickest[0] != fastest[0]:
        told += f"; {quickest[0]} answers quickest ({seconds_text(quickest[1].tpot.p50)} for each token)"
    if for_each[0] != fastest[0]:
        told += f"; for each GPU or core, {for_each[0]} gives most, and copies of it add up"
    return told


def _concurrency(found: Found, layout: Layout) -> str:
    load = found.plan.reference.load
    rows = [row for row in found.of_layout(layout) if (row.cell.load.input, row.cell.load.output) == (load.input, load.output)]
    measured = sorted([(row.cell.load.concurrency, row.result) for row in rows if row.result], key=lambda pair: pair[0])
    if len(measured) < 2:
        return ""
    most_tokens = max(result.tokens_per_second for _, result in measured)
    enough = next((number, result) for number, result in measured if result.tokens_per_second >= NEARLY * most_tokens)
    number, result = enough
    times = f"{seconds_text(result.tpot.p50)} for each token, first one after {seconds_text(result.ttft.p50)}"
    if number == measured[-1][0]:
        return f"Concurrency, {layout}: throughput still grows at {number} at once ({rate(result.tokens_per_second)} tokens/s, {times}): try more."
    share = f"{result.tokens_per_second / most_tokens:.0%} of the most"
    return f"Concurrency, {layout}: {number} at once give {share} ({times}); more only wait longer."


def _links(found: Found) -> Iterator[str]:
    load, settings = found.plan.reference.load, found.plan.reference.server.settings
    rows = {row.cell.server.layout: row for row in found.of_layouts(load)}
    for layout, row in rows.items():
        bare = rows.get(Layout(layout.tp, layout.pp, layout.nodes))
        if not (layout.link and row.result and bare and bare.result):
            continue
        alone = rows.get(Layout())
        kept = row.result.tokens_per_second / bare.result.tokens_per_second if bare.result.tokens_per_second else 0.0
        times = f"{seconds_text(row.result.tpot.p50)} instead of {seconds_text(bare.result.tpot.p50)}"
        told = f"Network: over {layout.link}, {bare.cell.server.layout} gives {kept:.0%} of its tokens/s without it, and a token takes {times}"
        if alone and alone.result and Server(Layout(), settings) == alone.cell.server:
            told += f" (TP=1: {seconds_text(alone.result.tpot.p50)})"
        yield f"{told}."

"""Judges all ways between the nodes together. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ncclcheck.model import Fact
from ncclcheck.preflight import exports, names, packets, unreachable
from ncclcheck.preflight.tried import Tried, quoted
from ncclcheck.survey import Survey, note, seen, unread
from ncclcheck.units import bandwidth_text
from ncclcheck.wayfacts import OK, VAGUE, Key, directions, key


def judge(survey: Survey) -> Iterator[Fact]:
    """What is wrong between the nodes, what they are to export, and how much of it is known."""
    tried = Tried(survey)
    counted = next((fact for fact in survey.ways if fact.kind == "tried"), None)
    if counted is None:
        yield unread("the ways between the nodes", "they were not tried", [node.host for node in survey.nodes], needed=survey.job.nnodes > 1)
        return
    yield from unreachable.judge(tried)
    yield from packets.judge(tried)
    yield from names.judge(tried)
    yield from exports.judge(tried)
    yield from _unknown(tried)
    yield from _measured(tried)
    yield seen("; ".join([summary(survey), *figures(tried)]))
    if int(counted.get("tried")) < int(counted.get("of")):
        yield note(summary(survey) + _why(counted), [], **counted.fields)


def _measured(tried: Tried) -> Iterator[Fact]:
    """A fact of kind "pair" for each way: what was measured of it, for programs to read."""
    kept = ("peer", "network", "interface", "source", "address", "answer", "rtt_ms", "out_bytes_per_s", "in_bytes_per_s", "path_mtu")
    yield from (Fact("pair", fact.host, fields={name: fact.get(name) for name in kept if fact.get(name) is not None}) for fact in tried.ways)


def figures(tried: Tried) -> list[str]:
    """Round trip and rate of the main network, in words: the middle, and the worst with its name. A short try on one connection is no benchmark."""
    ways = [fact for fact in tried.lines.get("", ()) if fact.get("answer") == OK]
    rates = {way: rate for way, rate in directions(ways).items() if rate}
    if not rates:
        return []
    late = max(ways, key=lambda fact: float(fact.get("rtt_ms", 0.0)))
    trips = [float(fact.get("rtt_ms", 0.0)) for fact in ways]
    slow = min(rates, key=lambda way: rates[way])
    return [
        f"round trip {statistics.median(trips):.2g} ms" + _worst(tried, key(late), f"{max(trips):.2g} ms", len(ways)),
        f"one connection {bandwidth_text(statistics.median(rates.values()))}" + _worst(tried, slow, bandwidth_text(rates[slow]), len(rates)),
    ]


def _worst(tried: Tried, way: Key, said: str, many: int) -> str:
    """Nothing where there is one pair only: then there is no worst one."""
    return f" (at worst {said}, {tried.name(way[0])} -> {tried.name(way[1])})" if many > 2 else ""


def _why(counted: Fact) -> str:
    """Why not all ways were tried."""
    given_up: Sequence[str] = counted.get("given_up", ())
    reasons = [
        "a sample, in which every node and every switch is" if counted.get("sampled") else "",
        "the time for it was over" if counted.get("late") else "",
        f"with {', '.join(given_up[:4])}{' and others' if len(given_up) > 4 else ''} nothing worked" if given_up else "",
    ]
    return f" ({'; '.join(filter(None, reasons))})" if any(reasons) else ""


def summary(survey: Survey) -> str:
    """How many ways were tried: `tried 320 of 4032 ordered pairs of nodes, over 2 networks`."""
    tried = Tried(survey)
    counted = next((fact for fact in survey.ways if fact.kind == "tried"), None)
    if counted is None or not counted.get("of"):
        return "one host: there is no way to try"
    networks = f", over {len(tried.lines)} networks" if len(tried.lines) > 1 else ""
    many = f"tried all {counted.get('of')}" if counted.get("tried") == counted.get("of") else f"tried {counted.get('tried')} of {counted.get('of')}"
    return f"{many} ordered pairs of nodes{networks}"


def _unknown(tried: Tried) -> Iterator[Fact]:
    """Ways of which nothing is known. They are needed where nothing is known of the other direction either."""
    vague = [fact for fact in tried.lines.get("", []) if fact.get("answer") in VAGUE]
    if vague:
        well = {key(fact) for fact in tried.ways if fact.get("answer") == OK}
        needed = any((fact.get("peer_rank"), fact.get("node_rank"), fact.get("network")) not in well for fact in vague)
        what = f"{len(vague)} of {len(tried.lines[''])} ways" if len(vague) > 1 else "one way"
        nodes = {int(fact.get("node_rank")) for fact in vague}
        yield unread(f"{what} between nodes", quoted(tried, vague)[0], tried.hosts(nodes), needed=needed)

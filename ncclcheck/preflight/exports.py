"""Works out which interfaces NCCL and Gloo are to use, as lines to paste. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from ncclcheck import socket_ifname, wayfacts
from ncclcheck.model import Fact
from ncclcheck.preflight.tried import Tried
from ncclcheck.safe_text import word
from ncclcheck.survey import note

FASTER, FASTER_MEASURED = 2, 5.0  # times as fast as the main network another must be to be recommended: short tries are no benchmark


def judge(tried: Tried) -> Iterator[Fact]:
    """A note with what to export, where the nodes do not say it yet."""
    whole = [line for line in tried.lines if _whole(tried, line)]
    best = _best(tried, whole)
    if best is None or _right(tried, [tried.interfaces(line) for line in whole]):
        return
    interfaces = tried.interfaces(best)
    lines = exports({node: interfaces[node] for node in tried.nodes}, {node: _names(tried, node) for node in tried.nodes})
    every = f"all {len(tried.nodes)} nodes" if len(tried.nodes) > 2 else "both nodes"
    if len(set(lines.values())) == 1:
        title = f"{every} reach each other {tried.over(best)}; on each of them: {next(iter(lines.values()))}"
    else:
        first = "; ".join(f"on {tried.name(node)}: {line}" for node, line in list(lines.items())[:4])
        title = f"{every} reach each other {tried.over(best)}, by interfaces with different names: {first}" + ("; ..." if len(lines) > 4 else "")
    yield note(title, tried.hosts(tried.nodes), export={tried.name(node): line for node, line in lines.items()})


def exports(interfaces: Mapping[int, str], names: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """Node -> the line to paste there. NCCL takes beginnings of names, so `=` goes before one with which another begins, too."""
    result = {}
    for node, interface in interfaces.items():
        others = [name for each in (names.values() if len(set(interfaces.values())) == 1 else [names.get(node, ())]) for name in each]
        exact = "=" * any(name.startswith(interface) and name != interface for name in others)
        result[node] = f"export NCCL_SOCKET_IFNAME={word(exact + interface)} GLOO_SOCKET_IFNAME={word(interface)}"
    return result


def _names(tried: Tried, node: int) -> Sequence[str]:
    names: Sequence[str] = next((door.get("names", ()) for door in tried.doors if door.get("node_rank") == node), ())
    return names


def _whole(tried: Tried, line: str) -> bool:
    """Whether every node is in this network, and every way there that was tried works."""
    facts = tried.lines[line]
    return set(tried.interfaces(line)) >= set(tried.nodes) and all(fact.get("answer") == wayfacts.OK for fact in facts)


def _best(tried: Tried, whole: Sequence[str]) -> str | None:
    """The main network, unless another is faster by far: by what the interfaces say, or where they say nothing by what was measured."""
    if not whole or "" not in whole:
        return whole[0] if whole else None
    speeds = {line: _speed(tried, line) for line in whole}
    rates = {line: statistics.median(wayfacts.directions(tried.lines[line]).values()) for line in whole}
    faster = [
        line for line in whole if (speeds[line] >= FASTER * speeds[""] if speeds[line] and speeds[""] else rates[line] > FASTER_MEASURED * rates[""])
    ]
    return max(faster, key=lambda line: (speeds[line], rates[line]), default="")


def _speed(tried: Tried, line: str) -> int:
    """Mbit/s of the slowest interface of a network; 0 where one of them does not say it."""
    here = tried.interfaces(line)
    return min((int(door.get("speed") or 0) for door in tried.doors if here.get(door.get("node_rank")) == door.get("interface")), default=0)


def _right(tried: Tried, good: Sequence[Mapping[int, str]]) -> bool:
    """Whether every node's settings choose interfaces that lead to all others, the same network for all."""
    for variable in (socket_ifname.NCCL, socket_ifname.GLOO):
        chosen = {node: tried.chosen(node, variable) for node in tried.nodes}
        if not any(all((names := chosen[node]) and line.get(node) in names for node in tried.nodes) for line in good):
            return False
    return True

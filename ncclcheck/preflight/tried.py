"""Everything that was tried between the nodes, as those who judge it want it. Pure."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ncclcheck import socket_ifname, wayfacts
from ncclcheck.model import Fact
from ncclcheck.safe_text import word
from ncclcheck.survey import Survey, degrades, note, stop

Say = Callable[..., Fact]  # `stop`, `degrades`, or a note in its place
SHOWN = 6  # ways that are quoted


@dataclass(frozen=True)
class Tried:
    """A survey's ways and doors."""

    survey: Survey

    @functools.cached_property
    def ways(self) -> list[Fact]:
        """All ways."""
        return [fact for fact in self.survey.ways if fact.kind == "way"]

    @functools.cached_property
    def doors(self) -> list[Fact]:
        """All doors."""
        return [fact for fact in self.survey.ways if fact.kind == "door"]

    @functools.cached_property
    def nodes(self) -> list[int]:
        """Between which nodes ways were tried."""
        return sorted({int(fact.get("node_rank")) for fact in self.doors})

    @functools.cached_property
    def _hosts(self) -> Mapping[int, str]:
        return {int(fact.get("node_rank")): str(fact.host) for fact in self.doors} | {
            int(fact.get(number)): str(host) for fact in self.ways for number, host in (("node_rank", fact.host), ("peer_rank", fact.get("peer")))
        }

    def name(self, node: int) -> str:
        """A node's host name, also for a remedy; with its number where several have that name."""
        host = self._hosts[node]
        return word(host) if Counter(self._hosts.values())[host] == 1 else f"{word(host)} (node {node})"

    def names(self, nodes: Iterable[int]) -> str:
        """`a, b and c`, of many nodes the first few."""
        said = [self.name(node) for node in sorted(nodes)]
        if len(said) > SHOWN:
            return f"{', '.join(said[:SHOWN])} and {len(said) - SHOWN} others"
        return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]]))

    def hosts(self, nodes: Iterable[int]) -> list[str]:
        """The host names of these nodes, as a culprit has them."""
        return list(dict.fromkeys(self._hosts[node] for node in sorted(nodes)))

    @functools.cached_property
    def lines(self) -> dict[str, list[Fact]]:
        """Network -> its ways; that of the main ones, "", comes first."""
        found: dict[str, list[Fact]] = {}
        for fact in sorted(self.ways, key=lambda fact: not fact.get("main")):
            found.setdefault(wayfacts.line(fact), []).append(fact)
        return found

    def interfaces(self, line: str) -> dict[int, str]:
        """Node -> its interface there."""
        return {
            int(fact.get(number)): str(fact.get(name))
            for fact in self.lines[line]
            for number, name in (("peer_rank", "peer_interface"), ("node_rank", "interface"))
        }

    def over(self, line: str) -> str:
        """`over eth1`, or over which network where the interfaces have several names."""
        names = set(self.interfaces(line).values())
        networks = {str(fact.get("network")) for fact in self.lines[line]}
        several = names if len(names) == 1 else networks
        return f"over {several.pop()}" if len(several) == 1 else "over the interfaces that lead to node 0"

    def said(self, node: int, variable: str) -> str:
        """What a node's settings say of the interfaces to use; empty where they say nothing, or could not be read."""
        address = next((door.get("address") for door in self.doors if door.get("node_rank") == node and door.get("main")), None)
        section: Mapping[str, Any] = next((each.read("settings") or {} for each in self.survey.nodes if each.address == address), {})
        if variable == socket_ifname.NCCL:
            return str(section.get("nccl", {}).get(variable, {}).get("value", ""))
        return str(section.get("variables", {}).get(variable, ""))

    def chosen(self, node: int, variable: str) -> list[str] | None:
        """The interfaces that the settings choose there; None where they leave it open."""
        said = self.said(node, variable)
        names = next((list(fact.get("names", ())) for fact in self.doors if fact.get("node_rank") == node), [])
        return socket_ifname.chosen(variable, said, names) if len(said) > 1 else None

    def say(self, line: str) -> Say:
        """How grave it is where a network does not work: whether settings choose it, or leave it open and NCCL may."""
        chosen = [self.chosen(node, variable) for node in self.nodes for variable in (socket_ifname.NCCL, socket_ifname.GLOO)]
        here = [(node, name, variable) for node, name in self.interfaces(line).items() for variable in (socket_ifname.NCCL, socket_ifname.GLOO)]
        taken = [each for each in here if each[1] in (self.chosen(each[0], each[2]) or ())]
        if any(self._meant(*each) for each in taken) or (not line and (taken or not all(chosen))):
            return stop
        return degrades if taken or not line or not all(chosen) else _noted

    def _meant(self, node: int, interface: str, variable: str) -> bool:
        """Whether settings name that very interface, or it is the first that they choose: a list of what not to take lets in many more."""
        said = self.said(node, variable)
        named = not said.startswith("^") and interface in said.removeprefix("=").split(",")
        return named or (self.chosen(node, variable) or [""])[0] == interface


def _noted(cause: str, title: str, hosts: Sequence[str], remedy: str, **more: Any) -> Fact:
    return note(f"{title}; the settings do not use it", hosts, cause=cause, remedy=remedy, **more)


def quoted(tried: Tried, facts: Iterable[Fact]) -> list[str]:
    """Ways as they were observed."""
    return [_quote(tried, fact) for fact in list(facts)[:SHOWN]]


def _quote(tried: Tried, fact: Fact) -> str:
    line = f"{tried.name(fact.get('node_rank'))} -> {tried.name(fact.get('peer_rank'))} ({fact.get('source')} -> {fact.get('address')})"
    more = [
        "a ping is answered" if fact.get("ping") else "a ping is not answered" if fact.get("ping") is False else "",
        *fact.get("others", ()),
        "datagrams to it are answered" if fact.get("datagrams") and fact.get("answer") != wayfacts.OK else "",
        "the agents speak to each other on this way" if fact.get("control") else "",
    ]
    return f"{line}: {'; '.join([str(fact.get('text', fact.get('answer'))), *filter(None, more)])}"

"""Compares nodes thing by thing, and says who differs from the most. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ncclcheck import alike, gathered
from ncclcheck.model import Fact
from ncclcheck.safe_text import word
from ncclcheck.survey import Node, Section, degrades, note, stop, unread

COUNTED = 3  # hosts with the value that most have are named up to this many, then counted


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that is compared. `value`: its text on a node, None where there is none of it."""

    name: str
    section: str
    value: Callable[[Section, Node], str | None]
    say: Callable[..., Fact] | None = None  # stop or degrades; None: a note
    cause: str = ""
    why: str = ""  # what a difference does
    remedy: str = ""  # {hosts}: those with another value; {most}: what most nodes have
    optional: bool = False  # a job may do without: that it is not there on some nodes stops nothing


def differences(nodes: Sequence[Node], things: Sequence[Thing]) -> Iterator[Fact]:
    """A fact for each thing that differs, and for each that could not be read somewhere while others have it."""
    for thing in things:
        groups, silent = grouped(nodes, thing)
        if len(groups) > 1:
            yield _differs(thing, groups)
        if silent and set(groups) - {""}:
            reason = silent[0].why(thing.section) or "the section says nothing of it"
            yield unread(thing.name, reason, [node.host for node in silent], needed=thing.say is stop)


def grouped(nodes: Sequence[Node], thing: Thing) -> tuple[dict[str, list[Node]], list[Node]]:
    """Value -> the nodes that have it, "" for none, the most common one first; and the nodes of which it is not known."""
    groups: dict[str, list[Node]] = {}
    silent: list[Node] = []
    for node in nodes:
        section = node.read(thing.section)
        value = None if section is None else thing.value(section, node)
        if section is None or (value is None and thing.name.lower() in section.get("unread", {})):
            silent.append(node)
        else:
            groups.setdefault(value or "", []).append(node)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1]))), silent


def _differs(thing: Thing, groups: Mapping[str, Sequence[Node]]) -> Fact:
    title = f"{thing.name} {said(groups)}" + (f": {thing.why}" if thing.why else "")
    hosts = [node.host for node in alike.odd(groups)]
    if thing.say is None:
        return note(title, hosts, values=values(groups))
    most = next(value for value in groups if value)
    others = [node.host for value, same in groups.items() if value != most for node in same]
    remedy = thing.remedy.format(hosts=gathered.names(others), most=word(most))
    say = degrades if thing.optional and "" in groups else thing.say
    return say(thing.cause, title, hosts, remedy, evidence=lines(thing.name, groups), values=values(groups))


def said(groups: Mapping[str, Sequence[Node]], none: str = "none") -> str:
    """`2.28.9 on 31 nodes, 2.28.3 on gpu-17`."""
    parts = []
    for place, (value, same) in enumerate(groups.items()):
        hosts = [node.host for node in same]
        parts.append(f"{value or none} on {f'{len(hosts)} nodes' if place == 0 and len(hosts) > COUNTED else gathered.names(hosts)}")
    return ", ".join(parts)


def values(groups: Mapping[str, Sequence[Node]]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{"value": value or None, "hosts": [node.host for node in same]} for value, same in groups.items()]


def lines(name: str, groups: Mapping[str, Sequence[Node]], none: str = "none") -> list[str]:
    """Each node's word on it, of as few nodes as show the difference."""
    return [f"{same[0].host}: {name} {value or none}" for value, same in groups.items()]


def summary(nodes: Sequence[Node], things: Sequence[Thing]) -> str:
    """`2 nodes alike: torch 2.13.0, vLLM 0.32.0, Python 3.11`."""
    alike_: list[str] = []
    for thing in things:
        groups, _ = grouped(nodes, thing)
        if thing.say is not None and len(groups) == 1 and (value := next(iter(groups))):
            alike_.append(f"{thing.name} {value}")
    return f"{len(nodes)} nodes alike: {', '.join(alike_)}"

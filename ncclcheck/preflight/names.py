"""Judges where the host names of the nodes lead on each of them. Pure. Where a node's own name leads there is judged with its interfaces."""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set

from ncclcheck.model import Fact
from ncclcheck.preflight.tried import Tried
from ncclcheck.safe_text import word
from ncclcheck.survey import degrades, note, unread


def judge(tried: Tried) -> Iterator[Fact]:
    """Names that lead elsewhere than to the node that has them; those that lead nowhere are noted, as not everybody gives nodes names."""
    told = [fact for fact in tried.survey.ways if fact.kind == "names"]
    yield from _elsewhere(tried, told)
    failed: dict[str, set[int]] = defaultdict(set)
    for fact in told:
        for name in fact.get("failed", {}):
            if name != fact.host:
                failed[name].add(int(fact.get("node_rank")))
    if failed:
        where = {node for nodes in failed.values() for node in nodes}
        named = ", ".join(list(failed)[:6]) + (f" and {len(failed) - 6} others" if len(failed) > 6 else "")
        title = f"on {tried.names(where)} the names of other nodes ({named}) do not resolve: give addresses, not names, as MASTER_ADDR and rendezvous"
        yield note(title, tried.hosts(where), names=sorted(failed))
    if late := [fact for fact in told if fact.get("late")]:
        names = ", ".join(late[0].get("late")[:3])
        yield unread(f"host names ({names})", "no answer from the resolver in time", [str(fact.host) for fact in late])


def _elsewhere(tried: Tried, told: list[Fact]) -> Iterator[Fact]:
    addresses = {int(door.get("node_rank")): set(door.get("addresses", ())) for door in tried.doors}
    hosts = Counter(tried.hosts([node])[0] for node in tried.nodes)
    owner = {tried.hosts([node])[0]: node for node in tried.nodes if hosts[tried.hosts([node])[0]] == 1}
    wrong: dict[tuple[str, tuple[str, ...]], set[int]] = defaultdict(set)
    for fact in told:
        for name, found in fact.get("resolved", {}).items():
            if name in owner and owner[name] != fact.get("node_rank") and not _leads_to(found, addresses[owner[name]]):
                wrong[name, tuple(found)].add(int(fact.get("node_rank")))
    for (name, found), nodes in wrong.items():
        yield _finding(tried, name, found, nodes, addresses[owner[name]])


def _leads_to(found: list[str], own: Set[str]) -> bool:
    """Whether the first address, which most programs take, is that node's; or one of the other family is, and the first leads to another network."""
    first = [address for address in found if (":" in address) == (":" in found[0])]
    rest = [address for address in found if address not in first]
    return bool(first) and (first[0] in own or (not own & set(first) and bool(own & set(rest)) and not _loopback(first[0])))


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _finding(tried: Tried, name: str, found: tuple[str, ...], nodes: Set[int], own: Set[str]) -> Fact:
    mains: Mapping[str, str] = {str(door.host): str(door.get("address")) for door in tried.doors if door.get("main")}
    right = mains.get(name) or next((address for address in sorted(own) if not _loopback(address)), "ADDRESS")
    elsewhere = f"{', '.join(found[:3])}" + (", which is that very machine" if _loopback(found[0]) else "")
    title = f"the name {name} leads to {elsewhere} on {tried.names(nodes)}, and {name} has {right}"
    remedy = (
        f"on {tried.names(nodes)}: getent ahosts {word(name)}   # mend DNS, or write `{right} {name}` in /etc/hosts; or give addresses, not names"
    )
    seen = [f"getaddrinfo on {tried.name(node)}: {name} -> {', '.join(found[:4])}" for node in sorted(nodes)[:4]]
    return degrades("hostname-resolution", title, tried.hosts(nodes), remedy, evidence=seen, confidence=0.85)

"""Judges the network of one node: do the settings, and what NCCL and Gloo take by themselves, lead to the other nodes? Pure.

What each takes by itself: NCCL the first interface that is up and has an address, ib* before all others and neither docker* nor lo nor virbr*
while there is another (NCCL's socket.cc); Gloo the first of its own addresses to which the host's name resolves, loopback where there is none;
vLLM the address from which it would speak to 8.8.8.8 (vLLM's get_ip).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ncclcheck import socket_ifname
from ncclcheck.model import Fact
from ncclcheck.preflight import wiring
from ncclcheck.rules.wrong_interface import LOCAL
from ncclcheck.safe_text import word
from ncclcheck.survey import Job, Node, Section, degrades, stop, unread

_CABLES = ("physical", "infiniband", "bond", "vlan", "veth", "macvlan", "ipvlan", "team")  # kinds that lead out of a node, unless LOCAL names them
_STATES = {"down": "down", "no-carrier": "without carrier"}
_PRIVATE = ("tun", "wireguard")


@dataclass(frozen=True, slots=True)
class View:
    """The network of one node, as its judges see it."""

    node: Node
    job: Job
    found: Section
    lead: str  # the interface that leads to the others; empty where none does

    @property
    def interfaces(self) -> Sequence[Mapping[str, Any]]:
        """All of them, in the kernel's order."""
        found: Sequence[Mapping[str, Any]] = self.found["interfaces"]
        return found

    @property
    def usable(self) -> list[str]:
        """Those that are up and have an address; the ones with an IPv4 address come first, as programs see them."""
        able = [one for one in self.interfaces if one["state"] == "up" and one["addresses"]]
        return [str(one["name"]) for one in sorted(able, key=lambda one: all(":" in address for address in one["addresses"]))]

    def named(self, name: str) -> Mapping[str, Any]:
        """An interface by its name; empty where it is not there."""
        return next((one for one in self.interfaces if one["name"] == name), {})

    def holder(self, address: str) -> Mapping[str, Any]:
        """The interface that has an address; empty where none has it."""
        return next((one for one in self.interfaces if address in one["addresses"]), {})

    def nowhere(self, name: str) -> bool:
        """Whether an interface does not lead to other nodes, as far as its kind and name tell; one that the kernel uses for them does."""
        kind = self.named(name).get("kind")
        return name != self.lead and (kind in ("loopback", *_PRIVATE) or bool(LOCAL.match(name)))

    def wireless(self, name: str) -> bool:
        """Whether an interface has no cable: it may lead to the others, and more slowly."""
        return self.named(name).get("kind") == "wireless" or name.startswith("wl")

    def detour(self, name: str) -> bool:
        """Whether an interface that should not be used may lead to the others all the same."""
        return self.named(name).get("kind") in _PRIVATE or self.wireless(name)

    def seen(self, *names: str) -> list[str]:
        """How these interfaces are, as evidence."""
        rows = [self.named(name) for name in names]
        return [
            f"{one['name']} on {self.node.host}: {one['kind']}, {one['state']}, {', '.join(one['addresses']) or 'no address'}" for one in rows if one
        ]

    @property
    def export(self) -> str:
        """What to type to name the right interface."""
        return (
            f"on {self.node.host}: export NCCL_SOCKET_IFNAME={self.lead or 'INTERFACE'} GLOO_SOCKET_IFNAME={self.lead or 'INTERFACE'}   # ip -br addr"
        )


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """What of this node's network would stop or slow a launch."""
    found = node.read("interfaces")
    if found is None:
        yield unread(f"interfaces of {node.host}", node.why("interfaces"), [node.host], needed=True)
        return
    leads = Counter(way["interface"] for way in found["ways"].values() if way["interface"] not in ("", "INTERFACE"))
    view = View(node, job, found, leads.most_common(1)[0][0] if leads else str(_holder(found, node.address).get("name", "")))
    told: set[str] = set()  # interfaces of which something is said already
    for fact in _named(view):
        told |= set(str(fact.get("interface", "")).split(", "))
        yield fact
    if job.nnodes > 1:
        yield from _ways(view)
        yield from _by_itself(view)
        yield from _down(view, told)
        yield from _hostname(view)
    yield from wiring.judge(node, job, found)


def _holder(found: Section, address: str) -> Mapping[str, Any]:
    return next((one for one in found["interfaces"] if address in one["addresses"]), {})


def _named(view: View) -> Iterator[Fact]:
    """The variables that name interfaces. Of several that Gloo is given, it fails with one; NCCL leaves out those that are down."""
    names = [str(one["name"]) for one in view.interfaces]
    for variable in socket_ifname.VARIABLES:
        said = view.found["said"].get(variable, "")
        if not said:
            continue
        here = f"{variable}={said} on {view.node.host}"
        evidence = [f"environment of {view.node.host}: {variable}={said}", *view.seen(*names)]
        if mistake := socket_ifname.mistake(variable, said, names, several=view.job.nnodes > 1):
            named = None if said[0] in "^=" else said
            yield stop("wrong-interface", f"{here}, {mistake}", [view.node.host], view.export, evidence=evidence, interface=named)
            continue
        chosen = socket_ifname.chosen(variable, said, names)
        bad = [name for name in chosen if name not in view.usable]
        good = [name for name in chosen if name in view.usable]
        if view.job.nnodes > 1 and any(view.node.address in view.named(name)["addresses"] for name in bad):
            continue  # it is the right one, and down: that is said of it below
        if bad and (variable == socket_ifname.GLOO or not good):
            why = ", ".join(f"{name} {_lacks(view.named(name))}" for name in bad[:4])
            title = f"{here}, and {why}"
            yield stop("wrong-interface", title, [view.node.host], view.export, evidence=evidence, interface=", ".join(bad))
        elif good and view.job.nnodes > 1 and view.nowhere(good[0]):
            lacks = "is wireless, and slower than a cable" if view.wireless(good[0]) else "does not lead to the other nodes"
            title = f"{here}, and {good[0]} {lacks}; {_leads(view)}"
            say = degrades if view.detour(good[0]) else stop
            yield say("wrong-interface", title, [view.node.host], view.export, evidence=evidence, interface=good[0])


def _lacks(one: Mapping[str, Any]) -> str:
    return f"is {_STATES[one['state']]}" if one.get("state") in _STATES else "has no address"


def _leads(view: View) -> str:
    return f"{view.lead} does" if view.lead else "none does"


def _ways(view: View) -> Iterator[Fact]:
    """Nodes to which the kernel knows no way."""
    lost = [address for address, way in view.found["ways"].items() if not way["source"]]
    if lost:
        title = f"no way leads from {view.node.host} to {', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}"
        interface = str(_holder(view.found, view.node.address).get("name", "")) or None
        names = [str(one["name"]) for one in view.interfaces]
        remedy = f"on {word(view.node.host)}: ip -br addr; ip route get {word(lost[0])}   # then ip link set {word(interface or 'INTERFACE')} up"
        yield stop("network-unreachable", title, [view.node.host], remedy, evidence=view.seen(*names), interface=interface)


def _by_itself(view: View) -> Iterator[Fact]:
    """What NCCL and Gloo take where nothing is named."""
    if view.lead not in view.usable:  # then it is not the choice that is wrong
        return
    said = view.found["said"]
    picked = socket_ifname.picked(view.usable)
    if len(said.get(socket_ifname.NCCL, "")) < 2 and picked and view.nowhere(picked[0]):
        lacks = "is wireless, and slower than a cable" if view.wireless(picked[0]) else "does not lead to the other nodes"
        title = f"NCCL on {view.node.host} takes {picked[0]} by itself, which {lacks}; {_leads(view)}"
        say = degrades if view.detour(picked[0]) else stop
        yield say("wrong-interface", title, [view.node.host], view.export, evidence=view.seen(*picked, view.lead), interface=picked[0])
    own = next((one for address in view.found["hostname"]["addresses"] if (one := view.holder(address))), {})
    if len(said.get(socket_ifname.GLOO, "")) < 2 and own and own["kind"] != "loopback" and view.nowhere(own["name"]):
        name = view.found["hostname"]["name"]
        title = (
            f"Gloo on {view.node.host} takes {own['name']}, whose address the name {name} has, and not {view.lead}, which leads to the other nodes"
        )
        say = degrades if view.detour(own["name"]) else stop
        yield say("wrong-interface", title, [view.node.host], view.export, evidence=view.seen(own["name"], view.lead), interface=own["name"])


def _down(view: View, told: set[str]) -> Iterator[Fact]:
    """Interfaces that are meant to be used, since they have an address, and cannot be."""
    for one in view.interfaces:
        name, addresses = str(one["name"]), [address for address in one["addresses"] if not ipaddress.ip_address(address).is_link_local]
        if one["state"] == "up" or not addresses or one["kind"] not in _CABLES or LOCAL.match(name) or name in told:
            continue
        title = f"{name} on {view.node.host} is {_STATES[one['state']]}, and has the address {', '.join(addresses)}"
        remedy = f"on {word(view.node.host)}: ip link set {word(name)} up; ethtool {word(name)}   # cable, switch port"
        say = stop if view.node.address in addresses else degrades
        yield say("network-unreachable", title, [view.node.host], remedy, evidence=view.seen(name), interface=name)


def _hostname(view: View) -> Iterator[Fact]:
    """The host's own name. Gloo takes its address where no interface is named; torchrun's c10d rendezvous gives it to the others."""
    name, addresses = view.found["hostname"]["name"], view.found["hostname"]["addresses"]
    own = [address for address in addresses if ipaddress.ip_address(address.partition("%")[0]).is_loopback or view.holder(address)]
    if own and not ipaddress.ip_address(own[0].partition("%")[0]).is_loopback:
        return
    gloo = view.found["said"].get(socket_ifname.GLOO, "")
    if own:
        says = f"resolves to {own[0]} there: loopback, which no other node can reach"
    elif addresses:
        says = f"resolves to {', '.join(addresses[:4])} there, and that node has no such address"
    else:
        says = f"does not resolve there ({view.found['hostname'].get('why', 'no address')})"
    line = f"{view.node.address} {name}"
    remedy = f"on {word(view.node.host)}: getent ahosts {word(name)}   # then write `{line}` in /etc/hosts, and no 127.x line for that name"
    title = f"the name {name} of {view.node.host} {says}"
    seen = [f"getaddrinfo on {view.node.host}: {name} -> {', '.join(addresses) or view.found['hostname'].get('why', '')}"]
    if len(gloo) < 2:
        title += "; Gloo would give it to its peers"
        remedy += f"; or export GLOO_SOCKET_IFNAME={word(view.lead or 'INTERFACE')}"
        yield stop("hostname-resolution", title, [view.node.host], remedy, evidence=seen)
    else:
        yield degrades("hostname-resolution", f"{title} (GLOO_SOCKET_IFNAME={gloo} helps Gloo only)", [view.node.host], remedy, evidence=seen)

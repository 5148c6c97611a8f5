"""The interface of this node that leads to an address, as it was at one time and as it is at another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncclcheck.model import Fact

_UP, _CARRIER, _LOOPBACK = 0x1, 0x10000, 0x8  # linux/if.h: IFF_UP, IFF_LOWER_UP (IFF_RUNNING comes up to a second later), IFF_LOOPBACK
_COUNTED = ("rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
_NEEDLESS = ("TCPDSACKRecv", "TCPDSACKOfoRecv")  # what the peer had already: sent again because a busy machine acknowledged it late


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One interface at one time. `state` is up, down, no-carrier, or gone."""

    name: str
    state: str
    taken: float  # monotonic
    mtu: int = 0
    queue: str = ""  # the kind of its root queueing discipline
    addresses: Sequence[str] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


def with_address(address: str) -> Snapshot | None:
    """The interface that has this address now; None where none has, or it is the loopback. It may block for a moment: call it from a thread."""
    return next((each for each in _all() if address in each.addresses), None)


def named(name: str) -> Snapshot:
    """How an interface is now. It may block for a moment, too."""
    return next((each for each in _all() if each.name == name), Snapshot(name, "gone", time.monotonic()))


def fact(host: str, address: str, before: Snapshot, now: Snapshot) -> Fact:
    """A fact of kind "interface": how it is, what was counted since `before`, and in `changed` what is not as it was, in words.

    `address` is the one that is in use: others come and go, as IPv6 has it. In `lost` it stands where it is gone.
    """
    lost = [address] if address in before.addresses and address not in now.addresses else []
    come = [each for each in now.addresses if each not in before.addresses]
    changed = [f"{now.name} is {_STATES.get(now.state, now.state)}"] if now.state not in ("up", before.state) else []
    if lost and now.state != "gone":
        changed.append(f"{address} is gone from {now.name}" + (f", {', '.join(come)} came" if come else ""))
    if now.state != "gone":
        changed += [
            f"the {what} of {now.name} was {old} and is {new}"
            for what, old, new in (("mtu", before.mtu, now.mtu), ("queue", before.queue, now.queue))
            if old != new
        ]
    fields: dict[str, Any] = {
        "interface": now.name,
        "state": now.state,
        "state_before": before.state,
        "mtu": now.mtu or None,
        "mtu_before": before.mtu,
        "queue": now.queue,
        "queue_before": before.queue,
        "addresses": list(now.addresses),
        "lost": lost,
        "changed": changed,
        "seconds": round(now.taken - before.taken, 1),
    }
    counted = {name: max(0, now.counters[name] - count) for name, count in before.counters.items() if name in now.counters}
    return Fact("interface", host, fields=fields | counted)


_STATES = {"no-carrier": "without carrier", "gone": "not there any more"}


def _all() -> list[Snapshot]:
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        links, addresses, queues = list(kernel.get_links()), list(kernel.get_addr()), list(kernel.get_qdiscs())
    roots = {queue["index"]: str(queue.get_attr("TCA_KIND")) for queue in queues if queue["parent"] in (0xFFFFFFFF, 0)}
    return [_snapshot(link, addresses, roots) for link in links if not link["flags"] & _LOOPBACK]


def _snapshot(link: Any, addresses: Sequence[Any], roots: Mapping[int, str]) -> Snapshot:
    mine = [entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS") for entry in addresses if entry["index"] == link["index"]]
    counters = link.get_attr("IFLA_STATS64") or {}
    state = "down" if not link["flags"] & _UP else "up" if link["flags"] & _CARRIER else "no-carrier"
    return Snapshot(
        str(link.get_attr("IFLA_IFNAME")),
        state,
        time.monotonic(),
        int(link.get_attr("IFLA_MTU") or 0),
        roots.get(link["index"], ""),
        [str(address) for address in mine if address and not str(address).startswith("fe80")],
        {name: int(counters[name]) for name in _COUNTED if name in counters} | _carrier(link) | _tcp(),
    )


def _carrier(link: Any) -> dict[str, int]:
    """How often the interface lost its carrier: its cable, its switch's port, or whoever took it down. Linux counts that from 4.16 on."""
    count = link.get_attr("IFLA_CARRIER_DOWN_COUNT")
    return {} if count is None else {"carrier_losses": int(count)}


def _tcp() -> dict[str, int]:
    """Segments sent, those that were lost and sent again, and how often the wait for an answer was in vain, by TCP in this network namespace."""
    told = _counted(Path("/proc/net/snmp"), "Tcp:") | _counted(Path("/proc/net/netstat"), "TcpExt:")
    if not {"OutSegs", "RetransSegs"} <= told.keys():
        return {}
    again = max(0, told["RetransSegs"] - sum(told.get(name, 0) for name in _NEEDLESS))
    return {"segments": told["OutSegs"], "retransmits": again, "timeouts": told.get("TCPTimeouts", 0)}


def _counted(path: Path, head: str) -> dict[str, int]:
    """One protocol's counters: a line of names, and one of values."""
    try:
        lines = [line.split()[1:] for line in path.read_text().splitlines() if line.startswith(head)]
    except OSError:
        return {}
    return {name: int(value) for name, value in zip(*lines[:2], strict=False)} if len(lines) >= 2 else {}

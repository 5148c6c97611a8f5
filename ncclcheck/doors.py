"""The addresses by which other nodes may come to this one, with an echo behind each."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psutil

from ncclcheck import ticket
from ncclcheck.echo import Echo
from ncclcheck.wire import Door

LOCAL = re.compile(r"lo\d*$|docker|br-|virbr|veth|cni|lxc|podman|nodelocaldns|kube-ipvs|flannel|cali|vmnet|ip6tnl|tun|sit\d|wg\d|dummy")
"""Names of interfaces that lead to what runs on this host, or over a detour; they count where the way to the master goes by them."""
MOST_NEWCOMERS = 192  # connections at all doors but the first that have not proved yet that they belong to the run
MOST = 24  # doors of a node; a machine with eight rails has ten


class Doors:
    """This node's doors; the one that leads to the master comes first."""

    def __init__(self) -> None:
        self._checker = ticket.Checker()
        self.secret = self._checker.secret  # who knows it is answered here
        self.first = Echo(self._checker)  # on the address from which this node speaks to the master
        self.found: list[Door] = []
        self._others: list[Echo] = []

    @property
    def echoes(self) -> list[Echo]:
        """All echoes, that on the way to the master first."""
        return [self.first, *self._others]

    async def open(self, towards: str) -> None:
        """Open an echo on `towards`, the address from which this node speaks to the master, and on each other address that may be used."""
        doors = candidates(psutil.net_if_addrs(), psutil.net_if_stats(), towards)
        if towards:
            await self.first.open(towards)
        for door in doors:
            echo = self.first
            if door.address != towards:
                echo = Echo(self._checker, MOST_NEWCOMERS // len(doors))
                self._others.append(echo)
                await echo.open(door.address)
            self.found.append(msgspec.structs.replace(door, port=echo.port))

    def heard(self) -> list[tuple[str, str]]:
        """From whom datagrams came, and to which of our addresses."""
        return sorted((sender, echo.address) for echo in self.echoes for sender in echo.heard)

    def close(self) -> None:
        """Nobody is let in any more."""
        for echo in self.echoes:
            echo.close()


def candidates(addresses: Mapping[str, Sequence[Any]], states: Mapping[str, Any], towards: str) -> list[Door]:
    """One door for each interface that has an address which may lead to other nodes, without a port yet.

    `addresses` and `states` are as psutil gives them. As NCCL and Gloo do, one address of an interface is taken: `towards`
    where it is there, else the first IPv4 address, else the first IPv6 one. No link-local address leads to a node by itself.
    """
    doors = []
    for name, entries in addresses.items():
        usable = [entry for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6) and _usable(entry.address)]
        usable.sort(key=lambda entry: (entry.address != towards, entry.family != socket.AF_INET))
        if not usable or (usable[0].address != towards and LOCAL.match(name)):
            continue
        state = states.get(name)
        doors.append(
            Door(name, usable[0].address, 0, getattr(state, "mtu", 0), _prefix(usable[0].netmask), _state(state), getattr(state, "speed", 0))
        )
    return sorted(doors, key=lambda door: (door.address != towards, door.interface))[:MOST]


def _usable(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified)


def _prefix(netmask: str | None) -> int:
    """How many bits of an address name its network; a point-to-point interface has none to share."""
    return int(ipaddress.ip_address(netmask)).bit_count() if netmask else 0


def _state(told: Any) -> str:
    """up, down or no-carrier."""
    flags = getattr(told, "flags", "up,running" if told and told.isup else "").split(",")  # (psutil tells them since 5.9.3)
    return "down" if "up" not in flags else "up" if "running" in flags else "no-carrier"

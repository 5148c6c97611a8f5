"""Breaks the network of this node in one way, and mends it on leaving.

Everything acts on the calling process's network namespace, and on traffic with the named peers where the kernel can tell it apart.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ncclcheck.fault import CannotInject, Place
from ncclcheck.relay import delayed
from ncclcheck.sieve import Sieve, taken

_ROOT = 0xFFFFFFFF  # the parent of an interface's outermost queue
_LOCAL, _LINK_SCOPE = 255, 253
_NEWROUTE = 24
_EVER, _NO_DUPLICATE_CHECK, _NO_PREFIX_ROUTE = 0xFFFFFFFF, 0x02, 0x200
_ARP, _BROADCAST = 0x0806, b"\xff" * 6
_ASKED = 0.3  # seconds that an address's owner has to answer; neighbours of a cluster take less than a millisecond


@contextlib.contextmanager
def cut(place: Place, *, incoming: bool = True) -> Iterator[None]:
    """Nothing reaches the peers, and with `incoming` nothing comes from them; where nftables cannot do it, routes that lead nowhere do."""
    with contextlib.ExitStack() as undo:
        try:
            undo.enter_context(taken(place.interface, Sieve(place.peers, incoming=incoming)))
        except CannotInject as reason:
            try:
                undo.enter_context(no_way(place.peers))
            except CannotInject as other:
                raise CannotInject(f"{reason}; {other}") from None
        yield


@contextlib.contextmanager
def no_way(peers: Sequence[str]) -> Iterator[None]:
    """Routes that lead nowhere, to each peer: what this node sends to them is lost."""
    with _netlink() as ip, contextlib.ExitStack() as undo:
        for peer in peers:
            address = ipaddress.ip_address(peer)
            route = {"family": _family(address), "dst": f"{address}/{address.max_prefixlen}", "type": "blackhole"}
            with _or_cannot(f"a route to nowhere for {peer}"):
                ip.route("add", **route)
            undo.callback(ip.route, "del", **route)
        yield


@contextlib.contextmanager
def late(place: Place, seconds: float) -> Iterator[None]:
    """What leaves for the peers does so many seconds later: by netem where the kernel has it, else in user space."""
    with contextlib.ExitStack() as undo:
        try:
            undo.enter_context(_queue(place.interface, "netem", delay=round(seconds * 1e6), limit=100_000))
        except CannotInject:
            undo.enter_context(delayed(place.interface, place.peers, seconds))
        yield


@contextlib.contextmanager
def throttled(interface: str, rate: int, burst: int = 0) -> Iterator[None]:
    """What leaves by the interface takes its turn: so many bytes per second, with at most 0.2 s of them waiting.

    `burst`: bytes that may leave at once after a pause; 20 ms of the rate if not given.
    """
    with _queue(interface, "tbf", rate=rate, burst=burst or max(16384, rate // 50), latency="200ms"):
        yield


@contextlib.contextmanager
def _queue(interface: str, kind: str, **options: Any) -> Iterator[None]:
    """An interface's outermost queue is of this kind. The kernel puts its own one back; one of the administrator is not replaced."""
    with _netlink() as ip, contextlib.ExitStack() as undo:
        index = _index(ip, interface)
        for queue in ip.get_qdiscs(index=index):
            if queue["parent"] == _ROOT and queue["handle"]:
                raise CannotInject(f"{interface} has a queue of its own: {queue.get_attr('TCA_KIND')} {queue['handle'] >> 16:x}:")
        with _or_cannot(f"the queue {kind} on {interface}"):
            ip.tc("add", kind, index, 0x10000, **options)
        undo.callback(ip.tc, "del", index=index, handle=0x10000, parent=_ROOT)
        yield


@contextlib.contextmanager
def down(interface: str) -> Iterator[None]:
    """The interface is down; addresses and routes that the kernel forgets come back with it."""
    with _netlink() as ip, contextlib.ExitStack() as undo:
        index = _index(ip, interface)
        undo.enter_context(_remembered(ip, index))
        with _or_cannot(f"{interface} down"):
            ip.link("set", index=index, state="down")
        undo.callback(ip.link, "set", index=index, state="up")
        yield


@contextlib.contextmanager
def small_mtu(place: Place) -> Iterator[None]:
    """The interface takes only small packets, and larger ones from the peers are lost, as where a switch on the way has the smaller MTU.

    Lost are packets, not segments: what a card or an emulated cable hands over in one piece counts as one.
    """
    with _netlink() as ip, contextlib.ExitStack() as undo:
        index = _index(ip, place.interface)
        before = int(ip.get_links(index)[0].get_attr("IFLA_MTU"))
        smaller = 1500 if before > 1500 else 1280  # IPv6 needs 1280
        if before <= smaller:
            raise CannotInject(f"the MTU of {place.interface} is {before} already")
        undo.enter_context(taken(place.interface, Sieve(place.peers, outgoing=False, larger=smaller)))
        with _or_cannot(f"another MTU of {place.interface}"):
            ip.link("set", index=index, mtu=smaller)
        undo.callback(ip.link, "set", index=index, mtu=before)
        yield


@contextlib.contextmanager
def readdressed(place: Place) -> Iterator[None]:
    """The node has another address of the same network, one that nobody answers for."""
    with _netlink() as ip, contextlib.ExitStack() as undo:
        index = _index(ip, place.interface)
        old = next((entry for entry in ip.get_addr(index=index, family=socket.AF_INET) if entry.get_attr("IFA_LOCAL") == place.address), None)
        if old is None:
            raise CannotInject(f"{place.interface} has no IPv4 address {place.address}")
        length = int(old["prefixlen"])
        new = _unused(place, length)
        routes = undo.enter_context(_remembered(ip, index))
        with _or_cannot(f"another address of {place.interface}"):
            ip.addr("del", index=index, address=place.address, prefixlen=length)
            ip.addr("add", index=index, address=new, prefixlen=length)
        undo.callback(ip.addr, "del", index=index, address=new, prefixlen=length)
        for route in routes:
            _add_route(ip, route, without=("RTA_PREFSRC",))
        yield


def _unused(place: Place, length: int) -> str:
    """An address of the node's network for which no host answers an ARP request."""
    network = ipaddress.IPv4Network(f"{place.address}/{length}", strict=False)
    if network.num_addresses < 4:
        raise CannotInject(f"{network} has no other address")
    last = int(network.broadcast_address) - 1
    candidates = [str(ipaddress.IPv4Address(number)) for number in range(last, max(int(network.network_address), last - 32), -1)]
    for candidate in candidates:
        if candidate != place.address and candidate not in place.peers and not _answers(place.interface, candidate):
            return candidate
    raise CannotInject(f"every address of {network} that was tried is in use")


def _answers(interface: str, address: str) -> bool:
    """Whether some host has this address (RFC 5227: asked without saying who asks)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as link:
        link.bind((interface, _ARP))
        mac, asked = link.getsockname()[4], socket.inet_aton(address)
        request = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, bytes(4), bytes(6), asked)
        link.send(_BROADCAST + mac + struct.pack("!H", _ARP) + request)
        ends = time.monotonic() + _ASKED
        while (left := ends - time.monotonic()) > 0:
            link.settimeout(left)
            with contextlib.suppress(TimeoutError):
                if link.recv(64)[28:32] == asked:
                    return True
    return False


@contextlib.contextmanager
def _remembered(ip: Any, index: int) -> Iterator[list[Any]]:
    """The interface's routes; on leaving, the addresses and routes that it had and has no more are there again."""
    addresses = list(ip.get_addr(index=index))
    every = [route for family in (socket.AF_INET, socket.AF_INET6) for route in ip.get_routes(family=family) if _leads_to(route, index)]
    routes = sorted(every, key=lambda route: route["scope"] != _LINK_SCOPE)  # a gateway is found by way of the network that it is in
    try:
        yield routes
    finally:
        for address in addresses:
            _add_address(ip, address)
        for route in routes:
            _add_route(ip, route)


def _leads_to(route: Any, index: int) -> bool:
    hops = route.get_attr("RTA_MULTIPATH") or []
    return route["table"] != _LOCAL and (route.get_attr("RTA_OIF") == index or any(hop["oif"] == index for hop in hops))


def _add_route(ip: Any, route: Any, without: Sequence[str] = ()) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    again = type(route)()
    for name, *_ in route.fields:
        again[name] = route[name]
    again["header"]["type"], again["flags"] = _NEWROUTE, 0
    again["attrs"] = [pair[:2] for pair in route["attrs"] if pair[0] not in ("RTA_CACHEINFO", *without)]
    again.encode()
    with contextlib.suppress(NetlinkError):  # its like cannot be any more
        ip.route_loads(bytes(again.data), fmt="raw")


def _add_address(ip: Any, entry: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    life = entry.get_attr("IFA_CACHEINFO") or {}
    names = {"broadcast": "IFA_BROADCAST", "label": "IFA_LABEL"}
    options = {name: entry.get_attr(attribute) for name, attribute in names.items() if entry.get_attr(attribute)}
    options |= {"preferred": life.get("ifa_preferred", _EVER), "valid": life.get("ifa_valid", _EVER)}
    options |= {name: entry[name] for name in ("family", "index", "prefixlen", "scope")}
    flags = (entry.get_attr("IFA_FLAGS") or 0) & (_NO_DUPLICATE_CHECK | _NO_PREFIX_ROUTE)
    with contextlib.suppress(NetlinkError):  # it is there
        ip.addr("add", address=entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"), flags=flags, **options)


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _index(ip: Any, interface: str) -> int:
    found: list[int] = ip.link_lookup(ifname=interface)
    if not found:
        raise CannotInject(f"no interface {interface}")
    return found[0]


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        yield ip


@contextlib.contextmanager
def _or_cannot(what: str) -> Iterator[None]:
    """What the kernel refuses is no error but a reason."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        unknown = error.code in (errno.ENOENT, errno.EOPNOTSUPP)
        raise CannotInject(f"{what}: {'this kernel has none' if unknown else os.strerror(error.code)}") from error

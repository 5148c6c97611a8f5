"""This node's interfaces, addresses, routes and InfiniBand ports, in the form that `ip` and `ibstat` print."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncclcheck.collect.taken import Item, Taken

_FLAGS = {"UP": 0x1, "BROADCAST": 0x2, "LOOPBACK": 0x8, "POINTOPOINT": 0x10, "RUNNING": 0x40, "NOARP": 0x80, "PROMISC": 0x100, "MASTER": 0x400}
_FLAGS |= {"SLAVE": 0x800, "MULTICAST": 0x1000, "LOWER_UP": 0x10000, "DORMANT": 0x20000}
_COUNTERS = {"RX": ("bytes", "packets", "errors", "dropped"), "TX": ("bytes", "packets", "errors", "dropped")}
_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_ERRORS = (
    "link_downed",
    "link_error_recovery",
    "symbol_error",
    "port_rcv_errors",
    "port_xmit_discards",
    "port_xmit_wait",
    "local_link_integrity_errors",
)


def interfaces() -> Iterator[Item]:
    """`ip.txt` and `route.txt`."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        links, addresses, routes = list(kernel.get_links()), list(kernel.get_addr()), list(kernel.get_routes())
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
    lines = [line for link in links for line in _link(link, names, [entry for entry in addresses if entry["index"] == link["index"]])]
    yield Taken("ip.txt", "\n".join(lines) + "\n", "netlink, as `ip -s addr` prints it")
    told = (_route(route, names) for route in routes if route.get_attr("RTA_TABLE") != _LOCAL_TABLE)
    yield Taken("route.txt", "\n".join(told) + "\n", "netlink, as `ip route` prints it")


def _link(link: Any, names: dict[int, str], addresses: list[Any]) -> Iterator[str]:
    name = names[link["index"]]
    flags = ",".join(flag for flag, bit in _FLAGS.items() if link["flags"] & bit)
    master = f" master {names[upper]}" if (upper := link.get_attr("IFLA_MASTER")) in names else ""
    state = link.get_attr("IFLA_OPERSTATE")
    yield f"{link['index']}: {name}: <{flags}> mtu {link.get_attr('IFLA_MTU')}{master} state {state} qlen {link.get_attr('IFLA_TXQLEN')}"
    yield f"    link/{'loopback' if name == 'lo' else 'ether'} {link.get_attr('IFLA_ADDRESS')}"
    for entry in addresses:
        family = "inet" if entry["family"] == socket.AF_INET else "inet6"
        scope = {0: "global", 253: "link", 254: "host"}.get(entry["scope"], str(entry["scope"]))
        yield f"    {family} {entry.get_attr('IFA_LOCAL') or entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']} scope {scope} {name}"
    counters = link.get_attr("IFLA_STATS64") or {}
    for way, counted in _COUNTERS.items():
        yield f"    {way}: " + " ".join(f"{what} {counters.get(f'{way.lower()}_{what}', '?')}" for what in counted)
    speed = _sysfs(Path("/sys/class/net", name, "speed")).replace("-1", "")  # Mb/s; -1 is unknown
    yield f"    speed {f'{speed}Mb/s' if speed else 'unknown'} carrier_changes {link.get_attr('IFLA_CARRIER_CHANGES')}"


def _route(route: Any, names: dict[int, str]) -> str:
    to = f"{route.get_attr('RTA_DST')}/{route['dst_len']}" if route.get_attr("RTA_DST") else "default"
    table = route.get_attr("RTA_TABLE")
    parts = {
        "via": route.get_attr("RTA_GATEWAY"),
        "dev": names.get(route.get_attr("RTA_OIF")),
        "src": route.get_attr("RTA_PREFSRC"),
        "metric": route.get_attr("RTA_PRIORITY"),
        "table": None if table == _MAIN_TABLE else table,
    }
    return " ".join([to, *(f"{word} {value}" for word, value in parts.items() if value)])


def infiniband() -> Iterator[Item]:
    """`ibstat.txt`, where there are such adapters: state, rate and error counters of each port, from sysfs."""
    lines: list[str] = []
    for port in sorted(Path("/sys/class/infiniband").glob("*/ports/*")):
        adapter = port.parent.parent
        lines += [
            f"CA '{adapter.name}'",
            f"\tFirmware version: {_sysfs(adapter / 'fw_ver')}",
            f"\tPort {port.name}:",
            f"\t\tState: {_sysfs(port / 'state').partition(': ')[2].capitalize()}",
            f"\t\tPhysical state: {_sysfs(port / 'phys_state').partition(': ')[2]}",
            f"\t\tRate: {_sysfs(port / 'rate')}",
            f"\t\tBase lid: {_sysfs(port / 'lid')}",
            f"\t\tSM lid: {_sysfs(port / 'sm_lid')}",
            f"\t\tLink layer: {_sysfs(port / 'link_layer')}",
            f"\t\tNetwork device: {', '.join(sorted(device.name for device in (adapter / 'device/net').glob('*')))}",
            *(f"\t\t{counter}: {value}" for counter in _ERRORS if (value := _sysfs(port / "counters" / counter))),
        ]
    if lines:
        yield Taken("ibstat.txt", "\n".join(lines) + "\n", "/sys/class/infiniband")


def _sysfs(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # absent, or refused by the driver: a link that is down has no speed
        return ""

"""This node's network interfaces, which of them leads to each other node, what its name resolves to, and what the environment says of that."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncclcheck import launchers
from ncclcheck.collect import host, master, patient
from ncclcheck.collect.settings import conf_files, effective, nccl
from ncclcheck.survey import Question

_UP, _CARRIER, _LOOPBACK = 0x1, 0x10000, 0x8  # linux/if.h
_INFINIBAND = 32  # linux/if_arp.h: ARPHRD_INFINIBAND
_NAMED = ("NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "VLLM_HOST_IP")
_WIRING = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_FAR = "8.8.8.8"  # vLLM takes for its own the address from which it would speak to this one; nothing is sent
_BOUND = 5.0  # seconds for one name


def section(question: Question) -> dict[str, Any]:
    """`interfaces`, in the kernel's order; `ways` (peer -> interface and source address); `hostname`, `master` and `job_master` (MASTER_ADDR and,
    where it is another, the job's own: a name and what it resolves to here); `said` (what the environment and NCCL's files say) and `launched`
    (a launcher around us said it); `far`; `port_owner`.
    """
    environ = effective(question)
    taken = nccl(environ, list(conf_files(environ)))
    said = {name: environ[name] for name in (*_NAMED, *_WIRING) if environ.get(name)}
    said |= {name: taken[name]["value"] for name in _NAMED if name in taken and taken[name]["value"]}
    towards = list(dict.fromkeys(address for address in (question.master, *question.peers) if _literal(address) and address != question.address))
    port = said.get("MASTER_PORT", "")
    twofold = question.master and said.get("MASTER_ADDR", question.master) != question.master
    return {
        "interfaces": interfaces(),
        "ways": {address: way(address) for address in towards},
        "hostname": _resolved(host.name()),
        "master": _resolved(said["MASTER_ADDR"]) if "MASTER_ADDR" in said else None,
        "job_master": _resolved(question.master) if twofold else None,
        "said": {name: value.encode("utf-8", "replace").decode()[:1000] for name, value in said.items()},
        "launched": _launched(environ),
        "far": master.address_towards(_FAR),
        "port_owner": _owner(int(port)) if port.isdecimal() and int(port) < 65536 else None,
    }


def interfaces(root: Path = Path("/sys/class/net")) -> list[dict[str, Any]]:
    """Each: name, kind (loopback, physical, infiniband, wireless, or the kernel's word: veth, bridge, bond, vlan, tun, wireguard, ...),
    state (up, down, no-carrier), mtu, speed (Mb/s, None where the driver does not tell), addresses, driver, and the one it belongs to.
    """
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        links, addresses = list(kernel.get_links()), list(kernel.get_addr())
    names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
    return [_interface(link, names, addresses, root) for link in sorted(links, key=lambda link: int(link["index"]))]


def _interface(link: Any, names: Mapping[int, str], addresses: Sequence[Any], root: Path) -> dict[str, Any]:
    name, flags = names[link["index"]], link["flags"]
    mine = [entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS") for entry in addresses if entry["index"] == link["index"]]
    speed = _text(root / name / "speed")
    return {
        "name": name,
        "kind": _kind(link, root / name),
        "state": "down" if not flags & _UP else "up" if flags & _CARRIER else "no-carrier",
        "mtu": int(link.get_attr("IFLA_MTU") or 0),
        "speed": int(speed) if speed.isdigit() and int(speed) > 0 else None,
        "addresses": [str(address) for address in mine if address],
        "driver": _link_name(root / name / "device" / "driver"),
        "master": names.get(link.get_attr("IFLA_MASTER") or 0),
    }


def _kind(link: Any, folder: Path) -> str:
    if link["flags"] & _LOOPBACK:
        return "loopback"
    if link["ifi_type"] == _INFINIBAND:
        return "infiniband"
    info = link.get_attr("IFLA_LINKINFO")
    if info and (kind := info.get_attr("IFLA_INFO_KIND")):
        return str(kind)
    if (folder / "wireless").exists():
        return "wireless"
    return "physical" if (folder / "device").exists() else "virtual"


def way(address: str) -> dict[str, str]:
    """How this node's kernel leads to an address; empty words where it does not."""
    source = master.address_towards(address)
    return {"source": source, "interface": master.interface_to(address) if source else ""}


def _literal(address: str) -> bool:
    """Whether it is an address and no name: to look one up takes its time, and the peers' addresses have node 0's among them."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _resolved(name: str) -> dict[str, Any]:
    """A name and the addresses that it has here, in the resolver's order; or why it has none."""

    def ask() -> Iterator[list[str]]:
        yield list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(name, None, 0, socket.SOCK_STREAM)))

    try:
        return {"name": name, "addresses": next(iter(patient.items(ask, _BOUND)))}
    except (OSError, UnicodeError, TimeoutError) as error:
        return {"name": name, "addresses": [], "why": getattr(error, "strerror", None) or str(error)}


def _launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher around this process has set RANK and the like; one whose variables contradict each other is one, too."""
    try:
        return bool(launchers.read(environ))
    except ValueError:
        return True


def _owner(port: int) -> str | None:
    """Who listens on a port of this machine; "somebody" where that is not told, None where nobody does."""
    if owner := master.listener(port):
        return owner
    listening = False
    for path in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        lines = [line.split() for line in _text(Path(path)).splitlines()[1:]]
        listening |= any(line[3] == "0A" and int(line[1].rpartition(":")[2], 16) == port for line in lines)
    return "somebody" if listening else None


def _link_name(path: Path) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # absent, or refused by the driver: a link that is down has no speed
        return ""

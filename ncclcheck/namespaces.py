"""What a node is to the kernel: namespaces of its own, mounts that show only itself, and a cable to a switch.

Every function raises OSError where the kernel refuses; `in_words` says what, `remedy` says what to type.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

INTERFACE = "eth0"
_GATEWAY = "10.201.255.254"
_PREFIX = 16
_NEIGHBOURS = 512  # of all nodes together: the kernel keeps 1024 for all networks of a machine (net.ipv4.neigh.default.gc_thresh3)

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _MOVE, _REC, _PRIVATE = 1, 2, 4, 8, 0x1000, 0x2000, 0x4000, 0x40000
_PERMANENT = 0x80  # linux/neighbour.h
_libc = ctypes.CDLL(None, use_errno=True)


def address(rank: int) -> str:
    """The IPv4 address of the node with this rank."""
    return f"10.201.0.{rank + 1}"


def hardware_address(ip: str) -> str:
    """The hardware address of the node that has this address."""
    return "02:00:" + ":".join(f"{int(part):02x}" for part in ip.split("."))


def leave_network() -> None:
    """Move this process to an empty network: as root at once, as anybody else by way of a user namespace where it is root."""
    try:
        return _unshare(_NEWNET, "network")
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_NEWUSER | _NEWNET, "user, network")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            Path("/proc/self", name).write_text(text)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"write {name}") from None


def leave_host() -> None:
    """Move this process to namespaces of its own, all but the PID namespace: that one begins with its next child."""
    _unshare(_NEWNET | _NEWUTS | _NEWNS | _NEWPID | _NEWIPC, "network, UTS, mount, PID, IPC")


def furnish(host: str, addresses: Mapping[str, str]) -> None:
    """Make the namespaces of this process a host: its name, mounts that show only itself, and its address in `addresses` (by host)."""
    socket.sethostname(host)
    _mount("none", "/", flags=_REC | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    hosts = Path("/dev/shm/hosts")  # a bind mount outlives the name of its source
    hosts.write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
    hosts.chmod(0o644)
    _mount(str(hosts), "/etc/hosts", flags=_BIND)
    hosts.unlink()
    sysfs = Path("/dev/shm/sys")  # /sys/class/net shows the network of whoever mounted it
    sysfs.mkdir()
    _mount("sysfs", str(sysfs), "sysfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    _mount("/sys/fs/cgroup", f"{sysfs}/fs/cgroup", flags=_BIND | _REC)
    _mount(str(sysfs), "/sys", flags=_MOVE)
    sysfs.rmdir()
    with _netlink() as ip:
        _up(ip, "lo")
        ip.addr("add", index=ip.link_lookup(ifname=INTERFACE)[0], address=addresses[host], prefixlen=_PREFIX)
        _up(ip, INTERFACE)
        ip.route("add", dst="default", gateway=_GATEWAY)
        if len(addresses) ** 2 > _NEIGHBOURS:
            _introduce(ip, [other for other in addresses.values() if other != addresses[host]])


def _introduce(ip: Any, others: Sequence[str]) -> None:
    """Tell the other nodes' hardware addresses. What is told does not count; where all learned of all, the kernel would refuse to learn more."""
    (index,) = ip.link_lookup(ifname=INTERFACE)
    for other in others:
        ip.neigh("add", dst=other, lladdr=hardware_address(other), ifindex=index, state=_PERMANENT)


def connect(pids: Sequence[int]) -> None:
    """In our own network: a switch with one cable to each node, and a gateway that answers for the rest of the world.

    Its answer is a refusal (everything is a local address where nobody listens), so looking up a foreign name fails at once.
    """
    with _netlink() as ip:
        _up(ip, "lo")
        ip.link("add", ifname="switch", kind="bridge")
        switch = ip.link_lookup(ifname="switch")[0]
        ip.addr("add", index=switch, address=_GATEWAY, prefixlen=_PREFIX)
        _up(ip, "switch")
        ip.route("add", dst="0.0.0.0/0", type="local", scope="host", oif=ip.link_lookup(ifname="lo")[0])
        for rank, pid in enumerate(pids):
            peer = {"ifname": INTERFACE, "net_ns_pid": pid, "address": hardware_address(address(rank))}
            ip.link("add", ifname=f"node{rank}", kind="veth", peer=peer)
            _up(ip, f"node{rank}", master=switch)


def in_words(error: OSError) -> str:
    """`mount /proc: Operation not permitted`: what was refused, and why."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def remedy(code: int | None, nodes: int) -> str:
    """What to type where the kernel said `code` to so many nodes."""
    if code == errno.ENOSPC:
        limits = {name: Path(f"/proc/sys/user/max_{name}_namespaces") for name in ("user", "net", "mnt", "uts", "ipc", "pid")}
        low = [name for name, path in limits.items() if int(path.read_text()) <= nodes] or list(limits)
        return "sudo sysctl " + " ".join(f"user.max_{name}_namespaces=1024" for name in low)
    if code == errno.EOPNOTSUPP:
        return "sudo modprobe -a bridge veth"
    for name, open_value in (("kernel.apparmor_restrict_unprivileged_userns", "0"), ("kernel.unprivileged_userns_clone", "1")):
        path = Path("/proc/sys", name.replace(".", "/"))
        if path.exists() and path.read_text().strip() != open_value:
            return f"sudo sysctl {name}={open_value}"
    return "run it as root (sudo); in a container: docker run --privileged"


def _unshare(flags: int, what: str) -> None:
    _call(f"unshare {what}", _libc.unshare(flags))


def _mount(source: str, target: str, kind: str = "none", flags: int = 0, options: str = "") -> None:
    code = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _call(f"mount {target}", code)


def _call(what: str, result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _up(ip: Any, name: str, **more: int) -> None:
    ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up", **more)


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    """pyroute2's IPRoute for this process's network; its errors become OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code), "netlink (bridge, veth, address, route)") from error

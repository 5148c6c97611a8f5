"""Nodes made of Linux namespaces on this machine, for drills, tests and learning.

A node is a network, UTS, mount, PID and IPC namespace: own address, host name, /etc/hosts, /dev/shm and process list;
the file system is shared. Namespaces and links have no name outside the processes in them, so when the process that
called `run` is gone, even by SIGKILL, the kernel has removed everything. Root is not needed where users may make namespaces.

    python -m ncclcheck.emulate 2 -- sh -c 'hostname; torchrun --nnodes $NNODES --node-rank $NODE_RANK --master-addr node0 train.py'
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

MOST_NODES = 64
MOST_RANKS = 64  # per node
INTERFACE = "eth0"
SETUP_BOUND = 30.0  # seconds for all nodes to come up; 64 take 2 s on 2 cores
GRACE = 15.0  # seconds from SIGINT or SIGTERM to SIGKILL
CRASHED = 70  # exit code of a node whose body raised (EX_SOFTWARE)
_GATEWAY = "10.201.255.254"
_PREFIX = 16
_KILLED_BOUND = 5.0  # seconds that a killed node may take: a process in state D cannot be waited for

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _MOVE, _REC, _PRIVATE = 1, 2, 4, 8, 0x1000, 0x2000, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Node:
    """One emulated node. `gpus` are the GPUs it owns, in the words of CUDA_VISIBLE_DEVICES (index or UUID); () = CPU."""

    rank: int
    host: str
    address: str
    interface: str = INTERFACE
    gpus: tuple[str, ...] = ()


class EmulationRefused(PermissionError):
    """This machine does not let us make nodes: the message says what was refused, `remedy` what to type."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def parse(text: str) -> tuple[int, int]:
    """`2x4` -> (2 nodes, 4 ranks on each); `2` -> (2, 1). Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,3})(?:x(\d{1,3}))?", text)
    nodes, ranks = (int(match[1]), int(match[2] or 1)) if match else (0, 0)
    if not (1 <= nodes <= MOST_NODES and 1 <= ranks <= MOST_RANKS):
        raise ValueError(f"{text!r} is not NODESxRANKS, such as 2x1: 1 to {MOST_NODES} nodes, 1 to {MOST_RANKS} ranks on each")
    return nodes, ranks


def environment(node: Node) -> dict[str, str]:
    """What a node's environment has on top of the caller's."""
    added = {"GLOO_SOCKET_IFNAME": node.interface, "NCCL_SOCKET_IFNAME": node.interface, "VLLM_HOST_IP": node.address}
    if node.gpus:  # with a host id of its own, a node is a host to NCCL whatever else NCCL reads
        added |= {"CUDA_VISIBLE_DEVICES": ",".join(node.gpus), "NCCL_HOSTID": node.host}
    return added


def run(nodes: int, ranks_per_node: int, body: Callable[[Node], int], *, gpus: int = 0) -> list[int]:
    """Run `body(node)` as pid 1 of each of `nodes` nodes; return their exit codes, node 0 first (-9 = killed by signal 9).

    `gpus`: how many GPUs the caller may use; with any, local rank `l` of node `i` owns number `i * ranks_per_node + l`.
    SIGINT and SIGTERM are passed on once; a node still there 15 s later is killed. A body that raises prints its traceback
    and exits 70. The calling process must be single-threaded; it stays in a network of its own, without the machine's links.
    Raises EmulationRefused where the machine refuses, ValueError for too few GPUs, RuntimeError for a caller with threads.
    """
    cluster = _cluster(nodes, ranks_per_node, gpus)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("nodes are forked: start them before any thread")
    import pyroute2  # noqa: F401  (here, as it takes 0.5 s; before the forks, so that it takes them once)

    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # from now on they are waited for, not handled
    pids: list[int] = []
    links: list[socket.socket] = []
    codes: list[int] = []

    def live(node: Node, link: socket.socket) -> NoReturn:
        _live(node, cluster, link, mask, body)

    try:
        _leave_network()
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for node in cluster:
            pids.append(_spawn(node, live, links))
        _wire(pids)
        for link in links:
            link.send(b"adopted")
        for node, link in zip(cluster, links, strict=True):
            _hear(node, link)
        for link in links:
            link.send(b"start")
        codes = _wait(pids)
    except OSError as error:
        raise EmulationRefused(f"cannot emulate {nodes} nodes here: {_text(error)}", _remedy(error.errno, nodes)) from error
    finally:
        if not codes:
            _send(pids, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
        for link in links:
            link.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return codes


def _cluster(nodes: int, ranks: int, gpus: int) -> list[Node]:
    parse(f"{nodes}x{ranks}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(index) for index in range(gpus)])[:gpus]
    if gpus and len(names) < nodes * ranks:
        raise ValueError(f"{nodes}x{ranks} needs {nodes * ranks} GPUs, one for each rank; there are {len(names)}")
    return [Node(i, f"node{i}", f"10.201.0.{i + 1}", gpus=tuple(names[i * ranks : (i + 1) * ranks])) for i in range(nodes)]


def _call(what: str, result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _unshare(flags: int, what: str) -> None:
    _call(f"unshare {what}", _libc.unshare(flags))


def _mount(source: str, target: str, kind: str = "none", flags: int = 0, options: str = "") -> None:
    code = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _call(f"mount {target}", code)


def _leave_network() -> None:
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


def _spawn(node: Node, live: Callable[[Node, socket.socket], NoReturn], links: list[socket.socket]) -> int:
    """Fork a node; return its pid and append our end of its socket to `links`. It waits until it is told to go on.

    unshare(CLONE_NEWPID) makes a process's next child pid 1, and can be done once. So a process between us and the node
    unshares, forks and ends; the node becomes our own child, since we are a subreaper.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(SETUP_BOUND)
    links.append(ours)
    between = os.fork()
    if between == 0:
        for link in links:  # holding an end of ours, a node would not see us go
            link.close()
        _between(node, live, theirs)
    theirs.close()
    try:
        return int(_hear(node, ours))
    finally:
        os.kill(between, signal.SIGKILL)
        os.waitpid(between, 0)


def _between(node: Node, live: Callable[[Node, socket.socket], NoReturn], link: socket.socket) -> NoReturn:
    try:
        _unshare(_NEWNET | _NEWUTS | _NEWNS | _NEWPID | _NEWIPC, "network, UTS, mount, PID, IPC")
        if pid := os.fork():
            _tell(link, text=str(pid))
        else:
            live(node, link)
    except OSError as error:
        _tell(link, error)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(CRASHED)


def _tell(link: socket.socket, error: OSError | None = None, text: str = "") -> None:
    """To the caller of `run`: an error number, 0 for none, and a text."""
    with contextlib.suppress(OSError):  # it is gone: then so are we
        link.send(f"{error.errno if error else 0} {_text(error) if error else text}".encode())


def _text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _hear(node: Node, link: socket.socket) -> str:
    try:
        code, _, text = link.recv(4096).decode().partition(" ")
    except TimeoutError:
        raise TimeoutError(errno.ETIMEDOUT, f"not up within {SETUP_BOUND:g} s", node.host) from None
    if code != "0":
        raise OSError(int(code or errno.ECHILD), text or "ended while it was set up", node.host)
    return text


def _live(node: Node, cluster: Sequence[Node], link: socket.socket, mask: set[int], body: Callable[[Node], int]) -> NoReturn:
    """The life of a node's pid 1. When it ends, the kernel kills whatever else runs in the node."""
    try:
        _await(link)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # of the parent that has just adopted us
        os.setsid()  # Ctrl-C comes from our parent, once
        _furnish(node, cluster)
        _tell(link)
        _await(link)  # were our parent gone before prctl, this would see it
    except OSError as error:
        _tell(link, error)
        os._exit(CRASHED)
    link.close()
    code = CRASHED
    try:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _leave)  # the default action does not apply to pid 1
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.update(environment(node))
        code = body(node)
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code & 0xFF)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _await(link: socket.socket) -> None:
    if not link.recv(16):
        os._exit(CRASHED)  # our parent is gone


def _furnish(node: Node, cluster: Sequence[Node]) -> None:
    """What makes these namespaces a host: its name, mounts that show only itself, addresses."""
    socket.sethostname(node.host)
    _mount("none", "/", flags=_REC | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    hosts = Path("/dev/shm/hosts")  # a bind mount outlives the name of its source
    hosts.write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n" + "".join(f"{each.address} {each.host}\n" for each in cluster))
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
        ip.addr("add", index=ip.link_lookup(ifname=node.interface)[0], address=node.address, prefixlen=_PREFIX)
        _up(ip, node.interface)
        ip.route("add", dst="default", gateway=_GATEWAY)


def _wire(pids: Sequence[int]) -> None:
    """In our own network: a bridge with one cable to each node, and a gateway that answers for the rest of the world.

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
            ip.link("add", ifname=f"node{rank}", kind="veth", peer={"ifname": INTERFACE, "net_ns_pid": pid})
            _up(ip, f"node{rank}", master=switch)


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


def _wait(pids: Sequence[int]) -> list[int]:
    """Exit codes of all. SIGINT or SIGTERM is passed on once; from then on the wait is bounded."""
    codes: dict[int, int] = {}
    ends: float | None = None
    killed = False
    while left := [pid for pid in pids if pid not in codes and not _reap(pid, codes)]:
        caught = signal.sigwaitinfo(_SIGNALS) if ends is None else signal.sigtimedwait(_SIGNALS, max(0.0, ends - time.monotonic()))
        if caught is None and killed:
            break
        if caught is None:
            _send(left, signal.SIGKILL)
            ends, killed = time.monotonic() + _KILLED_BOUND, True
        elif caught.si_signo != signal.SIGCHLD and ends is None:
            _send(left, caught.si_signo)
            ends = time.monotonic() + GRACE
    return [codes.get(pid, -signal.SIGKILL) for pid in pids]


def _reap(pid: int, codes: dict[int, int]) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        codes[pid] = os.waitstatus_to_exitcode(status)
    return bool(done)


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:  # ours and not reaped: nobody else can have this pid
        os.kill(pid, number)


def _remedy(code: int | None, nodes: int) -> str:
    """What to type where the kernel said `code`."""
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


def main(arguments: Sequence[str]) -> int:
    """`NODES[xRANKS] -- COMMAND...`: run COMMAND on each node, with NODE_RANK and NNODES; the first exit code that is not 0."""
    at = [*arguments, "--"].index("--")
    command = arguments[at + 1 :]
    try:
        nodes, ranks = parse(" ".join(arguments[:at]))
        if not command or not shutil.which(command[0]):
            raise ValueError("after -- comes a COMMAND that can be found")
    except ValueError as error:
        print(f"{error}\nusage: python -m ncclcheck.emulate NODES[xRANKS] -- COMMAND...", file=sys.stderr)
        return 2

    def body(node: Node) -> int:
        child = subprocess.Popen(command, env=os.environ | {"NODE_RANK": str(node.rank), "NNODES": str(nodes)})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: child.send_signal(number))
        code = child.wait()
        return code if code >= 0 else 128 - code

    try:
        codes = run(nodes, ranks, body)
    except EmulationRefused as error:
        print(f"{error}\n{error.remedy}", file=sys.stderr)
        return 3
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

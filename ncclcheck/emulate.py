"""Nodes made of Linux namespaces on this machine, for drills, tests and learning.

A node is a network, UTS, mount, PID and IPC namespace: own address, host name, /etc/hosts, /dev/shm and process list;
the file system is shared. Namespaces and links have no name outside the processes in them, so when the process that
called `run` is gone, even by SIGKILL, the kernel has removed everything. Root is not needed where users may make namespaces.

    python -m ncclcheck.emulate 2 -- sh -c 'hostname; torchrun --nnodes $NNODES --node-rank $NODE_RANK --master-addr node0 train.py'
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ncclcheck import ending, namespaces, pid1
from ncclcheck.collect import room

MOST_NODES = 64
MOST_RANKS = 64  # per node
GRACE = 15.0  # seconds from SIGINT, SIGTERM or SIGHUP to SIGKILL
_KILLED_BOUND = 5.0  # seconds that a killed node may take: a process in state D cannot be waited for


@dataclass(frozen=True, slots=True)
class Node:
    """One emulated node. `gpus` are the GPUs it owns, in the words of CUDA_VISIBLE_DEVICES (index or UUID); () = CPU."""

    rank: int
    host: str
    address: str
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
    added = {"GLOO_SOCKET_IFNAME": namespaces.INTERFACE, "NCCL_SOCKET_IFNAME": namespaces.INTERFACE, "VLLM_HOST_IP": node.address}
    if node.gpus:  # with a host id of its own, a node is a host to NCCL whatever else NCCL reads
        added |= {"CUDA_VISIBLE_DEVICES": ",".join(node.gpus), "NCCL_HOSTID": node.host, "VLLM_CACHE_ROOT": _cache(node.host)}
    return added


def _cache(host: str) -> str:
    """A node's own folder in vLLM's cache: the code that is compiled for one node's GPUs is not for another's, and vLLM does not tell them apart."""
    return os.path.join(room.folders(os.environ)["VLLM_CACHE_ROOT"], f"emulated-{host}")


def run(nodes: int, ranks_per_node: int, body: Callable[[Node], int], *, gpus: int = 0) -> list[int]:
    """Run `body(node)` as pid 1 of each of `nodes` nodes; return their exit codes, node 0 first (-9 = killed by signal 9).

    `gpus`: how many GPUs the caller may use; with any, local rank `l` of node `i` owns number `i * ranks_per_node + l`.
    SIGINT, SIGTERM and SIGHUP are passed on once; a node still there 15 s later is killed. A body that raises prints its traceback
    and exits 70. The calling process must be single-threaded; it stays in a network of its own, without the machine's links.
    Raises EmulationRefused where the machine refuses, ValueError for too few GPUs, RuntimeError for a caller with threads.
    """
    cluster = _cluster(nodes, ranks_per_node, gpus)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("nodes are forked: start them before any thread")
    import pyroute2  # noqa: F401  (here, as it takes 0.5 s; before the forks, so that it takes them once)

    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _signals())  # from now on they are waited for, not handled
    addresses = {node.host: node.address for node in cluster}
    children: list[pid1.Pid1] = []
    codes: list[int] = []

    def live(node: Node) -> int:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.update(environment(node))
        return body(node)

    try:
        namespaces.leave_network()
        pid1.adopt()
        for node in cluster:
            children.append(pid1.spawn(node.host, partial(namespaces.furnish, node.host, addresses), partial(live, node), children))
        namespaces.connect([child.pid for child in children])
        for child in children:
            child.go_on()
        for child in children:
            child.wait_for_setup()
        for child in children:
            child.go_on()
        codes = _wait([child.pid for child in children])
    except OSError as error:
        raise EmulationRefused(f"cannot emulate {nodes} nodes here: {namespaces.in_words(error)}", namespaces.remedy(error.errno, nodes)) from error
    finally:
        if not codes:
            _send([child.pid for child in children], signal.SIGKILL)
            for child in children:
                os.waitpid(child.pid, 0)
        for child in children:
            child.link.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return codes


def _cluster(nodes: int, ranks: int, gpus: int) -> list[Node]:
    parse(f"{nodes}x{ranks}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(index) for index in range(gpus)])[:gpus]
    if gpus and len(names) < nodes * ranks:
        raise ValueError(f"{nodes}x{ranks} needs {nodes * ranks} GPUs, one for each rank; there are {len(names)}")
    return [Node(i, f"node{i}", namespaces.address(i), gpus=tuple(names[i * ranks : (i + 1) * ranks])) for i in range(nodes)]


def _wait(pids: Sequence[int]) -> list[int]:
    """Exit codes of all. SIGINT, SIGTERM or SIGHUP is passed on once; from then on the wait is bounded."""
    signals = _signals()
    codes: dict[int, int] = {}
    ends: float | None = None
    killed = False
    while left := [pid for pid in pids if pid not in codes and not _reap(pid, codes)]:
        caught = signal.sigwaitinfo(signals) if ends is None else signal.sigtimedwait(signals, max(0.0, ends - time.monotonic()))
        if caught is None and killed:
            break
        if caught is None:
            _send(left, signal.SIGKILL)
            ends, killed = time.monotonic() + _KILLED_BOUND, True
        elif caught.si_signo != signal.SIGCHLD and ends is None:
            _send(left, caught.si_signo)
            ends = time.monotonic() + GRACE
    return [codes.get(pid, -signal.SIGKILL) for pid in pids]


def _signals() -> set[signal.Signals]:
    return {*ending.asking(), signal.SIGCHLD}


def _reap(pid: int, codes: dict[int, int]) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        codes[pid] = os.waitstatus_to_exitcode(status)
    return bool(done)


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:  # ours and not reaped: nobody else can have this pid
        os.kill(pid, number)


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
        for number in ending.asking():
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

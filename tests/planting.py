"""Conditions planted on one node before anything of a job starts there, each of which must be found; and what they must be found as.

Every planting acts on the calling process and on its namespaces (an emulated node's first process, say), and undoes itself on leaving.
`python tests/planting.py NAME NODE` makes two emulated nodes, plants on one of them ("healthy": on none), and prints what is read of each, one
JSON line per node. `python tests/planting.py NAME NODE WORD...` runs `ncclcheck WORD...` on both of them instead; the reports are node0.json and
node1.json in the current folder. Children inherit what is planted, as collectors inherit it from their agent.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ncclcheck import cluster as clusters
from ncclcheck import emulate, namespaces, sieve

SECTIONS = ("limits", "interfaces", "settings")
_DETACH = 2  # sys/mount.h: MNT_DETACH
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Planting:
    """One condition: what plants it, the cause that must be named, how heavy it is ("fail", "degraded"), and a part of what must be said."""

    plant: Callable[[], AbstractContextManager[None]]
    cause: str
    kind: str
    said: str


@contextlib.contextmanager
def variable(**values: str) -> Iterator[None]:
    """Variables of the environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def limit(which: int, value: int) -> Iterator[None]:
    """`ulimit`: the soft and the hard limit."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (value, value))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # only root may raise a hard limit
            resource.setrlimit(which, before)


@contextlib.contextmanager
def mounted(folder: str, options: str) -> Iterator[None]:
    """A new, empty tmpfs over a folder."""
    namespaces._mount("tmpfs", folder, "tmpfs", 0, options)
    try:
        yield
    finally:
        _libc.umount2(folder.encode(), _DETACH)


@contextlib.contextmanager
def full_temporary_folder() -> Iterator[None]:
    """TMPDIR is on a file system of its own, without a byte left."""
    folder = tempfile.mkdtemp(prefix="planted-", dir="/dev/shm")
    with mounted(folder, "size=1m,mode=1777"), variable(TMPDIR=folder):
        with contextlib.suppress(OSError), open(f"{folder}/filler", "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        yield
    os.rmdir(folder)


@contextlib.contextmanager
def hosts(*lines: str) -> Iterator[None]:
    """Another content of /etc/hosts, which is this node's own: an emulated node has it on a file system that is nobody else's."""
    path = Path("/etc/hosts")
    assert path.stat().st_dev != path.parent.stat().st_dev, "this would change the machine's own /etc/hosts"
    before = path.read_text()
    path.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *lines)))
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def own_name_at_loopback() -> Iterator[None]:
    """As Debian writes it: 127.0.1.1 and the host's name; and no interface is named, so that Gloo goes by that name."""
    own = os.uname().nodename
    others = [f"{namespaces.address(rank)} node{rank}" for rank in range(8) if f"node{rank}" != own]
    named = os.environ.pop("GLOO_SOCKET_IFNAME", None)
    try:
        with hosts(f"127.0.1.1 {own}", *others):
            yield
    finally:
        if named is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = named


@contextlib.contextmanager
def second_interface(name: str = "fabric0", address: str = "10.202.0.9", *, up: bool = False) -> Iterator[None]:
    """A further cable with an address, whose interface is down."""
    with namespaces._netlink() as ip:
        ip.link("add", ifname=name, kind="veth", peer={"ifname": f"end-of-{name}"})
        ip.addr("add", index=ip.link_lookup(ifname=name)[0], address=address, prefixlen=24)
        for end in (name, f"end-of-{name}") if up else ():
            namespaces._up(ip, end)
    try:
        yield
    finally:
        with namespaces._netlink() as ip:
            ip.link("del", ifname=name)


@contextlib.contextmanager
def named_interface_down() -> Iterator[None]:
    """NCCL is told to use an interface that is there and is down."""
    with second_interface(), variable(NCCL_SOCKET_IFNAME="fabric0"):
        yield


@contextlib.contextmanager
def main_interface_down() -> Iterator[None]:
    """The node's own cable: nothing else leads to the others. A control plane cannot report this one."""
    with namespaces._netlink() as ip:
        ip.link("set", index=ip.link_lookup(ifname=namespaces.INTERFACE)[0], state="down")
    yield


def other() -> str:
    """The address of the other one of two nodes."""
    return namespaces.address(1 - int(os.uname().nodename.removeprefix("node")))


def lost(**options: Any) -> AbstractContextManager[None]:
    """What comes from the other node and is none of the agents' is lost, all of it or what is large."""
    return sieve.taken(namespaces.INTERFACE, sieve.Sieve([other()], **{"outgoing": False, "spare": [clusters.DEFAULT_PORT], **options}))


@contextlib.contextmanager
def another_version(version: str = "0.1.0") -> Iterator[None]:
    """Python finds the metadata of another vLLM first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"vllm-{version}.dist-info")
        path.mkdir()
        (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        with variable(PYTHONPATH=os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))):
            yield


@contextlib.contextmanager
def no_model() -> Iterator[None]:
    """The folder `model` of the current one is empty."""
    with mounted(str(Path("model").resolve()), "mode=755"):
        yield


PLANTINGS: Mapping[str, Planting] = {
    "interface-down": Planting(second_interface, "network-unreachable", "degraded", "fabric0 on {host} is down"),
    "named-interface-down": Planting(named_interface_down, "wrong-interface", "fail", "NCCL_SOCKET_IFNAME=fabric0 on {host}, and fabric0 is down"),
    "interface-missing": Planting(lambda: variable(NCCL_SOCKET_IFNAME="ib7"), "wrong-interface", "fail", "that node has no such interface"),
    "gloo-excludes": Planting(lambda: variable(GLOO_SOCKET_IFNAME="^lo"), "wrong-interface", "fail", "takes plain names only"),
    "own-name-at-loopback": Planting(own_name_at_loopback, "hostname-resolution", "fail", "the name {host} of {host} resolves to 127.0.1.1"),
    "shm-of-64-mib": Planting(lambda: mounted("/dev/shm", "size=64m,mode=1777"), "shm-too-small", "degraded", "/dev/shm on {host} is 64 MiB"),
    "memlock-of-64-kib": Planting(lambda: limit(resource.RLIMIT_MEMLOCK, 64 << 10), "memlock-limit", "degraded", "may lock 64 KiB"),
    "nofile-of-64": Planting(lambda: limit(resource.RLIMIT_NOFILE, 64), "fd-limit", "fail", "may open 64 files"),
    "stale-master": Planting(lambda: variable(MASTER_ADDR="10.9.9.9"), "wrong-master-addr", "fail", "MASTER_ADDR=10.9.9.9 on {host}"),
    "full-temporary-folder": Planting(full_temporary_folder, "disk-full", "fail", "(TMPDIR"),
}
"""With which an agent of that node still reaches the others."""
CUT_OFF: Mapping[str, Planting] = {
    "main-interface-down": Planting(main_interface_down, "network-unreachable", "fail", "no way leads from {host}"),
}


APART: Mapping[str, Planting] = {
    "firewall": Planting(lambda: lost(incoming=True, outgoing=True), "blocked-port", "fail", "connections to random ports are dropped between"),
    "one-way": Planting(lost, "blocked-port", "fail", "is lost, and what"),
    "black-hole": Planting(lambda: lost(larger=1280, spare=[]), "mtu-mismatch", "fail", "packets of more than 1280 bytes vanish"),
    "drift": Planting(lambda: variable(NCCL_ALGO="Tree"), "nccl-env-misconfig", "fail", "NCCL_ALGO is not set on"),
    "another-version": Planting(another_version, "version-mismatch", "fail", "0.1.0 on {host}"),
    "one-gpu-visible": Planting(
        lambda: variable(CUDA_VISIBLE_DEVICES="0"), "device-visibility", "fail", "names 1 GPU and 2 ranks are started on {host}"
    ),
    "no-model": Planting(no_model, "model-not-on-node", "fail", "{host} cannot use the model"),
}
"""What shows between the nodes only, or in what is to be launched."""
ENGINE: Mapping[str, Planting] = {
    "another-vllm": Planting(lambda: another_version("0.31.0+cpu"), "version-mismatch", "fail", "0.31.0+cpu on {host}"),
    "wrong-host-ip": Planting(lambda: variable(VLLM_HOST_IP="10.9.9.9"), "vllm-host-ip", "fail", "VLLM_HOST_IP=10.9.9.9 on {host}"),
    "too-large-a-cache": Planting(
        lambda: variable(VLLM_CPU_KVCACHE_SPACE="4000"), "kv-cache-or-memory-too-small", "fail", "the KV cache asks for 4000.0 GiB and "
    ),
}
"""At which an engine fails, or hangs, though collectives work."""


def read(node: emulate.Node, nodes: int) -> dict[str, Any]:
    """The sections, as a child of this process reads them."""
    others = [namespaces.address(rank) for rank in range(nodes) if rank != node.rank]
    script = (
        "import importlib, json, sys\n"
        "from ncclcheck.survey import Question\n"
        "question = Question(**json.loads(sys.argv[1]))\n"
        "print(json.dumps({name: importlib.import_module(f'ncclcheck.collect.{name}').section(question) for name in sys.argv[2:]}))\n"
    )
    question = {"master": namespaces.address(0), "address": node.address, "peers": others}
    done = subprocess.run([sys.executable, "-c", script, json.dumps(question), *SECTIONS], capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout) if done.returncode == 0 else {key: {"error": done.stderr[-2000:]} for key in SECTIONS}


def probe(node: emulate.Node, nodes: int, words: Sequence[str]) -> int:
    """One node's part of `ncclcheck WORDS...`. What it exits with is in the report."""
    meet = ("--nnodes", str(nodes), "--node-rank", str(node.rank), "--master", namespaces.address(0), "--format", "json")
    with open(f"{node.host}.json", "wb") as out, open(f"{node.host}.err", "wb") as err:
        subprocess.run([sys.executable, "-m", "ncclcheck", *words, *meet], stdout=out, stderr=err, timeout=270)
    return 0


def main(name: str, victim: int, words: Sequence[str] = (), nodes: int = 2) -> int:
    """Two nodes, one of them with the condition. Neither is short of shared memory, whatever this machine has."""
    plantings = {**PLANTINGS, **CUT_OFF, **APART, **ENGINE}

    def body(node: emulate.Node) -> int:
        planted = plantings[name].plant() if name in plantings and node.rank == victim else contextlib.nullcontext()
        with mounted("/dev/shm", "size=4g,mode=1777"), planted:
            if words:
                return probe(node, nodes, words)
            line = {"node_rank": node.rank, "host": node.host, "address": node.address, "sections": read(node, nodes)}
            os.write(1, (json.dumps(line) + "\n").encode())
        return 0

    return max(map(abs, emulate.run(nodes, 1, body)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

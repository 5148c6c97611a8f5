"""What is usually the same on all nodes of a job, and how grave it is where it is not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ncclcheck import gathered
from ncclcheck.model import Fact
from ncclcheck.preflight.parity import Thing
from ncclcheck.survey import Node, Section, degrades, note, stop
from ncclcheck.units import bytes_text

NEAR = 0.1  # of the largest: memories that differ by no more are the same size, as firmware keeps some of it

Value = Callable[[Section, Node], str | None]


def at(*path: str) -> Value:
    """What stands at a path of names, as text."""

    def value(section: Section, node: Node) -> str | None:
        here: Any = section
        for name in path:
            here = here.get(name) if isinstance(here, Mapping) else None
        return None if here is None else str(here)

    return value


def _torch(section: Section, node: Node) -> str | None:
    return at("torch")(section, node) or at("installed", "torch")(section, node)


def _nccl(section: Section, node: Node) -> str | None:
    return at("nccl")(section, node) or at("installed", "nccl")(section, node)


def _minor(section: Section, node: Node) -> str | None:
    version = at("python")(section, node)
    return version and ".".join(version.split(".")[:2])


def _gpus(section: Section, node: Node) -> str | None:
    """`8 x NVIDIA H200`, of those that ranks see."""
    visible = section.get("visible") or ()
    names = [str(gpu.get("name")) for gpu in section.get("gpus", ()) if gpu.get("index") in visible]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None


def _size(*path: str) -> Value:
    def value(section: Section, node: Node) -> str | None:
        text = at(*path)(section, node)
        return bytes_text(int(text)) if text and text.isdigit() else text

    return value


def _soft(name: str) -> Value:
    def value(section: Section, node: Node) -> str | None:
        limits = (section.get("rlimits") or {}).get(name)
        return str(limits[0]) if limits else None

    return value


def _in_use(what: str) -> Value:
    """Of the interface that has the address by which the others know this node."""

    def value(section: Section, node: Node) -> str | None:
        used: Section = next((one for one in section.get("interfaces", ()) if node.address and node.address in one.get("addresses", ())), {})
        return str(used[what]) if used.get(what) else None

    return value


def _ports(section: Section, _: Node) -> str | None:
    """`8 x 400 Gb/s InfiniBand`, of those that are active."""
    ports = [port for port in section.get("ports", ()) if str(port.get("state")).lower() == "active"]
    kinds = [f"{port.get('rate') or 0:g} Gb/s {port.get('link')}" for port in ports]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))) or None


def _firmware(section: Section, _: Node) -> str | None:
    return (
        ", ".join(sorted({f"{port.get('kind') or 'adapter'} {port['firmware']}" for port in section.get("ports", ()) if port.get("firmware")}))
        or None
    )


_SAME = "   # or the same other version on every node"
THINGS = (
    Thing("NCCL", "versions", _nccl, stop, "nccl-version-mismatch", "the communicator fails or hangs when it is made",
          "on {hosts}: pip install nvidia-nccl-cu13=={most}   # or -cu12, as torch was built; LD_PRELOAD must bring no other libnccl.so"),
    Thing("torch", "versions", _torch, stop, "version-mismatch", "the ranks may issue other collectives for the same program",
          "on {hosts}: pip install torch=={most}" + _SAME),
    Thing("CUDA of torch", "versions", at("torch_cuda"), degrades, "version-mismatch", "another build of torch comes with another NCCL",
          "on {hosts}: install the torch that was built with CUDA {most}"),
    Thing("vLLM", "versions", at("installed", "vllm"), stop, "version-mismatch", "the parts of an engine do not understand each other",
          "on {hosts}: pip install vllm=={most}" + _SAME, optional=True),
    Thing("Ray", "versions", at("installed", "ray"), degrades, "version-mismatch", "Ray refuses a node with another version",
          "on {hosts}: pip install ray=={most}" + _SAME),
    Thing("transformers", "versions", at("installed", "transformers"), None),
    Thing("Python", "versions", _minor, degrades, "version-mismatch", "Ray refuses it, and objects that are sent may not be read",
          "on {hosts}: use an environment with Python {most}"),
    Thing("ncclcheck", "versions", at("installed", "ncclcheck"), degrades, "version-mismatch", "the nodes are not looked at alike",
          "on {hosts}: install ncclcheck {most}"),
    Thing("NVIDIA driver", "versions", at("driver"), degrades, "version-mismatch", "NCCL decides by it what it may use",
          "on {hosts}: install the driver {most}, then restart the node"),
    Thing("GPUs", "devices", _gpus, degrades, "slow-gpu", "a job is as fast as its slowest GPU, and as large as its smallest",
          "nvidia-smi -L   # on {hosts}: expected {most}"),
    Thing("MTU of the interface in use:", "interfaces", _in_use("mtu"), degrades, "mtu-mismatch",
          "what is larger than the smallest may vanish: small messages pass, and the first large one hangs",
          "on {hosts}: ip -br link; ip link set INTERFACE mtu {most}   # as root, and in the network's own configuration"),
    Thing("speed of the interface in use (Mb/s):", "interfaces", _in_use("speed"), degrades, "slow-link", "every collective waits for the slowest",
          "on {hosts}: ethtool INTERFACE   # expected {most} Mb/s: cable, port, autonegotiation"),
    Thing("active RDMA ports", "infiniband", _ports, degrades, "ib-link-error", "rails that are missing or slower hold up all nodes",
          "on {hosts}: ibstat   # expected {most}: cable, port, switch"),
    Thing("firmware of RDMA adapters", "infiniband", _firmware, None),
    Thing("kernel", "versions", at("kernel"), None),
    Thing("operating system", "versions", at("system"), None),
    Thing("size of /dev/shm", "limits", _size("shm", "size"), None),
    Thing("locked memory in bytes (ulimit -l)", "limits", _soft("memlock"), None),
    Thing("open files (ulimit -n)", "limits", _soft("nofile"), None),
)  # fmt: skip
"""Kernels, systems and limits that differ are worth knowing: what is too little is told of each node by itself."""


def memory(nodes: Sequence[Node]) -> Iterator[Fact]:
    """A note where one node has much less memory than another."""
    totals = [
        (node.host, int(text))
        for node in nodes
        if (section := node.read("limits")) and (text := at("memory", "total")(section, node)) and text.isdigit()
    ]
    most = max((total for _, total in totals), default=0)
    if less := [(host, total) for host, total in totals if total < most * (1 - NEAR)]:
        few = ", ".join(f"{bytes_text(total)} on {host}" for host, total in less[: gathered.NAMED])
        yield note(f"memory differs: {few}, and {bytes_text(most)} elsewhere", [host for host, _ in less])

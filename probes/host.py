"""Look at every node by itself, before any rank starts.

What it checks
    What a launch would use or run into on each node: GPUs and their driver (errors, clocks, memory, who else uses them), the NCCL
    and CUDA libraries that would be loaded, InfiniBand and RoCE ports, what the kernel said of the GPUs since it started, /dev/shm,
    memory, files and locked memory, the interfaces that NCCL and Gloo would choose, and NCCL's settings wherever they come from.

What a failure means
    A launch would fail, hang, or give wrong results on the node that is named, and the remedy is there to type. "Degraded" would work,
    and slower or less safely than it could. What could not be read is said, and nothing is concluded from it.

Run it alone
    python -m ncclcheck.probes.host
    looks at this node only; as root it sees most. No torch and no GPU is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

from ncclcheck import gathered
from ncclcheck.model import Fact
from ncclcheck.preflight import devices, infiniband, interfaces, libraries, limits, settings, wiring
from ncclcheck.survey import Job, Node, Survey, seen, stop, unread
from ncclcheck.units import bytes_text

WHERE = "nodes"
TIMEOUT = 30.0
DEFAULT = True
ORDER = 1
MOST_KINDS, MOST_NAMED = 4, 8  # kinds of nodes whose equipment is said, and hosts named of each
_GIB = 2**30
READS = ("devices", "kernel", "peer_copy", "libraries", "infiniband", "limits", "interfaces", "settings")

_AREAS: Sequence[ModuleType] = (devices, libraries, infiniband, limits, interfaces, settings)  # devices tells what the kernel and the copies say


def judge(survey: Survey) -> Iterator[Fact]:
    """What each node lacks, what would slow it down, and what could not be read; said once of all nodes to which it applies."""
    job = replace(survey.job, meets=wiring.meets(survey.nodes))
    yield from gathered.once(fact for node in survey.nodes for fact in _node(node, job))
    alike = list(_alike(survey.nodes).items())
    for what, hosts in alike[:MOST_KINDS]:
        yield seen(f"{', '.join(hosts[:MOST_NAMED])}{' ...' * (len(hosts) > MOST_NAMED)}: {what}")
    if len(alike) > MOST_KINDS:
        yield seen(f"and {len(alike) - MOST_KINDS} more kinds of nodes")


def _alike(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """What a node has, in words -> the hosts that have it."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(_equipment(node), []).append(node.host)
    return found


def _equipment(node: Node) -> str:
    gpus, ports, limits = (node.read(name) or {} for name in ("devices", "infiniband", "limits"))
    models = Counter(str(gpu.get("name")) for gpu in gpus.get("gpus") or ())
    rdma = len(ports.get("ports") or ())
    shm, memory, cpus = (limits.get(name) or {} for name in ("shm", "memory", "cpus"))
    words = [
        " and ".join(f"{count} x {model}" for model, count in models.items()) or str(gpus.get("why") or "GPUs unknown"),
        f"{rdma} RDMA port{'s' * (rdma != 1)}" if rdma else str(ports.get("why") or "InfiniBand unknown"),
        *([f"{cpus['allowed']} CPUs"] if cpus.get("allowed") else []),
        *(
            f"{bytes_text(size if size < _GIB else round(size / _GIB) * _GIB)} of {what}"
            for what, size in (("memory", memory.get("total")), ("/dev/shm", shm.get("size")))
            if size
        ),
    ]
    return ", ".join(words)


def _node(node: Node, job: Job) -> Iterator[Fact]:
    silent = {node.why(name) for name in READS}
    if len(silent) == 1 and "" not in silent:
        yield unread("what this node is and has", silent.pop(), [node.host], needed=True)
        return
    found: list[Fact] = []
    for area in _AREAS:
        try:
            found += area.judge(node, job)
        except Exception as error:  # what a node says of itself takes every form; the other areas are still looked at
            title = f"the check {area.__name__.rpartition('.')[2]} failed by itself on what {node.host} says: {type(error).__name__}: {error}"
            found.append(stop("probe-crashed", title, [node.host], "leave it out with --skip host, and report it to ncclcheck", confidence=0.9))
    said = [str(fact.get("title")) for fact in found if fact.kind == "unread"]
    for name in READS:
        if (why := node.why(name)) and not any(title.endswith(why) for title in said):
            found.append(unread(name, why, [node.host], needed=True))
    yield from found


if __name__ == "__main__":
    from ncclcheck.alone import run_alone

    run_alone(__file__)

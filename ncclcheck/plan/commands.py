"""What to type on each node: the environment and the `vllm serve` of every server of a layout. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ncclcheck.plan.layout import Layout
from ncclcheck.plan.memory import UTILISATION

API_PORT, MASTER_PORT = 8000, 29501
TIMEOUT = 600  # seconds for the ranks to meet: without it vLLM waits for half an hour, silently


@dataclass(frozen=True, slots=True)
class Engine:
    """What all servers have in common."""

    model: str
    dtype: str
    longest: int
    requests: int  # of one replica at once


@dataclass(frozen=True, slots=True)
class Server:
    """One `vllm serve` on one node: a replica, or one node's part of it. `gpus` are None where it has the whole node."""

    node: int
    replica: int
    place: int  # this node's number within the replica
    first: int  # the number of the replica's first node
    nodes: int  # of the replica
    port: int
    gpus: tuple[int, ...] | None
    arguments: tuple[str, ...]  # without what says where it is

    @property
    def head(self) -> bool:
        """Whether it answers requests."""
        return self.place == 0


def servers(layout: Layout, each: int, engine: Engine) -> list[Server]:
    """Every server, node by node."""
    arguments = (
        *("--dtype", engine.dtype, "--tensor-parallel-size", str(layout.tp), "--pipeline-parallel-size", str(layout.pp)),
        *("--max-model-len", str(engine.longest), "--max-num-seqs", str(_seats(engine.requests))),
        *("--gpu-memory-utilization", f"{UTILISATION:g}", "--distributed-timeout-seconds", str(TIMEOUT)),
        *(("--distributed-executor-backend", "mp") if layout.gpus > 1 else ()),
    )
    if layout.nodes > 1:
        return [
            Server(replica * layout.nodes + place, replica, place, replica * layout.nodes, layout.nodes, API_PORT, None, arguments)
            for replica in range(layout.replicas)
            for place in range(layout.nodes)
        ]
    per_node = each // layout.gpus
    found = []
    for replica in range(layout.replicas):
        node, index = divmod(replica, per_node)
        mine = tuple(range(index * layout.gpus, (index + 1) * layout.gpus))
        found.append(Server(node, replica, 0, node, 1, API_PORT + index, mine if layout.gpus < each else None, arguments))
    return found


def placed(server: Server, master: str) -> Sequence[str]:
    """The arguments that differ from node to node. `master` is the address of the replica's first node, or what a shell makes of it."""
    spread = ("--nnodes", str(server.nodes), "--node-rank", str(server.place), "--master-addr", master, "--master-port", str(MASTER_PORT))
    answers = ("--host", "0.0.0.0", "--port", str(server.port)) if server.head else ("--headless",)
    return (*(spread if server.nodes > 1 else ()), *answers)


def _seats(requests: int) -> int:
    """A power of two, and at least 16: vLLM captures graphs for such batches."""
    return max(16, 1 << max(0, requests - 1).bit_length())

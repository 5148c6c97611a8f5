"""A node's agent disappeared or cannot be reached any more.

It was killed, its machine went down, or the network to it did. What its ranks did after that is not known, so the
verdict is unknown.

Blames
    fact agent-lost @ b node_rank=1 reason=silent
    => b

Blames
    fact agent-lost @ b node_rank=1 reason=silent closed=True
    fact path @ a peer=b answer=timeout control=True
    => b

Blames
    fact agent-lost @ b node_rank=1 reason=silent closed=False
    fact path @ a peer=b answer=silent control=True
    => b

Spares
    fact agent-lost @ b node_rank=1 reason=silent closed=False
    fact path @ a peer=b answer=timeout control=True

Spares
    fact agent-lost @ b node_rank=1 reason=OSError:[Errno_28]_full

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _paths as paths
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_died_exception", "rank_killed", "network_unreachable")


def check(run: Run) -> list[Finding]:
    """Agents that were there and are not any more."""
    silent, broken = paths.lost(run), bool(paths.broken(run))
    blocked = {host for other in _no_way(run) for host in paths.way(other)}
    return [
        Finding(
            "agent-lost",
            f"the agent of {_node(fact)} was lost: {fact.get('reason')}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.95,
            reading.quote(fact, *[*run.of("stack")[:3], *run.of("traceback")[:3]][:3]),
            f"on {word(fact.host)}: uptime; dmesg -T | tail -50   # is the machine up, was ncclcheck killed? then ping it from the other nodes",
        )
        for fact in run.of("agent-lost")
        if not reading.could_not_write(fact)
        if fact.host not in silent or not (broken or fact.host in blocked)
    ]


def _no_way(run: Run) -> list[Fact]:
    """Ways on which nothing, or nothing large, comes through: they say why an agent is silent."""
    return [*paths.failing(run), *(fact for fact in run.of("path") if fact.get("answer") == "large-lost")]


def _node(fact: Fact) -> str:
    """`node 1 (gpu-02)`; an agent that was never numbered goes by its host."""
    return f"node {fact.get('node_rank')} ({fact.host})" if fact.get("node_rank") is not None else str(fact.host)

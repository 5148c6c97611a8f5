"""Fewer took part than were announced: a node or a rank never came.

It was not started, died before it could say hello, was given another master address, or cannot reach it. Everybody
else waits for it at the first rendezvous.

Blames
    fact missing-node @ b node_rank=1 nproc_per_node=1
    fact roll-call @ a seconds=60
    => b

Blames
    rank 0 @ a: init...
    => 1 of 2

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=refused text=refused
    => node0

Spares
    rank 0 @ a: init
    rank 1 @ b: init
"""

from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Missing nodes at roll call, a node 0 that does not listen, or ranks that never announced themselves."""
    return [*_nodes(run), *_node0(run), *_ranks(run)]


def _nodes(run: Run) -> list[Finding]:
    missing = run.of("missing-node")
    if not missing or run.of("stranger"):
        return []
    call = next(iter(run.of("roll-call")), Fact("roll-call"))
    names = ", ".join(f"node {fact.get('node_rank')}" + (f" ({fact.host})" if fact.host else "") for fact in missing)
    ranks = [fact.get("node_rank") * fact.get("nproc_per_node") + i for fact in missing for i in range(fact.get("nproc_per_node"))]
    hosts = [fact.host for fact in missing if fact.host]
    there = ", ".join(call.get("there", ())) or "nobody"
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{names} never came to the roll call ({call.get('seconds', 0):g} s); here: {there}",
            Culprit(ranks=ranks, hosts=hosts or None),
            0.95,
            reading.quote(*missing, call),
            f"start `ncclcheck probe` there with --node-rank {missing[0].get('node_rank')}, the same --nnodes and --master; "
            "if it runs, read what it says: it names what keeps it from node 0",
        )
    ]


def _node0(run: Run) -> list[Finding]:
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"node 0 never came: nothing listens at {fact.get('address')}:{fact.get('port')} ({fact.get('name')}), though that host answers",
            Culprit(hosts=[str(fact.get("name"))]),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            f"start node 0 (`ncclcheck probe --node-rank 0 ...`) on {fact.get('name')}, or correct --master if node 0 has another address or port",
        )
        for fact in run.of("master")
        if fact.get("answer") == "refused"
    ]


def _ranks(run: Run) -> list[Finding]:
    last = run.last_steps()
    missing = [rank for rank in range(run.world_size or 0) if rank not in last]
    if not missing or not last or run.of("error") or run.of("gone"):
        return []
    names = ", ".join(run.name(rank) for rank in missing[:8])
    return [
        Finding(
            "missing-rank-at-rendezvous",
            f"{names} of {run.world_size} never announced itself{reading.bystanders(run, missing)}",
            run.blame(missing),
            0.9,
            [*reading.quote(*run.of("clock")), *reading.positions(run, list(last))],
            "read launcher.log of that node in the run directory: it says why the rank did not start",
        )
    ]

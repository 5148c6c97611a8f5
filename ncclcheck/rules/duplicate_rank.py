"""Two processes claim the same rank, or two agents the same node_rank: one of them was started with the other's number.

Blames
    fact hello @ a conflict=node_rank node_rank=1 value=1
    fact hello @ b conflict=node_rank node_rank=1 value=1
    => a b

Blames
    log node-a/rank0.log: node-a:84:89 [0] bootstrap.cc:334 NCCL WARN Bootstrap Root : rank 3 of 8 ranks has already checked in
    => -

Blames
    log a.log: RuntimeError: Rank 2 is already registered in the group
    => -

Blames
    log a.log: node-a:11:11 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init START
    log b.log: node-b:12:12 [0] NCCL INFO ncclCommInitRank comm 0x2 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init START
    => node-a node-b

Blames
    log gpu-1.log: Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4
    log gpu-2.log: Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4
    => gpu-1 gpu-2

Blames
    log a.sh: torchrun --nnodes=2 --node-rank=0 --master-addr=10.9.0.1 train.py
    log b.sh: torchrun --nnodes=2 --node-rank=0 --master-addr=10.9.0.1 train.py
    => -

Spares
    log a.sh: torchrun --nnodes=2 --node-rank=0 --master-addr=10.9.0.1 train.py
    log b.sh: torchrun --nnodes=2 --node-rank=1 --master-addr=10.9.0.1 train.py

Spares
    fact hello @ a conflict=nnodes node_rank=0 value=2

Spares
    log a.log: node-a:11:11 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init START
    log a.log: node-a:11:11 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init COMPLETE
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("missing_rank_at_rendezvous", "bind_address_not_local")
_REMEDY = (
    "give each node its own --node-rank (0 to nnodes - 1; NODE_RANK for Lightning, --machine_rank for accelerate), "
    "and each process its own RANK (node_rank x nproc_per_node + LOCAL_RANK): "
    "ps -ef | grep -E 'node.rank|RANK'   # on every node; one of them has another one's number"
)

READS = (
    Statement(r"rank (?P<number>\d+) of (?P<size>\d+) ranks has already checked in", "rank {number} of {size} came twice", _REMEDY, 0.95, "nobody"),
    Statement(
        r"[Rr]ank (?P<number>\d+) (?:is|has) already (?:been )?(?:registered|joined|taken|in use)",
        "rank {number} came twice",
        _REMEDY,
        0.85,
        "nobody",
    ),
)


def check(run: Run) -> list[Finding]:
    """Agents whose node_rank another one has too, processes that gave one communicator the same rank, and nodes started as the same one."""
    return [*_agents(run), *(_communicators(run) or _members(run) or _commands(run))]


def _members(run: Run) -> list[Finding]:
    """Lightning's processes on different hosts that take the same global rank."""
    claims: dict[object, dict[str, Fact]] = {}
    for fact in run.of("member"):
        if fact.host and fact.rank is not None:
            claims.setdefault(fact.rank, {})[fact.host] = fact
    for rank, facts in claims.items():
        if len(facts) > 1:
            title = f"rank {rank} is claimed twice: on {' and '.join(facts)}"
            return [Finding("duplicate-rank", title, Culprit(hosts=list(facts)), 0.85, reading.quote(*facts.values()), _REMEDY)]
    return []


def _commands(run: Run) -> list[Finding]:
    """Commands of several nodes, each in a file of its own, with the same node rank."""
    launches: dict[object, dict[str, Fact]] = {}
    for fact in run.of("launch"):
        if fact.source and isinstance(nodes := fact.get("nnodes"), int) and nodes > 1 and fact.get("node_rank") is not None:
            launches.setdefault(fact.get("node_rank"), {})[fact.source.file] = fact
    for number, facts in launches.items():
        if len(facts) > 1:
            title = f"node rank {number} is given to several nodes: in {' and '.join(list(facts)[:4])}"
            return [Finding("duplicate-rank", title, Culprit(), 0.8, reading.quote(*list(facts.values())[:4]), _REMEDY)]
    return []


def _agents(run: Run) -> list[Finding]:
    facts = [fact for fact in run.of("hello") if fact.get("conflict") == "node_rank"]
    if not facts:
        return []
    number = facts[0].get("node_rank")
    who = " and ".join(f"{fact.host} (pid {fact.pid})" for fact in facts)
    return [
        Finding(
            "duplicate-rank",
            f"node_rank {number} is claimed twice: by {who}",
            Culprit(hosts=[fact.host for fact in facts if fact.host]),
            0.97,
            reading.quote(*facts),
            f"give each node its own --node-rank (0 to nnodes - 1), or leave it out on all but node 0; {word(number)} is used twice",
        )
    ]


def _communicators(run: Run) -> list[Finding]:
    claims: dict[tuple[object, object], dict[tuple[object, object], Fact]] = {}
    for fact in run.of("init"):
        if fact.get("commId") is not None and fact.rank is not None and fact.pid is not None:
            claims.setdefault((fact.get("commId"), fact.rank), {}).setdefault((fact.host, fact.pid), fact)
    for (_, rank), facts in claims.items():
        if len(facts) > 1:
            hosts = list(dict.fromkeys(fact.host for fact in facts.values() if fact.host))
            who = " and ".join(f"pid {fact.pid} on {fact.host}" for fact in facts.values())
            title = f"rank {rank} is claimed twice in one communicator: by {who}"
            return [Finding("duplicate-rank", title, Culprit(hosts=hosts or None), 0.9, reading.quote(*facts.values()), _REMEDY)]
    return []

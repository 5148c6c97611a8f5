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

Spares
    fact hello @ a conflict=nnodes node_rank=0 value=2

Spares
    log a.log: node-a:11:11 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init START
    log a.log: node-a:11:11 [0] NCCL INFO ncclCommInitRank comm 0x1 rank 1 nranks 2 cudaDev 0 busId 60 commId 0xab - Init COMPLETE
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("missing_rank_at_rendezvous",)
_REMEDY = (
    "give each node its own --node-rank (0 to nnodes - 1), and each process its own RANK (node_rank x nproc_per_node + LOCAL_RANK): "
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
    """Agents whose node_rank another one has too, and processes that gave one communicator the same rank."""
    return [*_agents(run), *_communicators(run)]


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
            f"give each node its own --node-rank (0 to nnodes - 1), or leave it out on all but node 0; {number} is used twice",
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

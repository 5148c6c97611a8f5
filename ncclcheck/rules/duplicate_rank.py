"""Two agents claim the same node_rank: one of them was started with the other's number.

Blames
    fact hello @ a conflict=node_rank node_rank=1 value=1
    fact hello @ b conflict=node_rank node_rank=1 value=1
    => a b

Spares
    fact hello @ a conflict=nnodes node_rank=0 value=2
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Agents whose node_rank another one has too."""
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

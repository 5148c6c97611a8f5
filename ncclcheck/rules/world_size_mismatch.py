"""Nodes disagree on how many take part: different --nnodes or --nproc-per-node, or more agents than announced.

Blames
    fact hello @ a conflict=nnodes node_rank=0 value=2 nnodes=2
    fact hello @ b conflict=nnodes node_rank=1 value=3 nnodes=3
    => a b

Spares
    fact hello @ a conflict=node_rank node_rank=1 value=1
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

_FLAGS = {"nnodes": "--nnodes", "nproc_per_node": "--nproc-per-node"}


def check(run: Run) -> list[Finding]:
    """Agents that believe in different sizes."""
    facts = [fact for fact in run.of("hello") if fact.get("conflict") in (*_FLAGS, "count")]
    if not facts:
        return []
    field = facts[0].get("conflict")
    facts.sort(key=lambda fact: (fact.get("node_rank") is None, fact.get("node_rank") or 0))
    hosts = [fact.host for fact in facts if fact.host]
    if field == "count":
        title = f"{len(facts)} agents came and {facts[0].get('nnodes')} were announced: {', '.join(hosts)}"
        remedy = "give --nnodes the number of nodes you start, on every node, or start fewer"
    else:
        said = ", ".join(f"node {fact.get('node_rank')} ({fact.host}) says {fact.get('value')}" for fact in facts)
        title = f"the nodes disagree on {field}: {said}"
        remedy = f"start every node with the same {_FLAGS[field]}"
    return [Finding("world-size-mismatch", title, Culprit(hosts=hosts), 0.97, reading.quote(*facts), remedy)]

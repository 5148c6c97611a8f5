"""An agent knocked with another run token: a stranger, or one of yours that was started with another --token.

Blames
    fact missing-node @ b node_rank=1 nproc_per_node=1
    fact stranger addresses=10.0.0.7 attempts=5
    => 10.0.0.7

Blames
    fact master @ b name=node0 address=10.0.0.1 port=29600 answer=token text=closed
    => b

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from ncclcheck.model import Culprit, Evidence, Finding, Run
from ncclcheck.rules import _reading as reading

_REMEDY = "start every node with the same --token (or NCCLCHECK_TOKEN); without one on any node, all share the public default"


def check(run: Run) -> list[Finding]:
    """Sessions refused for their key while somebody is missing, or node 0 that refuses ours."""
    missing = ", ".join(f"node {fact.get('node_rank')}" for fact in run.of("missing-node"))
    refused = [
        Finding(
            "token-mismatch",
            f"{missing or 'a node'} is missing, and {', '.join(fact.get('addresses')) or 'somebody'} knocked with another run token",
            Culprit(hosts=list(fact.get("addresses")) or None),
            0.9,
            reading.quote(fact, *run.of("missing-node")),
            _REMEDY,
        )
        for fact in run.of("stranger")
    ]
    ours = [
        Finding(
            "token-mismatch",
            f"an agent answers at {fact.get('address')}:{fact.get('port')} and does not accept the run token of {fact.host}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            _REMEDY,
        )
        for fact in run.of("master")
        if fact.get("answer") == "token"
    ]
    return refused + ours

"""An agent knocked with another run token: a stranger, or one of yours that was started with another one.

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

from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

_REMEDY = (
    "give every node the same token: `ncclcheck token` prints the one in a node's ~/.config/ncclcheck/token; "
    "--token, --token-file, NCCLCHECK_TOKEN and NCCLCHECK_TOKEN_FILE, in this order, go before it"
)


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
            f"an agent answers at {fact.get('address')}:{fact.get('port')} and does not accept the run token of {fact.host}{_from(fact)}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.85,
            [Evidence("", 0, str(fact.get("text")))],
            _REMEDY,
        )
        for fact in run.of("master")
        if fact.get("answer") == "token"
    ]
    return refused + ours


def _from(fact: Fact) -> str:
    """Where that token comes from, if that is known."""
    return f", which comes from {fact.get('token_from')}" if fact.get("token_from") else ""

"""A node has no run token, the secret that the nodes of a run share, and so it could not take part.

Blames
    fact no-token @ b file=/home/me/.config/ncclcheck/token seconds=60 remedy=type
    => b

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from ncclcheck.model import Culprit, Evidence, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Nodes that looked for a token in vain."""
    return [
        Finding(
            "no-token",
            f"{fact.host} has no run token, as neither NCCLCHECK_TOKEN nor {fact.get('file')} is there",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.95,
            [Evidence("", 0, f"{fact.get('file')} was looked for, for {fact.get('seconds'):g} s")],
            f"on {reading.place(fact.host)}: {fact.get('remedy')}",
        )
        for fact in run.of("no-token")
    ]

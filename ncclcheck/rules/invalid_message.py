"""An agent sent what no ncclcheck of this version sends: it is another version, it is damaged, or somebody holds the token who should not.

Blames
    fact invalid-message @ b node_rank=1 reason=it~holds~the~number~nan
    => b

Spares
    fact agent-lost @ b node_rank=1 reason=silent
"""

from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("agent_lost", "missing_rank_at_rendezvous")


def check(run: Run) -> list[Finding]:
    """One finding for each sender."""
    return [
        Finding(
            "invalid-message",
            f"{_who(fact)} sent what no agent of this version sends, and is heard no more: {fact.get('reason')}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.96,
            reading.quote(fact),
            f"on {word(fact.host) if fact.host else 'every node'}: ncclcheck --version   # must be the same everywhere; if it is, make a new token",
        )
        for fact in run.of("invalid-message")
    ]


def _who(fact: Fact) -> str:
    """`node 1 (gpu-02)`, or as much as is known."""
    number, host = fact.get("node_rank"), fact.host
    return f"node {number}" + (f" ({host})" if host else "") if number is not None else host or "somebody with the token"

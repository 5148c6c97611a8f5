"""A node would not do what node 0 ordered: its own user had not asked for it.

Blames
    fact order-refused @ b reason=the~fault~link_down~was~ordered,~and~this~node~was~started~without~it
    => b

Spares
    fact agent-lost @ b node_rank=1 reason=silent
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("agent_lost",)


def check(run: Run) -> list[Finding]:
    """One finding for each refusal."""
    return [
        Finding(
            "order-refused",
            f"{fact.host} did not do what node 0 ordered: {fact.get('reason')}",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.97,
            reading.quote(fact),
            f"on {reading.place(fact.host)}: type the same ncclcheck command as on node 0: every probe, --inject, --allow-network-faults, --model",
        )
        for fact in run.of("order-refused")
    ]

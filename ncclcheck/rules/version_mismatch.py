"""Nodes run different releases of a program that must be the same everywhere.

Blames
    fact hello @ a conflict=protocol value=1 version=0.1.0
    fact hello @ b conflict=protocol value=2 version=0.2.0
    => a b

Spares
    fact hello @ a conflict=nnodes value=2 nnodes=2
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Agents that speak different versions of the control plane's protocol."""
    facts = [fact for fact in run.of("hello") if fact.get("conflict") == "protocol"]
    if not facts:
        return []
    said = ", ".join(f"{fact.host} runs {fact.get('version')}" for fact in facts)
    return [
        Finding(
            "version-mismatch",
            f"the nodes run releases of ncclcheck that cannot speak with each other: {said}",
            Culprit(hosts=[fact.host for fact in facts if fact.host]),
            0.97,
            reading.quote(*facts),
            "pip install the same version of ncclcheck on every node",
        )
    ]

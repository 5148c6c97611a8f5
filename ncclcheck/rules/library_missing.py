"""A package or library that this check needs is not installed, or the wrong copy is loaded.

Blames
    fact not-installed @ b distribution=vllm probes=vllm_engine
    => b

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading


def check(run: Run) -> list[Finding]:
    """Distributions that a probe needs and some hosts lack: one finding per distribution."""
    lacking: dict[str, list[str]] = {}
    for fact in run.of("not-installed"):
        lacking.setdefault(fact.get("distribution"), []).append(fact.host or "this node")
    return [
        Finding(
            "library-missing",
            f"{name} is not installed on {', '.join(hosts)}",
            Culprit(hosts=hosts),
            0.97,
            reading.quote(*(fact for fact in run.of("not-installed") if fact.get("distribution") == name)),
            f"pip install 'ncclcheck[{name}]' there, into the environment that ncclcheck runs from",
        )
        for name, hosts in lacking.items()
    ]

"""Other processes hold the GPUs: a check would disturb them, and its figures would be wrong.

Blames
    fact gpu-busy @ b index=1 processes=812
    => b

Blames
    log rank2.log: RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable
    => 2

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.units import bytes_text

EXPLAINS = ("rank_died_exception",)

READS = (
    Statement(
        r"CUDA-capable devices? (?:\(s\) )?(?:is|are) busy or unavailable",
        "the GPU of {who} is held by another process, or in exclusive mode",
        "nvidia-smi   # who holds it; nvidia-smi -q -d COMPUTE; nvidia-smi -c DEFAULT ends the exclusive mode",
        0.9,
    ),
)


def check(run: Run) -> list[Finding]:
    """GPUs with compute processes on them, per host."""
    result = []
    for host in dict.fromkeys(fact.host for fact in run.of("gpu-busy")):
        facts = [fact for fact in run.of("gpu-busy") if fact.host == host]
        used = ", ".join(f"GPU {fact.get('index')} ({bytes_text(fact.get('memory_used', 0))}, pid {fact.get('processes')})" for fact in facts)
        result.append(
            Finding(
                "gpu-busy",
                f"{host}: other processes hold {used}",
                Culprit(hosts=[host] if host else None, devices=[f"{host}:GPU {fact.get('index')}" for fact in facts]),
                0.95,
                reading.quote(*facts),
                "nvidia-smi   # end them or wait; or run with --force, which may disturb them and spoils the figures",
            )
        )
    return result

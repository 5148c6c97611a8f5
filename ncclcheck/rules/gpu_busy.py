"""Other processes hold the GPUs: a check would disturb them, and its figures would be wrong.

Blames
    fact gpu-busy @ b index=1 processes=812
    => b

Blames
    log rank2.log: RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable
    => 2

Blames
    log rank2.log: torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable
    => 2

Blames
    log a.log: node-a:311:405 [3] include/alloc.h:178 NCCL WARN Cuda failure 2 'out of memory'
    log a.log: node-a:311:405 [3] include/alloc.h:185 NCCL WARN Failed to CUDA calloc 6291456 bytes
    log a.log: |    3   N/A  N/A      9911      C   python3                         79012MiB |
    => node-a

Spares
    log a.log: |    3   N/A  N/A      9911      C   python3                         79012MiB |

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.units import bytes_text

EXPLAINS = ("rank_died_exception",)
LARGE = 1024  # MiB: more than a bare CUDA context

READS = (
    Statement(
        r"CUDA-capable device(?:s|\(s\))? (?:is/are|is|are) busy or unavailable",
        "the GPU of {who} is held by another process, or in exclusive mode",
        "nvidia-smi   # who holds it; nvidia-smi -q -d COMPUTE; nvidia-smi -c DEFAULT ends the exclusive mode",
        0.9,
    ),
    Clue("nccl-out-of-memory", r"NCCL WARN (?:(?:Cuda|CUDA) failure (?:2 )?'(?P<error>out of memory)'|Failed to CUDA \w+(?: async)? \d+ bytes)"),
)


def check(run: Run) -> list[Finding]:
    """GPUs with compute processes on them, per host, and processes that leave no room for NCCL's buffers."""
    result = _full(run)
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


def _full(run: Run) -> list[Finding]:
    failed = run.of("nccl-out-of-memory")
    holders = [fact for fact in run.of("gpu-process") if int(fact.get("memory", 0)) >= LARGE]
    if not failed or not holders:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in failed if fact.host))
    said = ", ".join(f"{fact.get('name')} (pid {fact.pid}, {fact.get('memory')} MiB on GPU {fact.get('gpu')})" for fact in holders[:4])
    title = f"no GPU memory is left for NCCL's buffers: {said}"
    remedy = "nvidia-smi   # end what holds the GPU (kill the left-over process), or leave room: --gpu-memory-utilization 0.8, a smaller batch"
    return [Finding("gpu-busy", title, Culprit(hosts=hosts or None), 0.7, reading.quote(*failed[:2], *holders[:2]), remedy)]

"""The engine's own all-reduce (vLLM, SGLang) cannot map the memory of its peers, which NCCL does not need.

Blames
    log rank1.log: Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:368 'invalid argument'
    => 1

Blames
    log out.log: Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:368 'invalid argument'
    log out.log: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    log out.log: Worker proc VllmWorker-1 died unexpectedly, shutting down executor.
    => 1

Spares
    log out.log: WARNING 03-02 10:11:12 custom_all_reduce.py:137] Custom allreduce is disabled because your platform lacks GPU P2P capability

Spares
    log out.log: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_killed", "rank_died_exception", "peer_reset", "rank_exited_early")

READS = (
    Clue("custom-all-reduce", r"custom_all_reduce\w*\.cu\w*:\d+ '(?P<error>[^']*)'"),
    Clue("expandable-segments", r"expandable_segments:(?P<on>True)"),
    Clue("worker-died", r"Worker proc VllmWorker-(?P<rank>\d+) died unexpectedly"),
)


def check(run: Run) -> list[Finding]:
    """The kernel's own error line; the rank is who printed it, else the worker that died with it."""
    failed = run.of("custom-all-reduce")
    if not failed:
        return []
    ranks = sorted({fact.rank for fact in failed if fact.rank is not None} or {fact.rank for fact in run.of("worker-died") if fact.rank is not None})
    segments = run.of("expandable-segments")
    why = ", because PyTorch's expandable segments cannot be shared" if segments else ""
    unset = "unset PYTORCH_CUDA_ALLOC_CONF   # no expandable_segments:True; or " if segments else ""
    return [
        Finding(
            "custom-allreduce",
            f"the engine's custom all-reduce could not map the memory of its peers ({failed[0].get('error')}){why}",
            run.blame(ranks),
            0.95,
            reading.quote(*failed[:3], *segments[:1]),
            f"{unset}--disable-custom-all-reduce   # NCCL does it then; nvidia-smi topo -p2p r shows which GPUs can reach each other",
        )
    ]

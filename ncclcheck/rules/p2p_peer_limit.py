"""A GPU can map the memory of at most 8 peers over PCIe: more GPUs than that in one process or host exhaust the mappings (error 711).

Blames
    log a.log: [2026-03-02 10:00:00] node-a:311:405 [0] allocator.cc:79 NCCL WARN Cuda failure 711 'peer mapping resources exhausted'
    => node-a

Blames
    log rank9.log: RuntimeError: CUDA driver error: CUDA_ERROR_TOO_MANY_PEERS
    => 9

Spares
    log a.log: node-a:311:405 [0] NCCL INFO Channel 00/0 : 0[0] -> 9[9] via SHM/direct/direct
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "p2p_broken")

REMEDY = (
    "one process per GPU (torchrun --nproc-per-node, not -g 10 in one process) and NCCL_CUMEM_ENABLE=0; at most 8 GPUs that are peers in one job "
    "(CUDA_VISIBLE_DEVICES), or NCCL_P2P_LEVEL=PIX (or NCCL_P2P_DISABLE=1) so that fewer peers are mapped"
)

READS = (
    Statement(r"peer mapping resources exhausted", "a GPU of {who} has more peers than it can map (8)", REMEDY, 0.95, "host"),
    Statement(r"CUDA_ERROR_TOO_MANY_PEERS|cudaErrorTooManyPeers", "a GPU of {who} has more peers than it can map (8)", REMEDY, 0.95),
)

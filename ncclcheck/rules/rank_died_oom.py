"""A rank ran out of GPU memory; the others wait for it or fail after it.

Blames
    log node-a/rank2.log: [rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of \
79.15 GiB of which 3.01 GiB is free.
    => 2

Blames
    log a.log: [rank1]: RuntimeError: CUDA error: out of memory
    => 1

Blames
    log a.log: (Worker_TP1 pid=7) ERROR RuntimeError: CUDA driver error: out of memory
    => 1

Blames
    log a.log: [rank0]: torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB.
    => 0

Blames
    log a.log: [rank5]: RuntimeError: CUDA out of memory. Tried to allocate 64.00 MiB (GPU 5; 39.59 GiB total capacity; 38.1 GiB already allocated)
    => 5

Blames
    log a.log: [rank1]: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
    => 1

Blames
    log a.log: [rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.
    log a.log: [rank2]: out of memory, retrying with batch 32
    => 1

Spares
    log a.log: WARNING: ran out of memory with exception: CUDA out of memory. Tried to allocate 2.00 GiB; skipping batch

Spares
    log a.log: WARNING 01-02 10:00:00 [x.py:3] lower the batch if you see out of memory
"""

from ncclcheck.evidence._reads import Clue, Statement

EXPLAINS = ("rank_died_exception", "rank_exited_early", "peer_reset")
_REMEDY = (
    "nvidia-smi   # who holds the rest of that GPU's memory; then a smaller batch or sequence, gradient checkpointing, or sharding over more GPUs; "
    "vLLM: a lower --gpu-memory-utilization or --max-model-len; fragmentation: export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)

READS = (
    Statement(
        r"^(?!.*(?:WARNING|skipping batch|[Rr]etrying|recover)).*(?:CUDA|HIP) out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)",
        "{who} ran out of GPU memory: {asked} more were asked for",
        _REMEDY,
        0.95,
    ),
    Statement(r"(?:CUDA|HIP) (?:driver |runtime )?error:? (?:\w+ )?out of memory", "{who} ran out of GPU memory", _REMEDY, 0.9),
    Clue("retried", r"\b(?:[Rr]etry(?:ing)?|[Tt]ry(?:ing)? again) (?:\w+ ){0,4}with |\b(?:[Ss]kipping|[Rr]educing) (?:\w+ ){0,3}batch\b"),
    Statement(r"CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED", "{who} had no GPU memory left for a library's workspace", _REMEDY, 0.75),
)

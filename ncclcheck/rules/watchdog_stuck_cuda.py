"""A CUDA or NCCL call blocks torch's watchdog itself, or a thread holds the GIL inside one.

That much torch's heartbeat monitor says. Which call it is, and why it does not return, only the stacks of that process show.

Blames
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:1746] [PG ID 0 PG GUID 0(default_pg) Rank 1] ProcessGroupNCCL's watchdog got stuck for 480 \
seconds without making progress in monitoring enqueued collectives.
    => -

Blames
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:1282] [PG 0 Rank 1] Heartbeat monitor timed out! Process will be terminated after dumping \
debug info. workMetaList_.size()=2
    => -

Spares
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:563] [Rank 1] Some NCCL operations have failed or timed out.
"""

from ncclcheck.evidence._reads import Statement

_REMEDY = (
    "py-spy dump --native --pid PID   # of that rank, before it is ended: which call blocks? then export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=1800 "
    "if the wait is legitimate, TORCH_NCCL_DUMP_ON_TIMEOUT=1 with TORCH_FR_BUFFER_SIZE=20000 for a flight recorder, NCCL_DEBUG=INFO, "
    "and look at dmesg -T | grep Xid; dispatch_batches: false where the data are streamed"
)

READS = (
    Statement(
        r"watchdog got stuck for (?P<waited>\d+) seconds",
        "torch's watchdog made no progress for {waited} s: a CUDA or NCCL call blocks it",
        _REMEDY,
        0.5,
        "nobody",
    ),
    Statement(
        r"Heartbeat monitor timed out! Process will be terminated",
        "torch's watchdog gave no heartbeat: a CUDA or NCCL call blocks it",
        _REMEDY,
        0.45,
        "nobody",
    ),
)

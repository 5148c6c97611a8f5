"""NCCL's shared host buffers made with cuMem (NCCL_CUMEM_HOST_ENABLE, default since 2.24) fail: containers, virtual machines, GPUs without P2P.

Blames
    log a.log: node-a:311:405 [0] transport/shm.cc:590 NCCL WARN Cuda failure 217 'peer access is not supported between these two devices'
    => node-a

Blames
    log a.log: node-a:311:405 [0] init.cc:80 NCCL WARN CUMEM Host is not supported prior to CUDA 12.2
    => node-a

Blames
    log a.log: node-a:311:405 [3] misc/shmutils.cc:94 NCCL WARN Error while attaching to shared memory segment /dev/shm/nccl-@? (size 0), error: No
    => node-a

Blames
    log a.log: #3  0x00007f in ncclCuMemHostEnable () from /usr/lib/libnccl.so.2
    => -

Spares
    log a.log: node-a:311:405 [0] misc/shmutils.cc:94 NCCL WARN Error while attaching to shared memory segment /dev/shm/nccl-a1B2c3 (size 65),

Spares
    log a.log: node-a:311:405 [0] transport/p2p.cc:310 NCCL WARN Cuda failure 217 'peer access is not supported between these two devices'
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "p2p_broken", "peer_reset")

REMEDY = (
    "export NCCL_CUMEM_HOST_ENABLE=0   # and a /dev/shm that is large enough (--shm-size=16g, --ipc=host), which is used instead; in containers the "
    "right for NUMA calls (--cap-add SYS_NICE); or a newer driver"
)

READS = (
    Statement(
        r"shm\.cc:\d+ NCCL WARN Cuda failure (?P<error>\d* ?'[^']*')", "NCCL's host buffers cannot be shared on {who}: {error}", REMEDY, 0.9, "host"
    ),
    Statement(
        r"attaching to shared memory segment (?:/dev/shm/nccl-\S{0,200} \(size 0\)|/dev/shm/nccl-(?![A-Za-z0-9]{6} ))",
        "a rank on {who} takes another's cuMem buffer for a file: cuMem host buffers work for some ranks and not for others",
        f"{REMEDY}; on every rank",
        0.78,
        "host",
    ),
    Statement(
        r"\bncclCuMemHostEnable\b",
        "a rank is stuck or ended where NCCL tries cuMem host buffers",
        f"{REMEDY} (r595); no preloaded libvgpu.so",
        0.65,
        "host",
    ),
    Statement(r"CUMEM Host is not supported prior to CUDA", "NCCL_CUMEM_HOST_ENABLE is set and the CUDA of {who} cannot do it", REMEDY, 0.85, "host"),
)

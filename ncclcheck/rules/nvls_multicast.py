"""NVLink SHARP (NVLS, multicast memory in the NVSwitches) cannot be set up.

Blames
    log a.log: node-a:311:405 [1] transport/nvls.cc:254 NCCL WARN Cuda failure 401 'the operation cannot be performed in the present state'
    => node-a

Blames
    log a.log: node-a:311:405 [1] transport/nvls.cc:209 NCCL WARN Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152 : CUDA error
    => node-a

Blames
    log rank2.log: RuntimeError: CUDA driver error: cuMulticastCreate failed with operation not supported
    log rank2.log: RuntimeError: CUDA driver error: invalid device ordinal in cuMulticastAddDevice
    => 2

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NVLS multicast support is not available on dev 0
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "peer_reset", "device_visibility")

REMEDY = (
    "export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1   # on every rank: works around it; then systemctl status nvidia-fabricmanager; "
    "nvidia-smi -q | grep -A2 Fabric; all 8 GPUs and /dev/nvidia-nvswitch* must be visible in the container; restart the fabric manager, reset the "
    "GPUs"
)

READS = (
    Statement(
        r"nvls\.cc:\d+ NCCL WARN (?:Cuda|CUDA) failure (?!(?:1 )?'invalid argument')(?P<error>\d* ?'[^']*')",
        "NVLink SHARP cannot be set up on {who}: {error}",
        REMEDY,
        0.85,
        "host",
    ),
    Statement(r"Failed to bind NVLink SHARP \(NVLS\) Multicast memory", "NVLink SHARP memory cannot be bound on {who}", REMEDY, 0.88, "host"),
    Statement(
        r"cuMulticast\w+.{0,40}(?:failed|error)|error.{0,60}\bcuMulticast\w+", "multicast memory over NVLink cannot be set up by {who}", REMEDY, 0.75
    ),
)

"""NVIDIA's fabric manager is off, still starting, or of another version than the driver: GPUs behind NVSwitches are not ready.

CUDA says it with error 802 (system not yet initialized). With the fabric manager restarted or updated under running GPUs, NVLink
SHARP fails at the first communicator with 'invalid argument'.

Blames
    log rank4.log: RuntimeError: CUDA error: system not yet initialized
    => 4

Blames
    log rank4.log: Unexpected error from cudaGetDeviceCount(). Error 802: CUDA_ERROR_SYSTEM_NOT_READY
    => 4

Blames
    log a.log: node-a:311:405 [2] transport/nvls.cc:244 NCCL WARN Cuda failure 1 'invalid argument'
    => node-a

Blames
    log a.log: Mar  3 10:00:00 node-a nv-fabricmanager: fabric manager interface version 535.54.03 don't match with driver version 535.104.05
    log a.log: Mar  3 10:00:00 node-a systemd[1]: nvidia-fabricmanager.service: Failed with result 'exit-code'.
    => node-a

Spares
    log a.log: node-a:311:405 [0] NCCL INFO NVLS multicast support is available on dev 0
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "nvls_multicast", "driver_not_working")

REMEDY = (
    "systemctl status nvidia-fabricmanager; nvidia-smi -q | grep -A2 Fabric   # State must be Completed; systemctl restart nvidia-fabricmanager "
    "with the driver's version, then nvidia-smi --gpu-reset or reboot; until then export NCCL_NVLS_ENABLE=0"
)

READS = (
    Statement(
        r"system not yet initialized|CUDA_ERROR_SYSTEM_NOT_READY",
        "the fabric manager of {who} has not set up its GPUs (CUDA error 802)",
        REMEDY,
        0.95,
    ),
    Statement(
        r"nvls\.cc:\d+ NCCL WARN Cuda failure (?:1 )?'invalid argument'",
        "NVLink SHARP cannot be set up on {who}: its fabric manager and its GPUs do not agree",
        REMEDY,
        0.82,
        "host",
    ),
    Statement(
        r"fabric ?manager.{0,80}version (?P<version>[\d.]+) don't match with driver version (?P<driver>[\d.]+)",
        "the fabric manager of {who} is {version} and its driver {driver}",
        "apt-get install nvidia-fabricmanager=<the driver's version> && systemctl restart nvidia-fabricmanager",
        0.95,
        "host",
    ),
    Statement(r"nvidia-fabricmanager\.service: Failed", "the fabric manager of {who} does not run", REMEDY, 0.92, "host"),
)

"""The NVIDIA driver is too old for the CUDA that the program was built with (errors 35, 222, 803, 804).

Blames
    log a.log: node-a:311:405 [0] init.cc:1582 NCCL WARN Cuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'
    => node-a

Blames
    log a.log: node-a:311:405 [0] enqueue.cc:802 NCCL WARN Cuda failure 'API call is not supported in the installed CUDA driver'
    => node-a

Blames
    log rank2.log: RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver
    => 2

Blames
    log rank2.log: RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW
    log rank2.log: Error 803: system has unsupported display driver / cuda driver combination
    => 2

Blames
    log rank2.log: CUDA error: the provided PTX was compiled with an unsupported toolchain.
    => 2

Blames
    log a.log: node-a:311:405 [0] misc/cudawrap.cc:120 NCCL WARN CUDA Driver version found is 11020. Minimum requirement is 11030
    => node-a

Blames
    log a.log: nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please update your driver to a newer version
    => -

Spares
    log a.log: node-a:311:405 [0] NCCL INFO cudaDriverVersion 12040
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception", "driver_not_working", "device_visibility", "gpu_arch_not_built")

REMEDY = (
    "nvidia-smi (driver and the newest CUDA it can do); python -c 'import torch; print(torch.version.cuda)'; install a newer NVIDIA driver on that "
    "host, or a torch built for its CUDA; in containers: remove /usr/local/cuda/compat from LD_LIBRARY_PATH (804), or use an older image"
)

READS = (
    Statement(
        r"CUDA driver version is insufficient for CUDA runtime version",
        "the NVIDIA driver of {who} is older than the CUDA runtime needs",
        REMEDY,
        0.95,
    ),
    Statement(
        r"not supported in the installed CUDA driver|cudaErrorCallRequiresNewerDriver|cudaErrorInsufficientDriver"
        r"|CUDA_ERROR_(?:SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED_ON_DEVICE|UNSUPPORTED_PTX_VERSION)",
        "the NVIDIA driver of {who} is older than its CUDA library needs",
        REMEDY,
        0.92,
    ),
    Statement(
        r"The NVIDIA driver on your system is too old \(found version (?P<version>\d+)\)",
        "the NVIDIA driver of {who} is too old ({version})",
        REMEDY,
        0.95,
    ),
    Statement(
        r"forward compatibility was attempted on non supported HW", "{who} loads CUDA's compatibility driver on a GPU that forbids it", REMEDY, 0.93
    ),
    Statement(r"unsupported display driver / cuda driver combination", "driver module and CUDA driver library of {who} do not fit", REMEDY, 0.93),
    Statement(
        r"PTX was compiled with an unsupported toolchain", "the NVIDIA driver of {who} is older than the toolkit that made its kernels", REMEDY, 0.9
    ),
    Statement(
        r"CUDA Driver version found is (?P<version>\d+)\. Minimum requirement is (?P<least>\d+)",
        "{who} has CUDA driver {version}; NCCL needs {least}",
        REMEDY,
        0.93,
    ),
    Statement(
        r"requirement error: unsatisfied condition: (?P<need>\S+),", "the NVIDIA driver is older than the image asks for ({need})", REMEDY, 0.93
    ),
)

"""The program holds no kernels for this GPU: torch, NCCL or an extension was built for other architectures, or is older than the GPU.

Blames
    log rank1.log: RuntimeError: CUDA error: no kernel image is available for execution on the device
    => 1

Blames
    log a.log: node-a:311:405 [0] enqueue.cc:58 NCCL WARN Cuda failure 500 'named symbol not found'
    => node-a

Blames
    log rank1.log: NVIDIA H100 PCIe with CUDA capability sm_90 is not compatible with the current PyTorch installation.
    => 1

Blames
    log rank1.log: nvcc fatal   : Unsupported gpu architecture 'compute_120'
    log rank1.log: ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'
    => 1

Blames
    log a.log: node-a:311:405 [0] graph/paths.cc:90 NCCL WARN Failed to find reverse path from remNode 0/61000 nlinks 4 to node 0/4e000
    => node-a

Blames
    log rank1.log: RuntimeError: CUDA error: invalid device function
    log rank1.log: hipErrorNoBinaryForGpu: Unable to find code object for all current devices!
    log a.log: node-a:311:405 [0] enqueue.cc:2210 NCCL WARN FP8 reduction support begins with sm90 capable devices.
    => 1

Spares
    log rank1.log: RuntimeError: CUDA error: an illegal memory access was encountered
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception",)

REMEDY = (
    "python -c 'import torch; print(torch.cuda.get_arch_list(), torch.cuda.get_device_capability())'; upgrade torch, NCCL (2.18 or newer for H100, "
    "2.25 for Blackwell) and extensions, or rebuild them: NVCC_GENCODE='-gencode=arch=compute_90,code=sm_90' make, TORCH_CUDA_ARCH_LIST=9.0"
)

READS = (
    Statement(r"no kernel image is available for execution", "{who} has no kernels for its GPU", REMEDY, 0.95),
    Statement(r"[Cc][Uu][Dd][Aa] (?:failure|error).{0,20}named symbol not found", "the NCCL of {who} was not built for its GPU", REMEDY, 0.85),
    Statement(
        r"with CUDA capability (?P<arch>sm_\w+) is not compatible with the current PyTorch",
        "torch has no kernels for {arch}, the GPU of {who}",
        REMEDY,
        0.93,
    ),
    Statement(r"Unsupported gpu architecture '(?P<arch>\w+)'", "the CUDA compiler of {who} is too old for {arch}", REMEDY, 0.9),
    Statement(r"Value '(?P<arch>sm_\w+)' is not defined for option 'gpu-name'", "the assembler (ptxas) of {who} is too old for {arch}", REMEDY, 0.9),
    Statement(
        r"hipErrorNoBinaryForGpu",
        "{who} has no kernels for its GPU",
        "rocminfo | grep gfx   # install the torch built for it; HSA_OVERRIDE_GFX_VERSION",
        0.93,
    ),
    Statement(r"(?:CUDA|HIP) error: invalid device function", "{who} has no kernels for its GPU", REMEDY, 0.85),
    Statement(
        r"FP8 reduction support begins with sm90", "the GPU of {who} cannot reduce FP8", "reduce in bfloat16, or use GPUs of sm_90 and newer", 0.9
    ),
    Statement(
        r"Failed to find reverse path from remNode",
        "the NCCL of {who} is too old to understand how the GPUs of this machine are connected",
        REMEDY,
        0.72,
    ),
)

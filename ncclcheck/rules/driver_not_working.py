"""An NVIDIA device is there and cannot be used: no driver, a driver that does not match its module, or a container without its devices.

Blames
    rank 0 @ a: init | gpu-unusable
    => 0

Blames
    log rank2.log: Failed to initialize NVML: Driver/library version mismatch
    => 2

Blames
    log rank2.log: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed
    log rank2.log: Failed to initialize NVML: Unknown Error
    => 2

Blames
    log rank2.log: RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver
    => 2

Blames
    log rank2.log: RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable
    => 2

Blames
    log rank2.log: ImportError: libcuda.so.1: cannot open shared object file: No such file or directory
    log rank2.log: nvidia-container-cli: initialization error: nvml error: driver not loaded
    => 2

Blames
    log a.log: node-a:311:405 [0] misc/nvmlwrap.cc:190 NCCL WARN nvmlInit_v2() failed: Driver Not Loaded
    => node-a

Blames
    log a.log: node-a:311:405 [0] misc/nvmlwrap.cc:190 NCCL WARN nvmlDeviceGetHandleByIndex(2) failed: Unknown Error
    log a.log: node-a:311:405 [0] misc/nvmlwrap.cc:110 NCCL WARN Failed to open libnvidia-ml.so.1
    log a.log: node-a:311:405 [0] misc/cudawrap.cc:110 NCCL WARN Failed to find CUDA library libcuda.so (NCCL_CUDA_PATH='') :
    => node-a

Blames
    log rank2.log: RuntimeError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!
    => 2

Blames
    fact driver-mismatch @ a client=560.35.03
    => a

Spares
    rank 0 @ a: init
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "device_visibility", "library_missing", "missing_rank_at_rendezvous")

REMEDY = (
    "nvidia-smi; cat /proc/driver/nvidia/version; ls -l /dev/nvidia*; dmesg -T | grep NVRM   # versions differ: rmmod nvidia_uvm nvidia and "
    "modprobe nvidia, or reboot; in a container: docker run --gpus all (NVIDIA_VISIBLE_DEVICES), restart it after systemctl daemon-reload"
)

READS = (
    Statement(r"Driver/library version mismatch", "the NVIDIA driver's module and library on {who} are of different versions", REMEDY, 0.95),
    Statement(r"couldn't communicate with the NVIDIA driver", "the NVIDIA driver of {who} does not answer", REMEDY, 0.95),
    Statement(r"Failed to initialize NVML: (?!Driver/library)(?P<error>\w[\w ]+)", "NVML cannot be used on {who}: {error}", REMEDY, 0.9),
    Statement(r"Found no NVIDIA driver on your system", "{who} finds no NVIDIA driver", REMEDY, 0.93),
    Statement(r"CUDA unknown error - this may be due to an incorrectly set up environment", "CUDA cannot be initialised on {who}", REMEDY, 0.85),
    Statement(
        r"(?P<library>libcuda\.so|libnvidia-ml\.so)[.\d]*: cannot open shared object file",
        "{who} has no {library}: the driver is not there",
        REMEDY,
        0.9,
    ),
    Statement(r"nvidia-container-cli: initialization error: (?P<error>.*)", "the container got no GPU: {error}", REMEDY, 0.93),
    Statement(r"nvmlInit\w*\(\) failed: (?P<error>.*)", "NVML cannot be used on {who}: {error}", REMEDY, 0.85),
    Statement(
        r"nvmlDeviceGet\w+\(.{0,60}\) failed: (?P<error>(?!GPU is lost|Not Supported)\w.*)", "NVML fails on {who}: {error}", REMEDY, 0.7, "host"
    ),
    Statement(
        r"Failed to (?:open (?P<library>libnvidia-ml\.so)|find CUDA library)", "{who} has no library of the NVIDIA driver", REMEDY, 0.8, "host"
    ),
    Statement(r"ProcessGroupNCCL is only supported with GPUs, no GPUs found", "{who} sees no GPU", REMEDY, 0.85),
)


def check(run: Run) -> list[Finding]:
    """Ranks that fell back to the CPU on a node with NVIDIA devices, and what the kernel's log says of the driver."""
    return [*_fell_back(run), *_mismatch(run)]


def _mismatch(run: Run) -> list[Finding]:
    facts = [*run.of("driver-mismatch"), *(fact for fact in run.of("nvml-error") if fact.get("problem") == "No devices were found")]
    if not facts:
        return []
    hosts = list(dict.fromkeys(fact.host for fact in facts if fact.host))
    where = ", ".join(hosts) or "the host"
    said = f"the NVIDIA library {facts[0].get('client')} on {where} does not fit the driver's module"
    title = said if facts[0].get("client") else f"the NVIDIA driver of {where} finds no device"
    return [Finding("driver-not-working", title, Culprit(hosts=hosts or None), 0.9, reading.quote(*facts[:4]), REMEDY)]


def _fell_back(run: Run) -> list[Finding]:
    facts = run.of("gpu-unusable")
    ranks = [fact.rank for fact in facts if fact.rank is not None]
    if not ranks:
        return []
    return [
        Finding(
            "driver-not-working",
            f"torch sees no usable GPU on {', '.join(run.hosts(ranks))} though an NVIDIA device is there: {len(ranks)} ranks ran on the CPU",
            run.blame(ranks),
            0.9,
            reading.quote(*facts),
            "nvidia-smi; python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'   # a CPU build of torch, or an old driver",
        )
    ]

"""What each GPU can hold, read and compute, by its maker's data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU. Rates are dense (without sparsity) and per second; `fp8` 0: no tensor core for it;
    `int8` 0: vLLM has no kernels for it there (from compute capability 10.0, Blackwell, its documentation says to use FP8).

    `step` and `layer` are what a decoding step costs however small the model is: seconds for the whole step (scheduling,
    sampling, in vLLM's processes), and for each layer (gaps between kernels of a CUDA graph; on a CPU eager calls).
    """

    name: str
    memory: int  # bytes, as nvidia-smi shows them
    bandwidth: float  # of its memory, bytes/s
    half: float  # FLOP/s in FP16, and BF16 where it has it, summed in FP32
    fp8: float
    int8: float
    inside: str  # what joins such GPUs within a node by default: a name of links.INSIDE
    source: str
    bf16: bool = True
    step: float = 1.0e-3
    layer: float = 10e-6

    @property
    def is_cpu(self) -> bool:
        """A rank without a GPU: only rehearsals run on these."""
        return self.name == "CPU"


def _gpu(name: str, mib: int, gb_s: float, half: float, fp8: float, int8: float, inside: str, source: str, bf16: bool = True) -> Gpu:
    return Gpu(name, mib * MIB, gb_s * 1e9, half * 1e12, fp8 * 1e12, int8 * 1e12, inside, source, bf16)


# The step of 1 ms: vLLM 0.24 with CUDA graphs took 1.34 ms for a step of an 8-layer model of negligible size on an H200.
GPUS = (
    _gpu("B200", 183359, 8000, 2250, 4500, 0, "nvlink5", "NVIDIA Blackwell data sheet (HGX B200)"),
    _gpu("H200", 143771, 4800, 989, 1979, 1979, "nvlink4", "NVIDIA H200 data sheet (SXM)"),
    _gpu("H100", 81559, 3350, 989, 1979, 1979, "nvlink4", "NVIDIA H100 data sheet (SXM)"),
    _gpu("H100-NVL", 95830, 3938, 835, 1671, 1671, "pcie5", "NVIDIA H100 NVL data sheet; a bridge joins pairs only"),
    _gpu("H100-PCIe", 81559, 2000, 756, 1513, 1513, "pcie5", "NVIDIA H100 data sheet (PCIe)"),
    _gpu("H20", 97871, 4000, 148, 296, 296, "nvlink4", "NVIDIA H20 data sheet"),
    _gpu("A100-80GB", 81920, 2039, 312, 0, 624, "nvlink3", "NVIDIA A100 data sheet (SXM 80 GB)"),
    _gpu("A100-40GB", 40960, 1555, 312, 0, 624, "nvlink3", "NVIDIA A100 data sheet (SXM 40 GB)"),
    _gpu("A100-PCIe", 81920, 1935, 312, 0, 624, "pcie4", "NVIDIA A100 data sheet (PCIe 80 GB)"),
    _gpu("L40S", 46068, 864, 362, 733, 733, "pcie4", "NVIDIA L40S data sheet"),
    _gpu("L4", 23034, 300, 121, 242, 242, "pcie4", "NVIDIA L4 data sheet (halved: it counts sparsity)"),
    _gpu("A10", 23028, 600, 125, 0, 250, "pcie4", "NVIDIA A10 data sheet"),
    _gpu("A6000", 49140, 768, 155, 0, 310, "pcie4", "NVIDIA Ampere GA102 white paper (RTX A6000)"),
    _gpu("T4", 15360, 320, 65, 0, 130, "pcie3-host", "NVIDIA T4 data sheet", bf16=False),
    _gpu("RTX-5090", 32607, 1792, 209, 419, 0, "pcie5-host", "NVIDIA RTX Blackwell white paper; no NVLink, no peer-to-peer"),
    _gpu("RTX-4090", 24564, 1008, 165, 330, 661, "pcie4-host", "NVIDIA Ada white paper; no NVLink, no peer-to-peer"),
    _gpu("RTX-3090", 24576, 936, 71, 0, 284, "pcie4-host", "NVIDIA Ampere GA102 white paper; peer-to-peer only over a bridge"),
    Gpu(
        "CPU", 8 * 2**30, 10e9, 5e10, 0.0, 0.0, "shared-memory", "a rough guess for one core: ranks without GPUs only rehearse", True, 0.6e-3, 0.45e-3
    ),
)
# A V100 is not among them: vLLM 0.23 and later need compute capability 7.5.
# What people and the driver call them, in its letters and digits, without NVIDIA: one product each, since a near one has another memory.
_CALLED = {
    "h10080gbhbm3": "H100", "h100sxm": "H100", "h200sxm": "H200", "a10080gbpcie": "A100-PCIe", "a100pcie80gb": "A100-PCIe", "a100": "A100-80GB",
    "a100sxm": "A100-80GB", "a100sxm480gb": "A100-80GB", "a100sxm440gb": "A100-40GB",
    "teslat4": "T4", "rtxa6000": "A6000",
    **{f"{prefix}{number}": f"RTX-{number}" for prefix in ("geforcertx", "") for number in (3090, 4090, 5090)},
}  # fmt: skip


def names() -> str:
    """The GPUs that are known, for a message."""
    return ", ".join(gpu.name for gpu in GPUS)


def find(name: str) -> Gpu:
    """A GPU by the short name of the table or by what the driver calls it (`NVIDIA H100 80GB HBM3`). Raises ValueError for an unknown one."""
    wanted = _key(name).removeprefix("nvidia")
    called = _CALLED.get(wanted)
    for gpu in GPUS:
        if _key(gpu.name) == wanted or gpu.name == called:
            return gpu
    raise ValueError(f"the GPU {name!r} is not known; choose the nearest of {names()}")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""Every question that is asked of NVML, by the name under which it is asked and recorded.

Numbers in the questions are those of nvml.h. Each is about the machine, one GPU, one of its NVLinks, or two GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """A question: NVML's function, what it takes after the devices, and how its answer is put into JSON."""

    function: str
    args: tuple[Any, ...] = ()
    shape: Callable[[Any], Any] = lambda answer: answer


def _fields(*names: str) -> Callable[[Any], dict[str, Any]]:
    return lambda answer: {name: getattr(answer, name) for name in names}


def _processes(answer: Any) -> list[dict[str, int | None]]:
    return [{"pid": process.pid, "memory": process.usedGpuMemory} for process in answer]


MACHINE = {
    "count": Ask("nvmlDeviceGetCount"),
    "driver": Ask("nvmlSystemGetDriverVersion"),
    "cuda_driver": Ask("nvmlSystemGetCudaDriverVersion_v2"),  # 13000 is 13.0
    "nvml": Ask("nvmlSystemGetNVMLVersion"),
}
GPU = {
    "name": Ask("nvmlDeviceGetName"),
    "uuid": Ask("nvmlDeviceGetUUID"),
    "pci_bus_id": Ask("nvmlDeviceGetPciInfo", shape=lambda pci: pci.busId),
    "compute_capability": Ask("nvmlDeviceGetCudaComputeCapability", shape=list),
    "memory": Ask("nvmlDeviceGetMemoryInfo", shape=_fields("total", "free", "used")),
    "processes": Ask("nvmlDeviceGetComputeRunningProcesses", shape=_processes),
    "utilization": Ask("nvmlDeviceGetUtilizationRates", shape=lambda rates: rates.gpu),  # percent
    "temperature": Ask("nvmlDeviceGetTemperature", (0,)),  # the GPU's sensor; degrees Celsius
    "temperature_slowdown": Ask("nvmlDeviceGetTemperatureThreshold", (1,)),
    "power": Ask("nvmlDeviceGetPowerUsage"),  # milliwatts
    "power_limit": Ask("nvmlDeviceGetPowerManagementLimit"),
    "power_limit_default": Ask("nvmlDeviceGetPowerManagementDefaultLimit"),
    "performance_state": Ask("nvmlDeviceGetPerformanceState"),  # 0 is the fastest
    "sm_clock": Ask("nvmlDeviceGetClockInfo", (1,)),  # MHz
    "sm_clock_max": Ask("nvmlDeviceGetMaxClockInfo", (1,)),
    "memory_clock": Ask("nvmlDeviceGetClockInfo", (2,)),
    "memory_clock_max": Ask("nvmlDeviceGetMaxClockInfo", (2,)),
    "throttle_reasons": Ask("nvmlDeviceGetCurrentClocksThrottleReasons"),  # bits
    "persistence": Ask("nvmlDeviceGetPersistenceMode"),
    "ecc_mode": Ask("nvmlDeviceGetEccMode", shape=list),  # current, pending
    "ecc_corrected": Ask("nvmlDeviceGetTotalEccErrors", (0, 0)),  # since the driver was loaded
    "ecc_uncorrected": Ask("nvmlDeviceGetTotalEccErrors", (1, 0)),
    "ecc_corrected_ever": Ask("nvmlDeviceGetTotalEccErrors", (0, 1)),
    "ecc_uncorrected_ever": Ask("nvmlDeviceGetTotalEccErrors", (1, 1)),
    "remapped_rows": Ask("nvmlDeviceGetRemappedRows", shape=list),  # correctable, uncorrectable, pending, failed
    "retired_pages_corrected": Ask("nvmlDeviceGetRetiredPages", (0,), len),
    "retired_pages_uncorrected": Ask("nvmlDeviceGetRetiredPages", (1,), len),
    "retired_pages_pending": Ask("nvmlDeviceGetRetiredPagesPendingStatus"),
    "recovery_action": Ask("field", (230,)),  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    "mig_mode": Ask("nvmlDeviceGetMigMode", shape=list),  # current, pending
    "compute_mode": Ask("nvmlDeviceGetComputeMode"),
    "pcie_generation": Ask("nvmlDeviceGetCurrPcieLinkGeneration"),
    "pcie_generation_max": Ask("nvmlDeviceGetMaxPcieLinkGeneration"),  # of this GPU in this slot
    "pcie_width": Ask("nvmlDeviceGetCurrPcieLinkWidth"),
    "pcie_width_max": Ask("nvmlDeviceGetMaxPcieLinkWidth"),
    "pcie_replays": Ask("nvmlDeviceGetPcieReplayCounter"),
    "fabric": Ask("fabric"),  # of NVSwitches: state, status, clique, health (bits)
    "nvlink_count": Ask("field", (91,)),  # NVML_FI_DEV_NVLINK_LINK_COUNT
}
LINK = {
    "nvlink_state": Ask("nvmlDeviceGetNvLinkState"),
    "nvlink_version": Ask("nvmlDeviceGetNvLinkVersion"),
    "nvlink_remote": Ask("nvmlDeviceGetNvLinkRemoteDeviceType"),  # 0 a GPU, 2 an NVSwitch
    "nvlink_speed": Ask("field of link", (164,)),  # NVML_FI_DEV_NVLINK_GET_SPEED; MB/s
    "nvlink_replays": Ask("nvmlDeviceGetNvLinkErrorCounter", (0,)),
    "nvlink_recoveries": Ask("nvmlDeviceGetNvLinkErrorCounter", (1,)),
    "nvlink_crc_errors": Ask("nvmlDeviceGetNvLinkErrorCounter", (2,)),
}
# The indices are numbers here: nvidia-ml-py's name for the first one holds a tuple, by a comma too many.
PAIR = {
    "common_ancestor": Ask("nvmlDeviceGetTopologyCommonAncestor"),
    "p2p_read": Ask("nvmlDeviceGetP2PStatus", (0,)),  # 0 is well
    "p2p_write": Ask("nvmlDeviceGetP2PStatus", (1,)),
    "p2p_nvlink": Ask("nvmlDeviceGetP2PStatus", (2,)),
}
QUESTIONS: Mapping[str, Ask] = {**MACHINE, **GPU, **LINK, **PAIR}

"""This node's GPUs as the driver sees them: memory, load, clocks, errors, links and who computes on them.

`python -m ncclcheck.collect.gpus` prints them as JSON; a driver that hangs then holds up a child only.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ncclcheck.collect import host, patient
from ncclcheck.collect.taken import Item, Missing, Taken

_BOUND = 8.0  # seconds for NVML, and for each report of nvidia-smi
_REPORTS = {"nvidia-smi.txt": (), "nvidia-smi-topo.txt": ("topo", "-m"), "nvidia-smi-q.txt": ("-q",)}
_MOST_LINKS = 18  # NVLinks of one GPU


def reports() -> Iterator[Item]:
    """`gpus.json` from NVML, and nvidia-smi's own reports; nothing where there is no NVIDIA GPU."""
    if not host.nvidia_present():
        return
    try:
        yield Taken("gpus.json", patient.output((sys.executable, "-m", __name__), _BOUND), "NVML")
    except OSError as error:  # TimeoutError is one
        yield Missing("GPUs (NVML)", str(error), "nvidia-smi   # does it answer? if not: dmesg | grep -i -e xid -e nvrm")
    program = shutil.which("nvidia-smi")
    for name, words in _REPORTS.items() if program else ():
        try:
            yield Taken(name, patient.output((str(program), *words), _BOUND), " ".join(("nvidia-smi", *words)))
        except OSError as error:
            yield Missing(" ".join(("nvidia-smi", *words)), str(error), "dmesg | grep -i -e xid -e nvrm")


def read() -> list[dict[str, Any]]:
    """Each GPU of the machine; None stands for what it does not tell. Memory in bytes, power in watts, clocks in MHz. Raises OSError."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from None
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from None
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    def told(ask: Callable[[Any], Any]) -> Any:
        try:
            return ask(handle)
        except nvml.NVMLError:
            return None

    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"index": index, "error": str(error)}  # fallen off the bus, for one
    memory, load = told(nvml.nvmlDeviceGetMemoryInfo), told(nvml.nvmlDeviceGetUtilizationRates)
    power = told(nvml.nvmlDeviceGetPowerUsage)
    return {
        "index": index,
        "name": told(nvml.nvmlDeviceGetName),
        "uuid": told(nvml.nvmlDeviceGetUUID),
        "pci_bus_id": told(lambda gpu: nvml.nvmlDeviceGetPciInfo(gpu).busId),
        "memory_total": memory and memory.total,
        "memory_used": memory and memory.used,
        "utilization_percent": load and load.gpu,
        "temperature": told(lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        "power": power and power / 1000,
        "sm_clock": told(lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "sm_clock_max": told(lambda gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "throttle_reasons": told(lambda gpu: hex(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))),
        "ecc_uncorrected": told(lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)),
        "remapped_rows": told(lambda gpu: list(nvml.nvmlDeviceGetRemappedRows(gpu))),
        "mig": told(lambda gpu: nvml.nvmlDeviceGetMigMode(gpu)[0]),
        "compute_mode": told(nvml.nvmlDeviceGetComputeMode),
        "pcie_generation": told(nvml.nvmlDeviceGetCurrPcieLinkGeneration),
        "pcie_width": told(nvml.nvmlDeviceGetCurrPcieLinkWidth),
        "nvlinks": [told(lambda gpu, link=link: nvml.nvmlDeviceGetNvLinkState(gpu, link)) for link in range(_MOST_LINKS)],  # type: ignore[misc]
        "processes": told(
            lambda gpu: [{"pid": process.pid, "memory": process.usedGpuMemory} for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
        ),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(read(), indent=1))
    except OSError as failure:
        sys.exit(str(failure))

"""This node's GPUs as the driver sees them: memory, load, clocks, errors, links and who computes on them.

`python -m ncclcheck.collect.gpus` prints them as JSON; a driver that hangs then holds up a child only.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from ncclcheck import interpreter
from ncclcheck.collect import host, patient
from ncclcheck.collect.nvml import Nvml, Refused
from ncclcheck.collect.taken import Item, Missing, Taken

_BOUND = 8.0  # seconds for NVML, and for each report of nvidia-smi
_REPORTS = {"nvidia-smi.txt": (), "nvidia-smi-topo.txt": ("topo", "-m"), "nvidia-smi-q.txt": ("-q",)}
_MOST_LINKS = 18  # NVLinks of one GPU


def reports() -> Iterator[Item]:
    """`gpus.json` from NVML, and nvidia-smi's own reports; nothing where there is no NVIDIA GPU."""
    if not host.nvidia_present():
        return
    try:
        yield Taken("gpus.json", patient.output(interpreter.module(__name__), _BOUND), "NVML")
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
    with Nvml.live() as nvml:
        return told(nvml)


def told(nvml: Nvml) -> list[dict[str, Any]]:
    """The same, of an NVML that is there. Raises OSError where it does not even count its GPUs."""
    try:
        return [_gpu(nvml, index) for index in range(nvml.ask("count"))]
    except Refused as error:
        raise OSError(f"NVML: {error}") from None


def _gpu(nvml: Nvml, index: int) -> dict[str, Any]:
    try:
        name = nvml.ask("name", index)
    except Refused as error:
        if error.lost or nvml.text("uuid", index) is None:
            return {"index": index, "error": str(error)}  # fallen off the bus, for one
        name = None
    memory, power, reasons = nvml.table("memory", index), nvml.number("power", index), nvml.number("throttle_reasons", index)
    mig = nvml.numbers("mig_mode", index)
    return {
        "index": index,
        "name": name,
        "uuid": nvml.text("uuid", index),
        "pci_bus_id": nvml.text("pci_bus_id", index),
        "memory_total": memory and memory["total"],
        "memory_used": memory and memory["used"],
        "utilization_percent": nvml.number("utilization", index),
        "temperature": nvml.number("temperature", index),
        "power": power and power / 1000,
        "sm_clock": nvml.number("sm_clock", index),
        "sm_clock_max": nvml.number("sm_clock_max", index),
        "throttle_reasons": None if reasons is None else hex(reasons),
        "ecc_uncorrected": nvml.number("ecc_uncorrected", index),
        "remapped_rows": nvml.numbers("remapped_rows", index),
        "mig": mig and mig[0],
        "compute_mode": nvml.number("compute_mode", index),
        "pcie_generation": nvml.number("pcie_generation", index),
        "pcie_width": nvml.number("pcie_width", index),
        "nvlinks": [nvml.number("nvlink_state", index, link) for link in range(_MOST_LINKS)],
        "processes": nvml.rows("processes", index),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(read(), indent=1))
    except OSError as failure:
        sys.exit(str(failure))

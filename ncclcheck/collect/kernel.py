"""What the kernel knows of this node's GPUs: its messages about them since boot, and how the PCIe bus and the IOMMU stand between devices.

The registers are those of the PCI Express base specification (ACS extended capability); only root sees them.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncclcheck.collect import host, kernel_log
from ncclcheck.secrets import mask
from ncclcheck.survey import Question

ABOUT = re.compile(r"NVRM|nvidia-nvswitch|\bS?Xid\b|IO_PAGE_FAULT|DMAR: \[DMA|AER: |PCIe Bus Error|nvidia[- ]peermem")
_MOST = 200  # messages
_LONGEST = 300  # characters of one
_NVIDIA, _GPUS = "0x10de", ("0x0300", "0x0302")  # PCI vendor, and classes: VGA and 3D controllers
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PORTS = {4: "root port", 5: "upstream switch port", 6: "downstream switch port"}
_EXPRESS, _ACS = 0x10, 0x0D  # capability, extended capability
_BITS = {"source_validation": 0x01, "request_redirect": 0x04, "completion_redirect": 0x08, "upstream_forwarding": 0x10, "direct_translated": 0x40}


def section(question: Question) -> dict[str, Any]:
    """`lines` (seconds since boot, text) with `uptime`, `gpus` and `cards` (RDMA) with their way up the bus, `iommu`, `virtual`, `unread`."""
    found, unread = {"nvidia": host.nvidia_present(), "uptime": time.clock_gettime(time.CLOCK_BOOTTIME)}, {}
    lines: list[dict[str, Any]] = []
    try:
        lines = [{"seconds": round(seconds, 1), "text": mask(text)[:_LONGEST]} for seconds, text in kernel_log.about(ABOUT, _MOST)]
    except OSError as error:
        unread["kernel log"] = f"/dev/kmsg: {error.strerror}"
    return {**found, "lines": lines, **bus(), "unread": unread}


def bus(root: Path = Path("/")) -> dict[str, Any]:
    """GPUs and RDMA cards, each with the bridges above it, the nearest first."""
    devices = sorted((root / "sys/bus/pci/devices").glob("*"))
    rdma = {path.resolve().name: path.parent.name for path in (root / "sys/class/infiniband").glob("*/device")}
    return {
        "gpus": [_device(path) for path in devices if _text(path / "vendor") == _NVIDIA and _text(path / "class").startswith(_GPUS)],
        "cards": [{"device": rdma[path.name], **_device(path)} for path in devices if path.name in rdma],
        "iommu": {
            "units": sorted(path.name for path in (root / "sys/class/iommu").glob("*")),
            "command_line": [word for word in _text(root / "proc/cmdline").split() if re.match(r"(?:intel_|amd_)?iommu[=.]|pci=.*acs", word)],
        },
        "virtual": bool(re.search(r"^flags\s*:.*\bhypervisor\b", _text(root / "proc/cpuinfo"), re.M)),
    }


def _device(path: Path) -> dict[str, Any]:
    real = path.resolve()
    bridges = [part for part in real.parents if _ADDRESS.fullmatch(part.name)]
    return {
        "pci": path.name,
        "iommu": _text(path / "iommu_group/type") or None,  # DMA or DMA-FQ: translated; identity: passed on
        "bridges": [{"pci": bridge.name, **registers(bridge / "config")} for bridge in bridges],
    }


def registers(config: Path) -> dict[str, Any]:
    """A bridge's `port` and its `acs` bits; None where it has none, or where only root sees them (`hidden`)."""
    try:
        data = config.read_bytes()
    except OSError:
        data = b""
    found: dict[str, Any] = {"port": None, "acs": None, "hidden": len(data) <= 256}
    for number, at in _capabilities(data):
        if number == _EXPRESS and at + 4 <= len(data):
            found["port"] = _PORTS.get(struct.unpack_from("<H", data, at + 2)[0] >> 4 & 0xF)
    for number, at in _extended(data):
        if number == _ACS and at + 8 <= len(data):
            (control,) = struct.unpack_from("<H", data, at + 6)
            found["acs"] = {name: bool(control & bit) for name, bit in _BITS.items()}
    return found


def _capabilities(data: bytes) -> Iterator[tuple[int, int]]:
    at, seen = (data[0x34] & 0xFC if len(data) > 0x34 else 0), set[int]()
    while 0x40 <= at < min(len(data), 256) - 1 and at not in seen:
        seen.add(at)
        yield data[at], at
        at = data[at + 1] & 0xFC


def _extended(data: bytes) -> Iterator[tuple[int, int]]:
    at, seen = 0x100, set[int]()
    while 0x100 <= at <= len(data) - 4 and at not in seen:
        seen.add(at)
        (head,) = struct.unpack_from("<I", data, at)
        if head in (0, 0xFFFFFFFF):
            return
        yield head & 0xFFFF, at
        at = head >> 20


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""

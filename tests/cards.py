"""RDMA cards as the kernel shows them below /sys, made of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NDR, HDR, SDR = "400 Gb/sec (4X NDR)", "200 Gb/sec (4X HDR)", "10 Gb/sec (4X SDR)"
ROCE = {0: ("fe80:0000:0000:0000:0ac0:ebff:fe00:0001", "IB/RoCE v1"), 1: ("fe80:0000:0000:0000:0ac0:ebff:fe00:0001", "RoCE v2")}
ROCE |= {2: ("0000:0000:0000:0000:0000:ffff:0a01:0203", "IB/RoCE v1"), 3: ("0000:0000:0000:0000:0000:ffff:0a01:0203", "RoCE v2")}
INFINIBAND = {0: ("fe80:0000:0000:0000:a088:c203:0000:0001", "IB/RoCE v1")}


def port(
    root: Path,
    device: str = "mlx5_0",
    *,
    number: int = 1,
    link: str = "InfiniBand",
    state: str = "4: ACTIVE",
    physical: str = "5: LinkUp",
    rate: str = NDR,
    gids: Mapping[int, tuple[str, str]] | None = None,
    interface: str = "",
    counters: Mapping[str, int] | None = None,
    kind: str = "MT4129",
    driver: str = "mlx5_core",
) -> None:
    """One port, with what belongs to its card."""
    card = root / "sys/class/infiniband" / device
    path = card / "ports" / str(number)
    table = (ROCE if link == "Ethernet" else INFINIBAND) if gids is None else gids
    files: dict[str, object] = {"link_layer": link, "state": state, "phys_state": physical, "rate": rate, "lid": "0x11", "sm_lid": "0x1"}
    for index in range(max(table, default=0) + 3):
        gid, kept = table.get(index, ("0000:0000:0000:0000:0000:0000:0000:0000", ""))
        files[f"gids/{index}"] = gid
        if kept:
            files |= {f"gid_attrs/types/{index}": kept, f"gid_attrs/ndevs/{index}": interface}
    files |= {f"counters/{name}": value for name, value in {"symbol_error": 0, "link_downed": 0, **(counters or {})}.items()}
    for name, value in files.items():
        _write(path / name, value)
    for name, value in {"hca_type": kind, "fw_ver": "28.39.1002", "board_id": "MT_0000000838"}.items():
        _write(card / name, value)
    pci = root / f"sys/devices/pci0000:00/0000:{1 + int('0' + ''.join(filter(str.isdigit, device.partition('_')[2]))):02x}:00.0"
    _write(pci / "numa_node", 0)
    module = root / "sys/bus/pci/drivers" / driver
    module.mkdir(parents=True, exist_ok=True)
    for link_path, to in ((card / "device", pci), (pci / "driver", module)):
        if not link_path.is_symlink():
            link_path.symlink_to(to)
    _write(root / "dev/infiniband" / f"uverbs_{device}", "")


def direct(root: Path, *, peermem: bool = True, open_driver: bool = False, kernel: str = "6.8.0-45-generic") -> None:
    """What GPUDirect RDMA rests on."""
    if peermem:
        (root / "sys/module/nvidia_peermem").mkdir(parents=True)
    kind = "NVIDIA UNIX Open Kernel Module for x86_64" if open_driver else "NVIDIA UNIX x86_64 Kernel Module"
    _write(root / "proc/driver/nvidia/version", f"NVRM version: {kind}  580.159.04  Release Build")
    _write(root / "proc/sys/kernel/osrelease", kernel)


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")

"""This node's RDMA ports (InfiniBand, RoCE), as the kernel shows them in /sys/class/infiniband, and what NCCL is told of them.

After the kernel's Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncclcheck.survey import Question

SETTINGS = ("NCCL_IB_HCA", "NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX", "NCCL_NET", "NCCL_NET_GDR_LEVEL", "NCCL_DMABUF_ENABLE")
COUNTERS = (
    *("link_downed", "link_error_recovery", "symbol_error", "port_rcv_errors", "port_rcv_remote_physical_errors"),
    *("port_xmit_discards", "local_link_integrity_errors", "excessive_buffer_overrun_errors"),
)
HARDWARE_COUNTERS = ("out_of_sequence", "packet_seq_err", "local_ack_timeout_err", "rnr_nak_retry_err", "roce_adp_retrans_to")
_EMPTY = ("0000:0000:0000:0000:0000:0000:0000:0000", "fe80:0000:0000:0000:0000:0000:0000:0000")
_MOST_GIDS = 256  # of one port that are looked at; cards have as many
_LONGEST = 200  # characters kept of a setting


def section(question: Question) -> dict[str, Any]:
    """See `read`."""
    return read({**question.environment, **os.environ})


def read(environ: Mapping[str, str], root: Path = Path("/"), home: str | None = None) -> dict[str, Any]:
    """`ports` (device, port, state, physical, rate, width, kind of link, GIDs, interface, counters), `settings` that NCCL gets, `direct`: what
    GPUDirect RDMA could rest on, `verbs`: whether programs may use the cards; `why` there are none.
    """
    folder = root / "sys/class/infiniband"
    ports = [_port(path) for path in sorted(folder.glob("*/ports/*"), key=lambda path: [*map(_natural, (path.parts[-3], path.name))])]
    found = {"ports": ports, "settings": settings(environ, root, home), "direct": _direct(root)}
    if not ports:
        return {**found, "why": "no InfiniBand device"}
    return {**found, "verbs": sorted(path.name for path in (root / "dev/infiniband").glob("uverbs*"))}


def settings(environ: Mapping[str, str], root: Path = Path("/"), home: str | None = None) -> dict[str, dict[str, str]]:
    """NCCL's settings about RDMA: `value`, and where it is `from`. The environment goes before the user's file, and that before the system's."""
    own = environ.get("NCCL_CONF_FILE") or f"{_home() if home is None else home}/.nccl.conf"
    found = {name: {"value": environ[name][:_LONGEST], "from": "environment"} for name in SETTINGS if name in environ}
    for path in (Path(own), root / "etc/nccl.conf"):
        for line in _text(path).splitlines():
            name, equals, value = line.partition("=")  # NCCL takes blanks as part of both
            if equals and name in SETTINGS:
                found.setdefault(name, {"value": value[:_LONGEST], "from": str(path)})
    return found


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user without a name, as in containers
        return os.environ.get("HOME", "/")


def _port(path: Path) -> dict[str, Any]:
    device = path.parent.parent
    rate = _text(path / "rate")
    match = re.match(r"(?P<rate>[\d.]+) Gb/sec(?: \((?P<width>\d+)X ?(?P<speed>\w*)\))?", rate)
    return {
        "device": device.name,
        "port": int(path.name) if path.name.isdecimal() else path.name,
        "kind": _text(device / "hca_type") or None,
        "firmware": _text(device / "fw_ver") or None,
        "board": _text(device / "board_id") or None,
        "pci": _linked(device / "device"),
        "driver": _linked(device / "device/driver"),
        "numa_node": _numa(device / "device/numa_node"),
        "link": _text(path / "link_layer") or None,  # InfiniBand or Ethernet
        "state": _word(_text(path / "state")),
        "physical": _word(_text(path / "phys_state")),
        "rate": float(match["rate"]) if match else None,  # Gb/s
        "width": int(match["width"]) if match and match["width"] else None,  # lanes
        "speed": (match["speed"] or None) if match else None,  # NDR, HDR, ...
        "lid": _number(_text(path / "lid")),
        "subnet_manager": _number(_text(path / "sm_lid")),
        "gids": _gids(path),
        "interfaces": sorted({name for number in path.glob("gid_attrs/ndevs/*") if (name := _text(number))})
        or sorted(entry.name for entry in (device / "device/net").glob("*")),
        "counters": {name: value for name in COUNTERS if (value := _number(_text(path / "counters" / name)))}
        | {name: value for name in HARDWARE_COUNTERS if (value := _number(_text(path / "hw_counters" / name)))},
    }


def link_losses(root: Path = Path("/")) -> dict[str, int]:
    """How often each port has lost its link; the names are as `mlx5_0:1`."""
    ports = ((path, _number(_text(path / "counters/link_downed"))) for path in (root / "sys/class/infiniband").glob("*/ports/*"))
    return {f"{path.parent.parent.name}:{path.name}": count for path, count in ports if count is not None}


def _gids(path: Path) -> list[dict[str, Any]]:
    """The port's addresses, without empty ones: index, GID, kind (IB/RoCE v1, RoCE v2), and the IPv4 address that is in it."""
    found = []
    for index in range(_MOST_GIDS):
        gid = _text(path / "gids" / str(index))
        if not gid:
            break
        if gid not in _EMPTY:
            found.append({"index": index, "gid": gid, "type": _text(path / "gid_attrs/types" / str(index)) or None, "address": _address(gid)})
    return found


def _address(gid: str) -> str | None:
    try:
        mapped = ipaddress.IPv6Address(gid).ipv4_mapped
    except ValueError:
        return None
    return None if mapped is None else str(mapped)


def _direct(root: Path) -> dict[str, Any]:
    """nvidia_peermem, or DMA-BUF: the latter needs the open kernel modules of the driver (and Linux 5.12)."""
    modules = [name for name in ("nvidia_peermem", "nv_peer_mem") if (root / "sys/module" / name).exists()]
    version = _text(root / "proc/driver/nvidia/version")
    release = _text(root / "proc/sys/kernel/osrelease")
    return {"modules": modules, "open_driver": "Open Kernel Module" in version, "kernel": release or None}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # absent; or the driver refuses, as for a GID that is not in use
        return ""


def _word(text: str) -> str | None:
    """`4: ACTIVE` -> `active`."""
    return text.partition(":")[2].strip().lower() or None


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _numa(path: Path) -> int | None:
    node = _number(_text(path))
    return None if node is None or node < 0 else node


def _linked(path: Path) -> str | None:
    try:
        return path.resolve(strict=True).name
    except (OSError, RuntimeError):
        return None


def _natural(text: str) -> list[tuple[int, str]]:
    """mlx5_10 after mlx5_9."""
    return [(int(part or -1) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]

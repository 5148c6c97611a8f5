"""Judges how the GPUs of a node reach each other: NVLink and peer access as the driver announces it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.survey import Node, degrades, note

REMEDY = (
    "nvidia-smi nvlink -s; nvidia-smi topo -m; nvidia-smi topo -p2p r; dmesg -T | grep -i xid   # probably hardware or the fabric manager; "
    "NCCL_P2P_DISABLE=1 works around it"
)


def judge(node: Node, pairs: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """GPUs that have NVLinks up and may not use each other's memory; how the others are joined, as a note."""
    wired = {gpu["index"] for gpu in gpus if (gpu.get("nvlinks") or {}).get("switched")}
    plain: dict[str, list[str]] = {}
    for pair in pairs:
        one, other = pair["gpus"]
        refused = {way: pair.get(way) for way in ("read", "write") if pair.get(way) not in (None, "ok")}
        if (pair.get("nvlink") or {one, other} <= wired) and refused:
            said = ", ".join(f"{way}: {reason}" for way, reason in refused.items())
            title = f"GPUs {one} and {other} of {node.host} are wired by NVLink and may not use each other's memory ({said})"
            devices = [f"{node.host}:GPU {gpu}" for gpu in (one, other)]
            yield degrades("p2p-broken", title, [node.host], REMEDY, evidence=[f"NVML: P2P {one}-{other}: {said}"], devices=devices, confidence=0.8)
        elif not pair.get("nvlink"):
            how = f"{pair.get('topology')}, {'with' if not refused else 'without'} peer access"
            plain.setdefault(how, []).append(f"{one}-{other}")
    for how, names in plain.items():
        few = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield note(f"GPUs of {node.host} without NVLink between them ({how}): {few}", [node.host], topology=how, pairs=names)

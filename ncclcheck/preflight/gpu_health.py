"""Judges whether a GPU's memory and fabric are whole.

After NVIDIA's "GPU memory error management": a row that could not be remapped means exchange of the GPU, one that waits for a reset does
not touch new work; the driver's own recovery action says when a GPU must not be used before a reset or reboot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.rules import fabric_manager
from ncclcheck.survey import Node, degrades, note, stop

REMEDY = (
    "dmesg -T | grep -i xid; nvidia-smi -q -d ECC,ROW_REMAPPER,PAGE_RETIREMENT; dcgmi diag -r 3   # take the node out; nvidia-smi --gpu-reset "
    "or reboot; have the GPU exchanged if it comes again"
)
MANY_CORRECTED = 10_000  # since the driver was loaded; NVIDIA gives no number, its own alarm is Xid 92
_WAITS = ("none", "drain P2P", "recover IMEX domain")  # recovery actions with which a GPU still computes


def judge(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    """Facts about one GPU that answers."""
    yield from _rows(node, gpu)
    yield from _errors(node, gpu)
    yield from _fabric(node, gpu)


def _rows(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    name, devices = f"GPU {gpu['index']} of {node.host}", [f"{node.host}:GPU {gpu['index']}"]
    rows = gpu.get("remapped") or {}
    told = [f"NVML: GPU {gpu['index']}: remapped rows {rows}"]
    if rows.get("failed"):
        title = f"{name} could not remap a broken row of its memory: it must be exchanged"
        yield stop("xid-hardware", title, [node.host], REMEDY, evidence=told, devices=devices)
    action = gpu.get("recovery")
    if action and action not in _WAITS and not action.startswith("unknown"):
        title = f"{name} had an error and must not be used before a {action}"
        evidence = [f"NVML: GPU {gpu['index']}: recovery action {action}"]
        yield stop("xid-hardware", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.9)
    elif action in _WAITS[1:]:
        title = f"{name} had an error on its links: the driver asks for this: {action}"
        evidence = [f"NVML: GPU {gpu['index']}: recovery action {action}"]
        yield degrades("xid-hardware", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.85)
    elif rows.get("pending"):
        title = f"{name} waits for a reset to remap a row of its memory"
        yield degrades("xid-hardware", title, [node.host], f"nvidia-smi --gpu-reset -i {gpu['index']}", evidence=told, devices=devices)
    if gpu.get("retired_pages_pending"):
        title = f"{name} waits for a reboot to retire a page of its memory"
        evidence = [f"NVML: GPU {gpu['index']}: page retirement pending"]
        yield degrades("xid-hardware", title, [node.host], f"nvidia-smi --gpu-reset -i {gpu['index']}", evidence=evidence, devices=devices)


def _errors(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    index, devices = gpu["index"], [f"{node.host}:GPU {gpu['index']}"]
    name = f"GPU {index} of {node.host}"
    if fresh := gpu.get("ecc_uncorrected"):
        title = f"the memory of {name} had {fresh} uncorrectable errors (ECC) since the driver was loaded; 0 are expected"
        evidence = [f"NVML: GPU {index}: volatile uncorrected ECC errors {fresh}"]
        yield degrades("xid-hardware", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.8)
    elif old := gpu.get("ecc_uncorrected_ever"):
        yield note(f"the memory of {name} had {old} uncorrectable errors (ECC) before the driver was loaded", [node.host], devices=devices)
    if (corrected := gpu.get("ecc_corrected") or 0) >= MANY_CORRECTED:
        title = f"the memory of {name} needed {corrected} corrections (ECC) since the driver was loaded; below {MANY_CORRECTED} is usual"
        evidence = [f"NVML: GPU {index}: volatile corrected ECC errors {corrected}"]
        yield degrades("xid-hardware", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.6)
    if gpu.get("ecc") is False:
        yield note(f"{name} runs with ECC off: errors of its memory are not noticed (nvidia-smi -i {index} -e 1)", [node.host], devices=devices)


def _fabric(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    """GPUs behind NVSwitches wait for the fabric manager (CUDA error 802 until it has registered them)."""
    fabric = gpu.get("fabric") or {}
    index, devices, state = gpu["index"], [f"{node.host}:GPU {gpu['index']}"], fabric.get("state")
    name, told = f"GPU {index} of {node.host}", [f"NVML: GPU {index}: fabric state {state}, status {fabric.get('status')}"]
    if state in ("not started", "in progress"):
        title = f"the NVSwitch fabric of {name} is not set up (state: {state}; completed is expected): CUDA answers with error 802"
        yield stop("fabric-manager", title, [node.host], fabric_manager.REMEDY, evidence=told, devices=devices, confidence=0.9)
    elif state == "completed" and fabric.get("status"):
        title = f"the NVSwitch fabric of {name} could not be set up: NVML error {fabric.get('status')}"
        yield stop("fabric-manager", title, [node.host], fabric_manager.REMEDY, evidence=told, devices=devices, confidence=0.9)
    for problem in ("bandwidth_degraded", "route_unhealthy"):
        if fabric.get(problem):
            title = f"NVML calls the NVSwitch fabric of {name} unwell: {problem.replace('_', ' ')}"
            yield degrades("slow-link", title, [node.host], fabric_manager.REMEDY, evidence=told, devices=devices, confidence=0.85)

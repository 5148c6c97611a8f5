"""Judges whether a GPU is as fast as it should be: heat, power, PCIe and NVLink.

An idle GPU lowers its clocks and the speed of its PCIe link, which is no fault: the number of PCIe lanes is compared always, the generation
only of a GPU that works at full state (P0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.survey import Node, degrades, note

REMEDY = "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER,CLOCK   # compare with its peers; look at fans, air and power"
PCIE = "nvidia-smi -q | grep -A12 'PCI$'; dmesg -T | grep -i -e aer -e pcie   # reseat the card or riser; look at the slot's setting in the BIOS"
NVLINK = "nvidia-smi nvlink -s -i {index}; nvidia-smi nvlink -e -i {index}; dmesg -T | grep -i xid   # reset the GPU; Xid 74 means hardware"
SLOWED = ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "hardware power brake")
POWER_SLACK = 0.98  # of the default power limit: below that it was lowered


def judge(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    """Facts about one GPU by itself."""
    yield from _throttled(node, gpu)
    yield from _pcie(node, gpu)


def compare(node: Node, ours: Sequence[Mapping[str, Any]], everyone: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """NVLinks that are down where others are up: of the GPU itself, or of the others of its kind on this node.

    Cards that are bridged in pairs leave some of their links unused, all alike; behind NVSwitches every link is used.
    """
    for gpu in ours:
        links = gpu.get("nvlinks") or {}
        most = max((other["nvlinks"]["up"] for other in everyone if other.get("name") == gpu.get("name") and other.get("nvlinks")), default=0)
        up, count, index = links.get("up", 0), links.get("count", 0), gpu["index"]
        devices, remedy = [f"{node.host}:GPU {index}"], NVLINK.replace("{index}", str(index))
        if up < most:
            title = f"{count - up} of {count} NVLinks of GPU {index} of {node.host} are down; {most} are up on others of its kind"
            evidence = [f"NVML: GPU {index}: {up} of {count} NVLinks up, down: {', '.join(map(str, links.get('down', ())))}"]
            yield degrades("slow-link", title, [node.host], remedy, evidence=evidence, devices=devices, confidence=0.9)
        elif up < count and up and links.get("switched"):
            yield note(f"{up} of {count} NVLinks of GPU {index} of {node.host} are up, as on the others here", [node.host], devices=devices)
        speeds = links.get("speeds") or {}
        slow = [link for link, speed in speeds.items() if speed < max(speeds.values())]
        if slow:
            told = f"{', '.join(slow)} of GPU {index} of {node.host} run at {speeds[slow[0]]} MB/s, the others at {max(speeds.values())} MB/s"
            title = f"NVLinks {told}"
            yield degrades("slow-link", title, [node.host], remedy, evidence=[f"NVML: {told}"], devices=devices, confidence=0.85)
        counted = {kind: links.get(kind) for kind in ("replays", "recoveries", "crc_errors") if links.get(kind)}
        if counted:
            said = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counted.items())
            yield note(f"the NVLinks of GPU {index} of {node.host} count {said} since the driver was loaded", [node.host], devices=devices)


def _throttled(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    index, devices, reasons = gpu["index"], [f"{node.host}:GPU {gpu['index']}"], gpu.get("throttles") or []
    heat = f"{gpu.get('temperature')} °C (it slows down at {gpu.get('temperature_slowdown')} °C)"
    slowed = [reason for reason in reasons if reason in SLOWED]
    if "software power cap" in reasons and "idle" not in reasons:
        slowed.append("software power cap")
    if slowed:
        title = f"GPU {index} of {node.host} is throttled before any work: {', '.join(slowed)}; {heat}"
        evidence = [f"NVML: GPU {index}: throttle reasons: {', '.join(reasons)}"]
        yield degrades("slow-gpu", title, [node.host], REMEDY, evidence=evidence, devices=devices, confidence=0.85)
    limit, default = gpu.get("power_limit"), gpu.get("power_limit_default")
    if limit and default and limit < POWER_SLACK * default:
        title = f"the power limit of GPU {index} of {node.host} is {limit:g} W; its default is {default:g} W"
        evidence = [f"NVML: GPU {index}: power limit {limit:g} W, default {default:g} W"]
        yield degrades("slow-gpu", title, [node.host], f"nvidia-smi -i {index} -pl {default:g}", evidence=evidence, devices=devices, confidence=0.85)
    if "application clocks" in reasons:
        yield note(f"the clocks of GPU {index} of {node.host} are set by hand (nvidia-smi -i {index} -rac; -rgc)", [node.host], devices=devices)


def _pcie(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    index, devices = gpu["index"], [f"{node.host}:GPU {gpu['index']}"]
    width, most = gpu.get("pcie_width"), gpu.get("pcie_width_max")
    if width and most and width < most:
        title = f"GPU {index} of {node.host} uses {width} of {most} PCIe lanes"
        yield degrades("slow-gpu", title, [node.host], PCIE, evidence=[f"NVML: GPU {index}: PCIe width {width}, maximum {most}"], devices=devices)
    generation, newest = gpu.get("pcie_generation"), gpu.get("pcie_generation_max")
    if generation and newest and generation < newest and gpu.get("performance_state") == 0:
        title = f"the PCIe link of GPU {index} of {node.host} runs at generation {generation} of {newest}"
        if "idle" in (gpu.get("throttles") or ()):
            yield note(f"{title} while the GPU is idle; look again under load", [node.host], devices=devices)
        else:
            evidence = [f"NVML: GPU {index}: PCIe generation {generation}, maximum {newest}, state P0"]
            yield degrades("slow-gpu", title, [node.host], PCIE, evidence=evidence, devices=devices, confidence=0.8)

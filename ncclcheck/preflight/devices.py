"""Judges a node's GPUs before a launch: does every rank get one, is it free, whole, and as fast as its equals?

A GPU that no rank of this launch will take is worth a note at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.preflight import gpu_health, gpu_pairs, gpu_speed, kernel, peer_copy, taken
from ncclcheck.rules import device_visibility, driver_not_working
from ncclcheck.survey import Job, Node, Section, degrades, note, stop, unread
from ncclcheck.units import bytes_text

SETTING = "CUDA_VISIBLE_DEVICES"
NOBODY = 0.05  # of a GPU's memory: what driver and firmware keep of it stays below that
_MPS = "nvidia-cuda-mps-server"


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """Facts about one node's GPUs, what the kernel says of them among these; one `stop` for each reason why a launch would fail there."""
    for name, area in (("kernel", kernel), ("peer_copy", peer_copy)):
        if name in node.sections:
            yield from area.judge(node, job)
    section = node.read("devices")
    if section is None:
        yield unread("GPUs", node.why("devices"), [node.host], needed=True)
        return
    gpus: Sequence[Mapping[str, Any]] = section.get("gpus", ())
    chosen = set(taken.gpus(section, job))
    ours = [gpu for gpu in gpus if gpu["index"] in chosen]
    yield from _visible(node, job, section, gpus)
    yield from _lost(node, gpus, chosen)
    well = [gpu for gpu in ours if "error" not in gpu]
    for gpu in (gpu for gpu in gpus if gpu["index"] in set(section.get("visible", ())) - chosen and "error" not in gpu):
        for fact in (*_busy(node, gpu), *gpu_health.judge(node, gpu)):
            yield note(f"{fact.get('title')}; no rank uses it", [node.host], **where(node, gpu))
    for gpu in well:
        yield from _busy(node, gpu)
        yield from _mode(node, job, gpu, len(ours))
        yield from gpu_health.judge(node, gpu)
        yield from gpu_speed.judge(node, gpu)
    yield from gpu_speed.compare(node, well, [gpu for gpu in gpus if "error" not in gpu])
    yield from gpu_pairs.judge(node, [pair for pair in section.get("pairs", ()) if set(pair["gpus"]) <= chosen], well)
    if len(names := {str(gpu.get("name")) for gpu in well}) > 1:
        yield note(f"GPUs of different models are used together: {', '.join(sorted(names))}; the slowest sets the pace", [node.host])
    for asked, reason in dict(section.get("unread", {})).items():
        yield unread(f"NVML {asked}", str(reason), [node.host])


def where(node: Node, gpu: Mapping[str, Any]) -> dict[str, list[str]]:
    """The field that names a GPU as the culprit."""
    return {"devices": [f"{node.host}:GPU {gpu['index']}"]}


def named(setting: str | None) -> int | None:
    """How many GPUs CUDA_VISIBLE_DEVICES names, each once; None where it is not set. As CUDA reads it, an empty entry or -1 ends the list."""
    if setting is None:
        return None
    words: list[str] = []
    for word in (part.strip() for part in setting.split(",")):
        if not word or word.startswith("-") or word == "NoDevFiles":
            break
        words.append(word)
    return len(set(words))


def _visible(node: Node, job: Job, section: Section, gpus: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """Whether each rank gets a GPU. A setting that names none asks for the CPU, which is no fault."""
    setting, wanted = section.get("setting"), job.nproc_per_node
    count, there = named(setting), len(section.get("visible", ()))
    told = [f"{SETTING}={setting}"] if setting is not None else []
    if count == 0:
        if gpus or section.get("nvidia"):
            yield note(f"{SETTING} is empty: ranks on {node.host} run on the CPU, though an NVIDIA device is there", [node.host])
        return
    if section.get("nvidia") and not gpus:
        title = f"{node.host} has an NVIDIA device and its driver does not work: {section.get('why')}"
        yield stop("driver-not-working", title, [node.host], driver_not_working.REMEDY, evidence=[f"NVML: {section.get('why')}"])
        return
    if count is not None and count < wanted:
        title = f"{SETTING} names {_gpus(count)} and {wanted} ranks are started on {node.host}: {_without(count, wanted)}"
        yield stop("device-visibility", title, [node.host], device_visibility.REMEDY, evidence=told)
    elif taken.parts(section):
        yield note(f"{SETTING} on {node.host} names parts of GPUs (MIG); of which GPUs is not looked at, nor how those are", [node.host])
    elif gpus and there < wanted:
        seen = (
            f"{node.host} has {_gpus(len(gpus))}"
            if setting is None
            else f"{SETTING}={setting} leaves {there} of the {_gpus(len(gpus))} of {node.host}"
        )
        title = f"{seen} and {wanted} ranks are started there: {_without(there, wanted)}"
        evidence = [*told, f"NVML: {_gpus(len(gpus))}: {', '.join(str(gpu['index']) for gpu in gpus)}"]
        yield stop("device-visibility", title, [node.host], device_visibility.REMEDY, evidence=evidence)


def _lost(node: Node, gpus: Sequence[Mapping[str, Any]], chosen: set[int]) -> Iterator[Fact]:
    for gpu in gpus:
        if "error" not in gpu:
            continue
        title = f"GPU {gpu['index']} of {node.host} cannot be read: {gpu['error']}"
        if gpu["index"] in chosen:
            sure = 0.95 if gpu.get("lost") else 0.85
            yield stop("xid-hardware", title, [node.host], gpu_health.REMEDY, evidence=[f"NVML: {gpu['error']}"], confidence=sure, **where(node, gpu))
        else:
            yield note(f"{title}; no rank uses it", [node.host], **where(node, gpu))


def _busy(node: Node, gpu: Mapping[str, Any]) -> Iterator[Fact]:
    holders = [holder for holder in gpu.get("holders") or () if _MPS not in str(holder.get("command"))]
    memory = gpu.get("memory") or {}
    used, total = memory.get("used") or 0, memory.get("total") or 0
    if holders:
        title = f"GPU {gpu['index']} of {node.host} is held by {', '.join(map(_who, holders[:4]))}: {bytes_text(used)} of {bytes_text(total)} in use"
        remedy = f"ps -fp {','.join(str(holder.get('pid')) for holder in holders)}; kill {' '.join(str(holder.get('pid')) for holder in holders)}"
        yield stop(
            "gpu-busy",
            title,
            [node.host],
            f"{remedy}   # or wait for its end; ncclcheck probe --force goes on all the same",
            evidence=[f"NVML: GPU {gpu['index']}: pid {holder.get('pid')}, {_amount(holder)}, {holder.get('command')}" for holder in holders[:8]],
            **where(node, gpu),
        )
    elif total and used > NOBODY * total:
        title = f"{bytes_text(used)} of the {bytes_text(total)} of GPU {gpu['index']} of {node.host} are in use, by nobody who can be seen from here"
        yield degrades(
            "gpu-busy",
            title,
            [node.host],
            "nvidia-smi   # on the host: a container does not see the processes of others; fuser -v /dev/nvidia*",
            evidence=[f"NVML: GPU {gpu['index']}: used {used} of {total} bytes, no process"],
            confidence=0.75,
            **where(node, gpu),
        )


def _mode(node: Node, job: Job, gpu: Mapping[str, Any], visible: int) -> Iterator[Fact]:
    """MIG and compute modes; where MPS is in front of the GPU, exclusive mode is as it should be."""
    index, host = gpu["index"], node.host
    if gpu.get("mig") and job.nnodes * job.nproc_per_node > 1:
        title = f"GPU {index} of {host} is divided (MIG): CUDA shows a process one part only, and NCCL does not join parts of one GPU"
        yield stop("device-visibility", title, [host], f"nvidia-smi -i {index} -mig 0", evidence=[f"NVML: GPU {index}: MIG on"], **where(node, gpu))
    mode = gpu.get("compute_mode")
    shared = job.nproc_per_node > visible
    mps = any(_MPS in str(holder.get("command")) for holder in gpu.get("holders") or ())
    if mode == "prohibited" or (shared and not mps and str(mode).startswith("exclusive")):
        why = "no program may use it" if mode == "prohibited" else f"one process may use it, and {job.nproc_per_node} ranks share {_gpus(visible)}"
        title = f"GPU {index} of {host} is in compute mode {mode}: {why}"
        yield stop("gpu-busy", title, [host], f"nvidia-smi -i {index} -c DEFAULT", evidence=[f"NVML: GPU {index}: {mode}"], **where(node, gpu))
    elif str(mode).startswith("exclusive") and not mps:
        yield note(f"GPU {index} of {host} is in compute mode {mode}: a second process on it fails", [host], **where(node, gpu))


def _who(holder: Mapping[str, Any]) -> str:
    command, user = holder.get("command"), holder.get("user")
    known = f" ({user}: {command})" if command else ", which is not seen from here"
    return f"pid {holder.get('pid')}{known}"


def _amount(holder: Mapping[str, Any]) -> str:
    memory = holder.get("memory")
    return "memory unknown" if memory is None else bytes_text(memory)


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def _without(first: int, end: int) -> str:
    return f"local rank {first} has none" if end - first == 1 else f"local ranks {first} to {end - 1} have none"

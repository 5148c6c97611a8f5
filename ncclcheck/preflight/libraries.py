"""Judges the libraries of a node before a launch: the NCCL that is loaded, whether CUDA fits driver and GPU, and what slips in between.

The least driver of each CUDA release is that of NVIDIA's "CUDA compatibility" (minor version compatibility); which CUDA first and last
builds code for a GPU is that of the release notes of the CUDA toolkit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.preflight import taken
from ncclcheck.rules import driver_cuda_mismatch, driver_not_working, gpu_arch_not_built, nccl_version_mismatch
from ncclcheck.rules.library_missing import COPY
from ncclcheck.safe_text import word
from ncclcheck.survey import Job, Node, Section, degrades, note, stop, unread

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}  # CUDA's major release -> the driver's
FIRST_CUDA = {8: (11, 0), 9: (11, 8), 10: (12, 8), 12: (12, 8)}  # by major compute capability: code for 8.0 runs on 8.6 and 8.9 as well
LAST_WITHOUT_TURING = 12  # CUDA 13 builds for compute capability 7.5 and newer
_UNSET = "unset LD_PRELOAD   # and look into /etc/ld.so.preload; LD_LIBRARY_PATH"
_INTERPOSER = (
    "export CUDA_DISABLE_CONTROL=true (HAMi), or start without it: unset LD_PRELOAD, no {library} in /etc/ld.so.preload; else NCCL_CUMEM_ENABLE=0"
)


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """Facts about one node's libraries."""
    section = node.read("libraries")
    if section is None:
        yield unread("libraries", node.why("libraries"), [node.host])
        return
    devices = node.read("devices") or {}
    ours, visible = taken.gpus(devices, job), set(devices.get("visible", ()))
    gpus = [gpu for gpu in devices.get("gpus", ()) if gpu["index"] in visible]
    yield from _cuda(node, section, devices, [gpu for gpu in gpus if gpu["index"] in ours], [gpu for gpu in gpus if gpu["index"] not in ours])
    yield from _nccl(node, section)
    yield from _plugin(node, section)
    yield from _between(node, section)
    yield from _builds(node, section)
    for what, why in dict(section.get("unread", {})).items():
        yield unread(str(what), str(why), [node.host])


def _cuda(node: Node, section: Section, devices: Section, gpus: Sequence[Mapping[str, Any]], spare: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    """`gpus`: those that ranks take; `spare`: those that they see besides."""
    torch = section.get("torch")
    if torch is None:
        yield note(f"torch is not installed on {node.host}", [node.host])
        return
    cuda = _numbers(torch.get("cuda"))
    built = f"torch {torch.get('version')}" + (f" (CUDA {torch['cuda']})" if cuda else "")
    told = [f"{torch.get('folder')}/version.py: {torch.get('version')}, cuda {torch.get('cuda')}"]
    if not cuda:
        if gpus:
            title = f"{built} on {node.host} is built for the CPU, and {len(gpus)} GPUs are there"
            yield stop("driver-not-working", title, [node.host], driver_not_working.REMEDY, evidence=told)
        return
    yield from _driver(node, section, devices, built, cuda, told)
    for gpu in {str(gpu.get("compute_capability")): gpu for gpu in (*spare, *gpus) if gpu.get("compute_capability")}.values():
        capability = _numbers(gpu["compute_capability"])
        first = FIRST_CUDA.get(capability[0]) if capability else None
        old = cuda[0] > LAST_WITHOUT_TURING and capability < (7, 5)
        if old or (first and cuda < first):
            needs = "7.5 or newer" if old else f"CUDA {first[0]}.{first[1]} or newer" if first else ""
            title = f"{built} on {node.host} holds no code for {gpu.get('name')} (compute capability {gpu['compute_capability']}); {needs} is needed"
            if gpu in spare:
                yield note(f"{title}; no rank uses it", [node.host])
                continue
            evidence = [*told, f"NVML: GPU {gpu['index']}: {gpu.get('name')}, compute capability {gpu['compute_capability']}"]
            yield stop("gpu-arch-not-built", title, [node.host], gpu_arch_not_built.REMEDY, evidence=evidence, confidence=0.9)


def _driver(node: Node, section: Section, devices: Section, built: str, cuda: tuple[int, ...], told: list[str]) -> Iterator[Fact]:
    """Whether the driver can run this CUDA; a newer minor release is no fault, as CUDA is compatible within a major one."""
    driver, able, libcuda = devices.get("driver"), _numbers(devices.get("cuda")), section.get("libcuda") or {}
    least = LEAST_DRIVER.get(cuda[0])
    told = [*told, f"NVML: driver {driver}, CUDA {devices.get('cuda')}"]
    short = (able and able[0] < cuda[0]) or (driver and least and _numbers(driver)[:1] < (least,))
    if short and libcuda.get("compat"):
        yield note(
            f"the driver {driver} of {node.host} is older than {built} needs; {libcuda['path']} (forward compatibility) stands in", [node.host]
        )
    elif short:
        wants = f"; {least} or newer is needed" if least else ""
        title = f"the NVIDIA driver {driver} of {node.host} is too old for {built}{wants}"
        yield stop("driver-cuda-mismatch", title, [node.host], driver_cuda_mismatch.REMEDY, evidence=told)
    elif driver and libcuda.get("version") and libcuda["version"] != driver:
        title = f"{node.host} loads libcuda {libcuda['version']} ({libcuda['path']}) and the driver's module is {driver}"
        evidence = [f"{libcuda['why']}: {libcuda['path']}", told[-1]]
        if libcuda.get("compat"):
            yield note(f"{title}; it is one of CUDA's compatibility package, which only data-centre GPUs may use", [node.host])
        else:
            yield stop("driver-cuda-mismatch", title, [node.host], driver_cuda_mismatch.REMEDY, evidence=evidence, confidence=0.85)


def _nccl(node: Node, section: Section) -> Iterator[Fact]:
    loaded, own = section.get("nccl"), section.get("own_nccl")
    if section.get("needs_nccl") and not loaded:
        title = f"torch on {node.host} needs libnccl.so.2, and the loader finds none"
        remedy = f"{COPY}pip install nvidia-nccl-cu{(_numbers((section.get('torch') or {}).get('cuda')) or (12,))[0]}"
        yield stop("library-missing", title, [node.host], remedy, evidence=["libtorch_cuda.so: needs libnccl.so.2"])
    if missing := section.get("missing"):
        title = f"the NCCL that {node.host} loads ({_which(loaded)}) lacks {', '.join(missing[:3])}, which torch takes from it"
        yield stop("library-missing", title, [node.host], f"{COPY}{_UNSET}", evidence=[_found(loaded), f"lacks: {', '.join(missing)}"])
    elif loaded and own and loaded["path"] != own["path"] and loaded.get("version") and own.get("version") and loaded["version"] != own["version"]:
        title = f"{node.host} loads {_which(loaded)} by {loaded['why']}, in place of torch's {own['version']}"
        evidence = [_found(loaded), _found(own)]
        yield degrades("nccl-version-mismatch", title, [node.host], f"{_UNSET}; {nccl_version_mismatch.REMEDY}", evidence=evidence, confidence=0.85)
    elif loaded and own and loaded["path"] != own["path"]:
        yield note(f"{node.host} loads {_which(loaded)} by {loaded['why']}, not the one of torch's wheels", [node.host])
    for other in section.get("others", ()):
        vllm = other["why"] == "VLLM_NCCL_SO_PATH"
        if vllm and not other.get("exists"):
            title = f"VLLM_NCCL_SO_PATH on {node.host} names {other['path']}, which is not there"
            yield stop("library-missing", title, [node.host], "unset VLLM_NCCL_SO_PATH", evidence=[f"VLLM_NCCL_SO_PATH={other['path']}"])
        elif vllm and loaded and other.get("version") and other["version"] != loaded.get("version"):
            title = f"on {node.host} vLLM takes {_which(other)} and torch {_which(loaded)}: two releases in one process"
            evidence = [f"VLLM_NCCL_SO_PATH={other['path']}", _found(loaded)]
            yield degrades("nccl-version-mismatch", title, [node.host], "unset VLLM_NCCL_SO_PATH", evidence=evidence, confidence=0.7)
        elif not vllm and (loaded or section.get("static_nccl")):
            yield note(f"a second NCCL is on {node.host}: {_which(other)} by {other['why']}; torch does not load it", [node.host])


def _plugin(node: Node, section: Section) -> Iterator[Fact]:
    plugin = section.get("plugin") or {}
    if plugin.get("path"):
        yield note(f"NCCL on {node.host} takes the network plugin {plugin['path']}", [node.host])
    elif plugin.get("asked") and plugin.get("tried"):
        tried = " nor ".join(plugin["tried"][:4])
        title = f"NCCL_NET_PLUGIN={plugin['asked']} on {node.host}, and the loader finds neither {tried}: NCCL goes without it"
        remedy = "unset NCCL_NET_PLUGIN   # or add the plugin's folder: export LD_LIBRARY_PATH=<its folder>:$LD_LIBRARY_PATH"
        yield degrades("net-plugin", title, [node.host], remedy, evidence=[f"NCCL_NET_PLUGIN={plugin['asked']}"], confidence=0.85)


def _between(node: Node, section: Section) -> Iterator[Fact]:
    """What is loaded before everything else, and can change what any library does."""
    preloaded: Sequence[Mapping[str, Any]] = section.get("preloaded", ())
    interposers = set(section.get("interposers", ()))
    for entry in preloaded:
        if entry["name"] in interposers:
            title = f"a library that shares or limits GPUs is loaded into every process of {node.host}: {entry['asked']}, by {entry['why']}"
            remedy = _INTERPOSER.replace("{library}", word(entry["name"]))
            evidence = [f"{entry['why']}: {entry['asked']}"]
            yield degrades("gpu-interposer-library", title, [node.host], remedy, evidence=evidence, confidence=0.8)
        elif not entry["path"]:
            yield note(f"{entry['why']} on {node.host} names {entry['asked']}, which is not there: the loader says so, and goes on", [node.host])
        elif entry["path"] != (section.get("nccl") or {}).get("path"):
            yield note(f"{entry['why']} on {node.host} loads {entry['asked']} into every process", [node.host])


def _builds(node: Node, section: Section) -> Iterator[Fact]:
    """vLLM and torch's companions are built for one torch each."""
    torch, vllm = section.get("torch"), section.get("vllm")
    if torch is None or not torch.get("version"):
        return
    there = str(torch["version"])
    if vllm and section.get("pins") and not any(_fits(pin, there) for pin in section["pins"]):
        title = (
            f"{vllm['distribution']} {vllm['version']} on {node.host} was built for torch {' or '.join(section['pins'])}; torch {there} is installed"
        )
        evidence = [f"{vllm['distribution']}: Requires-Dist: torch=={section['pins'][0]}", f"torch {there}"]
        remedy = f"pip install {word('torch==' + section['pins'][0])}"
        yield degrades("version-mismatch", title, [node.host], remedy, evidence=evidence, confidence=0.85)
    for companion in section.get("companions", ()):
        pins, built = companion.get("pins", ()), _local(companion["version"])
        wrong = bool(pins) and not any(_fits(pin, there) for pin in pins)
        if built is None and section.get("machine") == "x86_64":
            apart = _local(there) == "cpu"  # what is on PyPI has no mark, and is built for CUDA
        else:
            apart = None not in (built, _local(there)) and built != _local(there)
        if wrong or apart:
            wants = f"was built for torch {' or '.join(pins)}" if wrong else f"is a build for {built or 'CUDA'}"
            breaks = ": `import vllm` fails beside it" if vllm else ""
            title = f"{companion['name']} {companion['version']} on {node.host} {wants}; torch {there} is installed{breaks}"
            evidence = [f"{companion['name']} {companion['version']}", f"torch {there}"]
            remedy = f"pip uninstall --yes {word(companion['name'])}   # or install the build that belongs to this torch, from the same index"
            yield degrades("version-mismatch", title, [node.host], remedy, evidence=evidence, confidence=0.85)


def _fits(pin: str, version: str) -> bool:
    """Whether an installed version is what `==` asks for: the mark of a build counts only where it is asked for (PEP 440)."""
    return version == pin if "+" in pin else version.partition("+")[0] == pin


def _local(version: str) -> str | None:
    """The mark of a build: cu130, cpu."""
    return version.partition("+")[2] or None


def _numbers(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", str(version or "")))


def _which(library: Mapping[str, Any] | None) -> str:
    library = library or {}
    return f"NCCL {library.get('version') or 'of unknown version'} ({library.get('path')})"


def _found(library: Mapping[str, Any] | None) -> str:
    library = library or {}
    return f"{library.get('why')}: {library.get('path')}: NCCL {library.get('version')}"

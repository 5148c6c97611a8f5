"""Whether this vLLM and these GPUs can compute what the model is made of: its architecture, its dtype, its quantisation. Pure.

From vLLM 0.32: bfloat16 from compute capability 8.0, and a model stored so falls back to float16 below (platforms/cuda.py,
config/model.py: _resolve_auto_dtype); FP8 tensor cores from 8.9, below them weight-only Marlin kernels from 7.5
(layers/quantization/fp8.py); INT8 not from 10.0 on (its documentation says to use FP8 on Blackwell).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ncclcheck import gathered
from ncclcheck.model import Fact
from ncclcheck.preflight import taken
from ncclcheck.preflight.model_described import Described
from ncclcheck.survey import Job, Node, degrades, note, stop

BF16, FP8, MARLIN, NO_INT8 = 8.0, 8.9, 7.5, 10.0  # compute capabilities
_SEEN = "nvidia-smi --query-gpu=index,name,compute_cap --format=csv"


def judge(model: Described, nodes: Sequence[Node], job: Job) -> Iterator[Fact]:
    """On a CPU nothing is said of dtypes: vLLM computes in all of them."""
    yield from _architecture(model, nodes)
    gpus = [gpu for node in nodes for gpu in _gpus(node, job)]
    if model.dtype == "bfloat16" and (old := [gpu for gpu in gpus if gpu.capability < BF16]):
        title = f"{_named(old)} cannot compute in bfloat16, in which the model {model.path} is stored (it needs 8.0): vLLM falls back to float16"
        remedy = f"--dtype float16   # and compare its answers, since float16 has a smaller range; or other GPUs ({_SEEN})"
        yield degrades("dtype-not-supported", title, _hosts(old), remedy, evidence=_lines(old))
    computes = model.shape.quantisation.computes if model.shape and model.shape.quantisation else "fp8" if model.method == "fp8" else ""
    if computes == "fp8" and (old := [gpu for gpu in gpus if gpu.capability < MARLIN]):
        title = f"{_named(old)} cannot serve the FP8 weights of the model {model.path}: vLLM's kernels need compute capability 7.5"
        yield stop("dtype-not-supported", title, _hosts(old), f"take the model's weights in float16, or other GPUs ({_SEEN})", evidence=_lines(old))
    elif computes == "fp8" and (old := [gpu for gpu in gpus if gpu.capability < FP8]):
        title = f"{_named(old)} has no FP8 tensor cores, which come with 8.9: with {model.path} vLLM saves memory only, and no time"
        remedy = f"use it as it is, slower than on a GPU of 8.9 and newer ({_SEEN}); or take weights in INT8 (W8A8), for which it has tensor cores"
        yield degrades("dtype-not-supported", title, _hosts(old), remedy, evidence=_lines(old))
    if computes == "int8" and (new := [gpu for gpu in gpus if gpu.capability >= NO_INT8]):
        title = f"{_named(new)} cannot compute with the INT8 weights of the model {model.path}: vLLM has no kernels for them from 10.0 on"
        yield stop("dtype-not-supported", title, _hosts(new), f"take the model's weights in FP8, or other GPUs ({_SEEN})", evidence=_lines(new))


def _architecture(model: Described, nodes: Sequence[Node]) -> Iterator[Fact]:
    by = {node.host: (node.read("model") or {}).get("served") for node in nodes}
    versions = {node.host: ((node.read("versions") or {}).get("installed") or {}).get("vllm") for node in nodes}
    if unserved := [host for host, who in by.items() if who == ""]:
        title = f"vLLM {versions[unserved[0]] or ''} on {gathered.names(unserved)} has no {model.architecture}, and neither has Transformers there"
        remedy = "pip install --upgrade vllm transformers   # on every node; or a model of a kind that this vLLM knows"
        seen = [f"{host}: {model.path}/config.json: architectures {model.architecture}; vLLM {versions[host]}" for host in unserved[:4]]
        yield stop("software-bug-version", title.replace("vLLM  on", "vLLM on"), unserved, remedy, evidence=seen, confidence=0.85)
    if detour := [host for host, who in by.items() if who in ("transformers", "plugins")]:
        yield note(f"vLLM itself has no {model.architecture} on {gathered.names(detour)}: a plugin or Transformers would have to serve it", detour)


@dataclass(frozen=True, slots=True)
class _Gpu:
    """One that a rank takes."""

    host: str
    index: int
    name: str
    capability: float


def _gpus(node: Node, job: Job) -> Iterator[_Gpu]:
    section = node.read("devices") or {}
    chosen = set(taken.gpus(section, job))
    for gpu in section.get("gpus") or ():
        if gpu["index"] in chosen and (capability := _number(gpu.get("compute_capability"))):
            yield _Gpu(node.host, gpu["index"], str(gpu.get("name")), capability)


def _number(text: Any) -> float:
    """`8.9` as a number; 0 where it is none. No minor version has two digits."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return 0.0


def _named(gpus: Sequence[_Gpu]) -> str:
    """`GPU 0 of gpu-07 (Tesla T4, compute capability 7.5)`, and how many more there are."""
    first, more = gpus[0], f" and {len(gpus) - 1} more" if len(gpus) > 1 else ""
    return f"GPU {first.index} of {first.host} ({first.name}, compute capability {first.capability:.1f}){more}"


def _hosts(gpus: Sequence[_Gpu]) -> list[str]:
    return list(dict.fromkeys(gpu.host for gpu in gpus))


def _lines(gpus: Sequence[_Gpu]) -> list[str]:
    return [f"{gpu.host}: NVML: GPU {gpu.index}: {gpu.name}, compute capability {gpu.capability:.1f}" for gpu in gpus[: gathered.QUOTED]]

"""Whether weights, and the cache of one request of the longest kind, fit into the memory of the GPUs, or of the hosts where ranks have none. Pure.

Weights and cache follow from the model's dimensions, so where they alone are too large a launch would fail. What an engine needs besides
(plan/memory.py: intermediate results, CUDA graphs, contexts) is an estimate: what fails by it only is a degradation. vLLM takes 0.9 of a GPU
(0.92 since 0.32), and no more than is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ncclcheck.expect import gpus as kinds
from ncclcheck.expect.gpus import Gpu
from ncclcheck.model import Fact
from ncclcheck.plan import choose, memory
from ncclcheck.plan.layout import Layout
from ncclcheck.plan.memory import UTILISATION
from ncclcheck.plan.shape import Shape
from ncclcheck.preflight import model_cut, taken
from ncclcheck.preflight.model_described import Described
from ncclcheck.survey import Job, Node, degrades, stop

REQUESTS = 8  # at once, as the probe has them
MOST_RANKS = 512  # that are proposed
BLOCK = 16  # tokens of the cache that vLLM gives out together
SPACE = "VLLM_CPU_KVCACHE_SPACE"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class _Place:
    """The memory that ranks load into: a GPU's, or a host's, which `ranks` share. Bytes."""

    host: str
    name: str
    gpu: Gpu
    total: int
    free: int
    ranks: int = 1

    @property
    def usable(self) -> float:
        """What an engine may have of it."""
        return self.free if self.gpu.is_cpu else min(self.free, self.total * UTILISATION)

    def said(self) -> str:
        whole = f"{self.free / _GIB:.1f} of {self.total / _GIB:.1f} GiB are free"
        return whole if self.gpu.is_cpu else f"{whole}, of which vLLM may use {self.usable / _GIB:.1f}"


def judge(model: Described, nodes: Sequence[Node], job: Job) -> Iterator[Fact]:
    """What does not fit into the place with the least room, by how much, and what would."""
    tp, pp = job.cut
    if model.refuses(tp) or (model.layers and pp > model.layers) or tp * pp > job.ranks:
        return
    yield from _spaces(nodes, job)
    places = [place for node in nodes for place in _places(node, job)]
    if not places:
        return
    least = min(places, key=lambda place: place.usable / place.ranks)
    if model.shape is None:
        yield from _weights(model, job, least, model.stored / (tp * pp))
        return
    served = model.shape.served(choose.dtype(model.shape, "auto", least.gpu))
    mine = _need(served, least.gpu, tp, pp, job.max_model_len or served.longest)
    if mine.weights * least.ranks > least.usable:
        yield from _weights(model, job, least, mine.weights, served)
    else:
        yield from _cache(model, job, least, mine, served)


def _weights(model: Described, job: Job, place: _Place, each: float, shape: Shape | None = None) -> Iterator[Fact]:
    needed = each * place.ranks
    if needed <= place.usable:
        return
    tp, pp = job.cut
    who = "on each GPU" if not place.gpu.is_cpu else f"for the {place.ranks} rank{'s' * (place.ranks != 1)} there"
    short = (needed - place.usable) / _GIB
    title = (
        f"the model {model.path} does not fit with TP={tp} PP={pp}: {needed / _GIB:.1f} GiB of weights {who}, and of {place.name} "
        f"of {place.host} {place.said()}: {short:.1f} GiB too few"
    )
    evidence = [f"{place.host}: {place.name}: {place.free} of {place.total} bytes free; {model.path}: {model.stored or round(each * tp * pp)} bytes"]
    yield stop("kv-cache-or-memory-too-small", title, [place.host], _fits(model, job, place, shape), evidence=evidence, **_where(place))


def _cache(model: Described, job: Job, place: _Place, mine: memory.Memory, shape: Shape) -> Iterator[Fact]:
    """The cache of one request beside the weights: for certain, and by what an engine needs besides."""
    tp, pp = job.cut
    longest = job.max_model_len or shape.longest
    needed = mine.kv_token * shape.kept(longest) * place.ranks
    left = place.usable - mine.weights * place.ranks
    besides = 0.0 if place.gpu.is_cpu else mine.used - mine.weights
    if needed + besides <= left:
        return
    certain, room = needed > left, left - besides
    tokens = int(max(room, 0.0) / (mine.kv_token * place.ranks)) // BLOCK * BLOCK
    rest = f" and {besides / _GIB:.1f} GiB of what else it needs" if besides else ""
    whose = "as asked" if job.max_model_len else "the model's own length, which vLLM takes unless told otherwise"
    title = (
        f"one request of {longest} tokens ({whose}) needs {needed / _GIB:.1f} GiB of KV cache with TP={tp} PP={pp}; of {place.name} of "
        f"{place.host} {place.said()}, {mine.weights * place.ranks / _GIB:.1f} GiB go to the weights of {model.path}{rest}: "
        f"{(needed - room) / _GIB:.1f} GiB too few"
    )
    evidence = [f"{place.host}: {place.name}: {place.free} of {place.total} bytes free; {needed / longest:.0f} bytes of cache for each token"]
    first = [f"--max-model-len {tokens}"] if tokens else []
    remedy = ", or ".join([*first, _fits(model, job, place, shape)])
    say = stop if certain and job.max_model_len else degrades
    confidence = 0.95 if certain else 0.75
    yield say("kv-cache-or-memory-too-small", title, [place.host], remedy, evidence=evidence, confidence=confidence, **_where(place))


def _fits(model: Described, job: Job, place: _Place, shape: Shape | None) -> str:
    """What would fit: another cut of the same ranks, the memory that others hold, more ranks, smaller weights."""
    found = []
    emptied = replace(place, free=place.total)
    if not place.gpu.is_cpu and _holds(model, job, emptied, shape, *job.cut):
        found.append(f"nvidia-smi   # and end what holds {(place.total - place.free) / _GIB:.1f} GiB of {place.name} of {place.host}")
    here = [cut for cut in model_cut.possible(model, job.ranks) if cut != job.cut]
    if better := next((cut for cut in here if _holds(model, job, place, shape, *cut)), None):
        found.append(model_cut.flags(*better))
    elif not place.gpu.is_cpu and (more := _more(model, job, place, shape)):
        ranks, cut = more
        found.append(f"{ranks} such GPUs, with {model_cut.flags(*cut)}")
    if shape and not shape.quantisation and not place.gpu.is_cpu:
        smaller = (name for name, other in choose.variants(shape, place.gpu) if other.quantisation and _holds(model, job, place, other, *job.cut))
        found += [f"its weights in {name}" for name in list(smaller)[:1]]
    if place.gpu.is_cpu:
        found.append(f"free -h   # and end what holds {(place.total - place.free) / _GIB:.1f} GiB of {place.host}, or more hosts")
    return ", or ".join(found) or "a smaller model: nothing that was tried would fit"


def _more(model: Described, job: Job, place: _Place, shape: Shape | None) -> tuple[int, tuple[int, int]] | None:
    ranks = 2 * job.ranks
    while ranks <= MOST_RANKS:
        if cut := next((cut for cut in model_cut.possible(model, ranks) if _holds(model, job, place, shape, *cut)), None):
            return ranks, cut
        ranks *= 2
    return None


def _holds(model: Described, job: Job, place: _Place, shape: Shape | None, tp: int, pp: int) -> bool:
    """Whether weights and one request would fit there, with what an engine needs besides; of an unknown shape, the weights."""
    if shape is None:
        return model.stored / (tp * pp) * place.ranks <= place.usable
    longest = job.max_model_len or shape.longest
    mine = _need(shape, place.gpu, tp, pp, longest)
    each = mine.weights if place.gpu.is_cpu else mine.used
    return (each + mine.kv_token * shape.kept(longest)) * place.ranks <= place.usable


def _need(shape: Shape, gpu: Gpu, tp: int, pp: int, longest: int) -> memory.Memory:
    return memory.of(shape, Layout(tp, pp, 1), gpu, REQUESTS, longest)


def _spaces(nodes: Sequence[Node], job: Job) -> Iterator[Fact]:
    """The cache that vLLM is told to take on a CPU, which it compares with what is free before it takes it."""
    for node in nodes:
        said = ((node.read("settings") or {}).get("variables") or {}).get(SPACE, "")
        for place in _places(node, job) if str(said).isdigit() else ():
            asked = int(said)
            if place.gpu.is_cpu and asked * _GIB > place.free:
                title = f"{SPACE}={asked} on {node.host} asks for {asked} GiB of KV cache for each rank, and {place.said()}: "
                title += f"{asked - place.free / _GIB:.1f} GiB too few"
                remedy = f"export {SPACE}={max(1, int(place.free / 2 / place.ranks / _GIB))}   # GiB for each rank; the weights need room, too"
                seen = [f"{node.host}: {SPACE}={said}; {place.free} of {place.total} bytes free"]
                yield stop("kv-cache-or-memory-too-small", title, [node.host], remedy, evidence=seen)


def _places(node: Node, job: Job) -> Iterator[_Place]:
    devices: Any = node.read("devices")
    if devices is None:
        return
    chosen = set(taken.gpus(devices, job))
    for gpu in devices.get("gpus") or ():
        told = gpu.get("memory") or {}
        if gpu["index"] in chosen and told.get("total") and told.get("free") is not None:
            yield _Place(node.host, f"GPU {gpu['index']}", _kind(gpu, told["total"]), told["total"], told["free"])
    if not chosen and (not devices.get("nvidia") or devices.get("setting") == ""):
        limits: Any = node.read("limits") or {}
        told, cgroup = limits.get("memory") or {}, limits.get("cgroup") or {}
        if told.get("total") and told.get("available") is not None:
            total, free = told["total"], told["available"]
            if isinstance(cgroup.get("memory_limit"), int) and cgroup["memory_limit"] - cgroup["memory_used"] < free:
                total, free = cgroup["memory_limit"], max(0, cgroup["memory_limit"] - cgroup["memory_used"])
            sharing = job.ranks if job.emulated else job.nproc_per_node  # emulated nodes share one machine
            yield _Place(node.host, "the memory", replace(kinds.find("CPU"), memory=total), total, free, sharing)


def _kind(gpu: Any, total: int) -> Gpu:
    """What the table knows of it, with the memory that it has; of one that it does not know, only that counts here."""
    name = str(gpu.get("name"))
    try:
        return replace(kinds.find(name), memory=total)
    except ValueError:
        bf16 = str(gpu.get("compute_capability") or "8").partition(".")[0] not in ("5", "6", "7")
        return Gpu(name, total, 1e12, 1e14, 0.0, 0.0, "pcie4", "", bf16)


def _where(place: _Place) -> dict[str, list[str]]:
    return {} if place.gpu.is_cpu else {"devices": [f"{place.host}:{place.name}"]}

"""The ways to spread a model over a cluster: slices of layers (TP) times stages (PP) times replicas (DP)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from ncclcheck.expect.cost import Group
from ncclcheck.plan.shape import Shape


@dataclass(frozen=True, slots=True)
class Layout:
    """One way. `nodes` are those that one replica takes; replicas that share a node have it to themselves with `nodes` 1."""

    tp: int
    pp: int
    replicas: int
    nodes: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp

    @property
    def slices(self) -> Group:
        """The ranks that share every layer."""
        each = min(self.tp, self.gpus // self.nodes)
        return Group(each, self.tp // each)

    @property
    def crossings(self) -> int:
        """Boundaries between stages that lie between nodes."""
        return self.pp - 1 if self.slices.nodes > 1 else self.nodes - 1

    def __str__(self) -> str:
        return f"TP={self.tp} PP={self.pp}" + (f" x {self.replicas} replicas" if self.replicas > 1 else "")


def layouts(shape: Shape, nodes: int, each: int, tp: int | None = None, pp: int | None = None) -> Iterator[Layout]:
    """Every layout that vLLM accepts on `nodes` nodes of `each` GPUs; with `tp` and `pp` only those. A replica has one node or whole ones."""
    total = nodes * each
    for slices in [tp] if tp else shape.slices(total):
        for stages in [pp] if pp else range(1, min(shape.layers, total // slices) + 1):
            if found := layout(slices, stages, nodes, each):
                yield found


def layout(tp: int, pp: int, nodes: int, each: int) -> Layout | None:
    """These slices and stages on this cluster, with as many replicas as there is room for; None where a group would lie across a node's edge."""
    gpus = tp * pp
    if gpus <= each:
        return Layout(tp, pp, nodes * (each // gpus))
    if gpus % each or gpus // each > nodes or (each % tp and tp % each):
        return None
    return Layout(tp, pp, nodes // (gpus // each), gpus // each)


@functools.cache
def stages(layers: int, pp: int) -> list[range]:
    """The layers of each stage, as vLLM cuts them: what is left over goes to the stages before the last, from behind."""
    sizes = [layers // pp] * pp
    for place in range(layers % pp):
        sizes[-(place + 2)] += 1
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@functools.lru_cache(maxsize=1024)
def kinds(shape: Shape, pp: int) -> dict[int, int]:
    """Stages that differ, by the number of one of them, and how many there are like it: the first, the last, and a few between."""
    found: dict[object, list[int]] = {}
    for number, layers in enumerate(stages(shape.layers, pp)):
        found.setdefault((shape.total(layers), number == 0, number == pp - 1), []).append(number)
    return {numbers[0]: len(numbers) for numbers in found.values()}

"""Whether the model can be divided among the ranks as it is to be: heads by TP, layers by PP. Pure.

As vLLM has it: TP must divide the attention heads (config/model.py: verify_with_parallel_config), and key-value heads and TP one of the
other (models/llama.py); what else must divide stands in plan/shape.py. Layers are dealt out to PP stages, of which each needs one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ncclcheck.model import Fact
from ncclcheck.preflight.model_described import Described
from ncclcheck.survey import Job, Node, stop


def judge(model: Described, nodes: Sequence[Node], job: Job) -> Iterator[Fact]:
    """At most one stop for each of: more ranks wanted than there are, TP, PP."""
    tp, pp = job.cut
    told = [model.said()]
    if tp * pp > job.ranks:
        title = f"TP={tp} x PP={pp} wants {tp * pp} ranks, and {job.nnodes} x {job.nproc_per_node} = {job.ranks} are started"
        yield stop("world-size-mismatch", title, [], _advice(model, job), evidence=told)
    if reason := model.refuses(tp):
        title = f"TP={tp} cannot divide the model {model.path}: {reason}; up to {job.ranks} ranks TP can be {values(model, job)}"
        yield stop("tp-not-divisible", title, [], _advice(model, job), evidence=told)
    if model.layers and pp > model.layers:
        title = f"PP={pp} cannot divide the model {model.path}: it has {model.layers} layers, and each stage needs one"
        yield stop("tp-not-divisible", title, [], _advice(model, job), evidence=told)


def values(model: Described, job: Job) -> str:
    """`1, 2, 4`: what TP can be."""
    return ", ".join(map(str, model.slices(job.ranks)))


def possible(model: Described, ranks: int) -> Iterator[tuple[int, int]]:
    """TP and PP that use all of so many ranks, widest slices first."""
    for tp in reversed(model.slices(ranks)):
        if ranks % tp == 0 and (not model.layers or ranks // tp <= model.layers):
            yield tp, ranks // tp


def flags(tp: int, pp: int) -> str:
    """How vLLM and `ncclcheck probe` are told."""
    return f"--tensor-parallel-size {tp} --pipeline-parallel-size {pp} (here: --tp {tp} --pp {pp})"


def _advice(model: Described, job: Job) -> str:
    """A layout over all ranks; TP within a node where that is possible, as slices exchange the most."""
    found = list(possible(model, job.ranks))
    inside = [cut for cut in found if job.nproc_per_node % cut[0] == 0 and cut[0] > 1]
    best = next(iter(inside or found), None)
    if best:
        return f"{flags(*best)}; TP can be {values(model, job)}"
    fewer = max(model.slices(job.ranks), default=1)
    return f"{flags(fewer, 1)} on {fewer} rank{'s' * (fewer != 1)}; no TP and PP use all {job.ranks}"

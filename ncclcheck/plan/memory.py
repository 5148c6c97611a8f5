"""What a layout puts on each GPU: weights, cache, and what an engine needs besides."""

from __future__ import annotations

from dataclasses import dataclass

from ncclcheck.expect.gpus import Gpu
from ncclcheck.plan.layout import Layout, kinds, stages
from ncclcheck.plan.shape import Shape

UTILISATION = 0.9  # of a GPU's memory that vLLM is told to use
CONTEXT = 0.6 * 2**30  # bytes: CUDA's context and libraries in one process (seen on Hopper)
CHANNELS = 0.5 * 2**30  # bytes more for NCCL's buffers, with more than one GPU
GRAPHS, GRAPHS_LAYER = 0.4 * 2**30, 8 * 2**20  # bytes of captured CUDA graphs, and of each layer in them: as vLLM's log tells of such models
LARGE = 70 * 2**30  # bytes from which vLLM computes 8192 tokens at once, unless it is an A100


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the GPU that has the most, and what is left there for the cache."""

    weights: float
    activations: float
    graphs: float
    other: float
    room: float  # bytes for the cache; negative: so many are missing
    tokens: float  # that fit into the cache of the stage with the least room
    kv_token: float  # bytes of one token on that GPU
    requests: float  # that fit at once, at the length that was asked for

    @property
    def used(self) -> float:
        """Bytes without any cache."""
        return self.weights + self.activations + self.graphs + self.other


def batched(gpu: Gpu) -> int:
    """Tokens that vLLM computes at once at most, unless told otherwise."""
    return 8192 if gpu.memory >= LARGE and not gpu.name.startswith("A100") else 2048


def of(shape: Shape, layout: Layout, gpu: Gpu, requests: int, longest: int) -> Memory:
    """What one GPU of this layout holds; the worst stage counts. `requests` at once in a replica, of up to `longest` tokens."""
    found = [_stage(shape, layout, gpu, requests, longest, stage) for stage in kinds(shape, layout.pp)]
    return min(found, key=lambda one: (one.tokens, one.room))


def weights(shape: Shape, layout: Layout, stage: int) -> float:
    """Bytes of weights on each GPU of a stage, corrected by what lies on the disk where it does."""
    mine = shape.total(stages(shape.layers, layout.pp)[stage])
    linear = shape.attention_slice(layout.tp) * mine.layers + mine.mlp / layout.tp
    first, last = stage == 0, stage == layout.pp - 1
    whole = mine.small + last * shape.hidden
    ends = (first or (last and shape.tied)) + (last and not shape.tied)
    found = linear * shape.weight_bytes + (whole + ends * shape.embedding / layout.tp) * shape.size
    return found * (shape.stored / shape.loaded if shape.stored else 1.0)


def activations(shape: Shape, tp: int, tokens: int, requests: int) -> float:
    """Bytes while `tokens` are computed at once: the largest layer's intermediate results, and logits with their copy in float32."""
    attention = shape.projected / tp
    if shape.experts:
        inner = shape.experts.used * max(3 * shape.experts.width / tp, shape.hidden) + 3 * shape.experts.shared / tp
    else:
        inner = 3 * shape.width / tp
    return tokens * shape.size * (4 * shape.hidden + max(attention, inner)) + requests * shape.vocabulary * (shape.size + 8)


def _stage(shape: Shape, layout: Layout, gpu: Gpu, requests: int, longest: int, stage: int) -> Memory:
    mine = weights(shape, layout, stage)
    layers = stages(shape.layers, layout.pp)[stage]
    active = activations(shape, layout.tp, batched(gpu), requests)
    graphs = 0.0 if gpu.is_cpu else GRAPHS + GRAPHS_LAYER * len(layers)
    other = 0.0 if gpu.is_cpu else CONTEXT + (CHANNELS if layout.gpus > 1 else 0.0)
    room = gpu.memory * UTILISATION - mine - active - graphs - other
    each = shape.kv_slice(layout.tp) * len(layers)
    tokens = max(room, 0.0) / each
    return Memory(mine, active, graphs, other, room, tokens, each, max(room, 0.0) / (each * shape.kept(longest)))

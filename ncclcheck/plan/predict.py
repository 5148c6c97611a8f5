"""What each layout will cost: memory, communication and time per token, time to the first token, throughput, and what bounds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ncclcheck.expect.cost import Cost
from ncclcheck.expect.gpus import Gpu
from ncclcheck.plan import memory
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.layout import Layout, kinds, stages
from ncclcheck.plan.memory import Memory
from ncclcheck.plan.shape import Shape

READS = 0.8  # of a GPU's memory bandwidth that kernels of a decoding step reach
COMPUTES = 0.5  # of its dense FLOP/s that kernels of a prompt reach
STEP_ERROR, PROMPT_ERROR = 0.25, 0.4  # what these two make a time wrong by, expected
HEADERS = 100e-6  # seconds: what a stage tells the next about its tensors, over TCP from process to process


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the whole cluster: so many requests at once, each of so many tokens in and out, and the longest that is allowed."""

    requests: int
    prompt: int
    answer: int
    longest: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one step sends, for the tokens of all its requests: operations, and bytes of each."""

    all_reduces: int
    all_reduce_bytes: int
    sends: int
    send_bytes: int
    gathers: int
    gather_bytes: int  # of the result
    per_layer: int  # all-reduces


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of one pass through all stages, by what they are spent on."""

    memory: float  # reading weights and cache, where that takes longer than computing,
    compute: float  # or computing, where that does
    overhead: float
    communication: Cost
    waiting: float  # around collectives, where an engine has shown how much that is
    error: float  # seconds, either way

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.memory + self.compute + self.overhead + self.sent

    @property
    def sent(self) -> float:
        """Seconds for communication and around it."""
        return self.communication.seconds + self.waiting

    @property
    def bound(self) -> str:
        """What takes most of it."""
        parts = {
            "memory bandwidth": self.memory,
            "compute": self.compute,
            "software": self.overhead,
            "link latency": self.communication.latency + self.waiting,
            "link bandwidth": self.communication.transfer,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class Forecast:
    """One layout under a load."""

    layout: Layout
    memory: Memory
    requests: int  # of a replica, at once: as many as its cache and vLLM's step hold, or fewer
    waiting: float  # how many times as long a request takes because not all fit at once
    traffic: Traffic
    token: Time  # per output token
    first: Time  # of a prompt
    load: Load

    @property
    def fits(self) -> bool:
        """Whether one request of the greatest length can be served at all."""
        return self.memory.room > 0 and self.memory.requests >= 1

    @property
    def request_seconds(self) -> float:
        """From a request to its last token, while as many others are served: their prompts take their turn."""
        prompts = max(1.0, self.requests / self.layout.pp)
        return (prompts * self.first.seconds + (self.load.answer - 1) * self.token.seconds) * self.waiting

    @property
    def throughput(self) -> float:
        """Output tokens per second of the whole cluster."""
        return self.load.requests * self.load.answer / self.request_seconds

    @property
    def error(self) -> float:
        """The expected error of a request's time, as a share."""
        prompts, decoding = max(1.0, self.requests / self.layout.pp), self.load.answer - 1
        return (prompts * self.first.error + decoding * self.token.error) * self.waiting / self.request_seconds


def forecast(shape: Shape, layout: Layout, hardware: Hardware, load: Load) -> Forecast:
    """What this layout will do."""
    asked = math.ceil(load.requests / layout.replicas)
    room = memory.of(shape, layout, hardware.gpu, asked, load.longest)
    served = memory.of(shape, layout, hardware.gpu, asked, load.prompt + load.answer).requests
    # vLLM refuses more requests at once than tokens in a step
    here = max(1, min(asked, int(served), memory.batched(hardware.gpu)))
    context = load.prompt + load.answer // 2
    each = max(1, math.ceil(here / layout.pp))  # a stage works on one part of the requests while the others work on the rest
    token = _pass(shape, layout, hardware, each, each, context, prompt=False)
    first = _pass(shape, layout, hardware, load.prompt, 1, load.prompt // 2, prompt=True)
    return Forecast(layout, room, here, asked / here, traffic(shape, layout, each, each), token, first, load)


def traffic(shape: Shape, layout: Layout, tokens: int, sampled: int) -> Traffic:
    """What a pass of `tokens` tokens sends, of which `sampled` get a successor: 2 all-reduces in each layer and one for the embedding,
    one gather of the logits; hidden state and residual from each stage to the next."""
    sliced = layout.tp > 1
    width = tokens * shape.hidden * shape.size
    return Traffic(
        all_reduces=(2 * shape.layers + 1) if sliced else 0,
        all_reduce_bytes=width if sliced else 0,
        sends=2 * (layout.pp - 1),
        send_bytes=math.ceil(width / layout.tp) if layout.pp > 1 else 0,
        gathers=(1 + 2 * (layout.pp - 1)) if sliced else 0,
        gather_bytes=sampled * shape.vocabulary * shape.size if sliced else 0,
        per_layer=2 if sliced else 0,
    )


def communication(shape: Shape, layout: Layout, hardware: Hardware, tokens: int, sampled: int) -> Cost:
    """Seconds that a pass of `tokens` tokens communicates."""
    found = traffic(shape, layout, tokens, sampled)
    group = layout.slices
    total = Cost()
    read = 0.0  # bytes of weights, from one collective to the next
    if layout.tp > 1:
        read = _touched(shape, layout, 0, tokens) * layout.pp / found.all_reduces
        total += hardware.all_reduce(group, found.all_reduce_bytes, read).times(found.all_reduces)
        total += hardware.all_gather(group, found.gather_bytes, read)
    within = layout.pp - 1 - layout.crossings
    for count, crossing in ((layout.crossings, True), (within, False)):
        total += (hardware.send(group, found.send_bytes, crossing).times(2) + Cost(HEADERS)).times(count)
        if layout.tp > 1:  # each rank sent a slice: they put them together again
            total += hardware.all_gather(group, found.all_reduce_bytes, read).times(2 * count)
    return total


def _pass(shape: Shape, layout: Layout, hardware: Hardware, tokens: int, requests: int, context: int, prompt: bool) -> Time:
    """One pass of so many tokens of so many requests. `context`: what each token looks back at, on average."""
    gpu = hardware.gpu
    limit = memory.batched(gpu)
    pieces = max(1, math.ceil(tokens / limit)) if prompt else 1
    at_once = min(tokens, limit)
    reading = computing = 0.0
    rate = _rate(shape, gpu)
    for stage, count in kinds(shape, layout.pp).items():
        layers = stages(shape.layers, layout.pp)[stage]
        touched = _touched(shape, layout, stage, at_once)
        cache = requests * shape.kept(context) * shape.kv_slice(layout.tp) * len(layers)
        linear = (shape.attention() * len(layers) + shape.total(layers).active) / layout.tp
        if stage == layout.pp - 1:
            linear += shape.embedding / layout.tp * requests / tokens
        looks = shape.look_flops(prompt) * shape.kept(context) * len(layers) / layout.tp
        reads = (touched * pieces + cache) / (gpu.bandwidth * READS)
        computes = tokens * (2 * linear / rate + looks / gpu.half) / COMPUTES
        reading, computing = (reading + count * reads, computing) if reads >= computes else (reading, computing + count * computes)
    overhead = (gpu.step + gpu.layer * shape.layers) * pieces
    sent = communication(shape, layout, hardware, at_once, requests).times(pieces)
    own = (PROMPT_ERROR if prompt else STEP_ERROR) * (reading + computing + overhead)
    between = hardware.error(layout.slices) if layout.tp > 1 else 0.5
    found = traffic(shape, layout, at_once, requests)
    waiting = (found.all_reduces + found.gathers / 2) * hardware.waiting(layout.slices) * pieces  # a gather takes half as long
    return Time(reading, computing, overhead, sent, waiting, own + between * (sent.seconds + waiting))


def _touched(shape: Shape, layout: Layout, stage: int, tokens: int) -> float:
    """Bytes of weights that a pass of `tokens` tokens reads on a GPU: of the embedding a few rows, of the experts those that are chosen."""
    found = memory.weights(shape, layout, stage)
    correct = shape.stored / shape.loaded if shape.stored else 1.0
    if stage == 0 and not (shape.tied and layout.pp == 1):
        found -= shape.embedding / layout.tp * shape.size * correct
    if experts := shape.experts:
        idle = (1 - experts.used / experts.count) ** tokens
        sparse = shape.total(stages(shape.layers, layout.pp)[stage]).sparse
        every = 3 * shape.hidden * experts.width * experts.count * sparse / layout.tp * shape.weight_bytes
        found -= every * idle * correct
    return found


def _rate(shape: Shape, gpu: Gpu) -> float:
    """FLOP/s of the linear layers: quantised weights help only where the tensor cores take them, else they are widened first."""
    kind = shape.quantisation.computes if shape.quantisation else "half"
    quick = {"fp8": gpu.fp8, "int8": gpu.int8}.get(kind, 0.0)
    if shape.dtype == "float32" and not gpu.is_cpu:
        return gpu.half / 8
    return quick or gpu.half

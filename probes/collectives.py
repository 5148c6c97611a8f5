"""Run every kind of collective in every type and check every element.

What it checks
    all_reduce (sum, max), all_gather, reduce_scatter, broadcast, all_to_all, send/recv around the ring and barrier, in
    seven types, with 1, 1021 and enough elements per rank for 1 MiB. Every rank can predict every result exactly.

What a failure means
    A wrong element is silent data corruption: suspect the GPU, the memory or the link of the rank named, or a library that
    differs there. Where a sum is wrong and no single contribution explains it, the rank that saw it is named.
    A hang or an error names the first operation that does not work.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.collectives
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ncclcheck import pattern
from ncclcheck.model import Fact, Sample
from ncclcheck.pattern import UNTOUCHED, Difference
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone

TIMEOUT = 120.0
MIN_RANKS = 2
DEFAULT = True
ORDER = 20

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8)
TINY = (1, 1021)  # elements per rank: the least, and a prime that no vector width divides
LARGE = 2**20  # bytes
EVERY_ROOT = 8  # ranks up to which each is the root of a broadcast once
_UNSUPPORTED = ("not supported", "unsupported", "not implemented", "does not support", "invalid scalar type", "unconvertible")

# torch 2.13 renamed these and warns on every use of the names that torch 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """What a trial is made of: `count` elements per rank of one type, seen by one rank of `n`."""

    rank: int
    n: int
    count: int
    dtype: torch.dtype
    device: str

    def marks(self, rank: int, count: int) -> Tensor:
        """What `rank` sends where data is only moved."""
        return pattern.marks(rank, count, self.dtype, self.device)

    def summands(self) -> Tensor:
        """What this rank contributes to a reduction: `n * count` elements."""
        return pattern.summands(self.rank, self.n, self.n * self.count, self.dtype, self.device)

    def untouched(self, count: int) -> Tensor:
        """A result before the collective has written it."""
        return torch.full((count,), UNTOUCHED, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Trial:
    """One collective, ready to run once: afterwards `result` must equal `expected`."""

    issue: Callable[[], object]
    result: Tensor
    expected: Tensor
    culprits: Callable[[Difference], list[int]]  # the ranks whose data is wrong; [] where that cannot be told


def all_reduce_sum(shape: Shape) -> Trial:
    """Every rank gets the sum of all."""
    tensor, expected = shape.summands(), pattern.sums(shape.n, shape.n * shape.count, shape.dtype, shape.device)
    return Trial(lambda: dist.all_reduce(tensor), tensor, expected, lambda wrong: pattern.miscounted(wrong, shape.n))


def all_reduce_max(shape: Shape) -> Trial:
    """Every rank gets the greatest of all."""
    tensor, expected = shape.summands(), pattern.maxima(shape.n, shape.n * shape.count, shape.dtype, shape.device)
    return Trial(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX), tensor, expected, lambda wrong: [])


def all_gather(shape: Shape) -> Trial:
    """Every rank gets the data of all, in rank order."""
    mine, result = shape.marks(shape.rank, shape.count), shape.untouched(shape.n * shape.count)
    expected = torch.cat([shape.marks(rank, shape.count) for rank in range(shape.n)])
    return Trial(lambda: _all_gather(result, mine), result, expected, lambda wrong: _segments(wrong, shape.count))


def reduce_scatter(shape: Shape) -> Trial:
    """Rank r gets part r of the sum of all."""
    mine, result, offset = shape.summands(), shape.untouched(shape.count), shape.rank * shape.count
    expected = pattern.sums(shape.n, shape.n * shape.count, shape.dtype, shape.device)[offset : offset + shape.count]
    return Trial(lambda: _reduce_scatter(result, mine), result, expected, lambda wrong: pattern.miscounted(wrong, shape.n, offset))


def all_to_all(shape: Shape) -> Trial:
    """Rank r gets part r of the data of every rank, in rank order."""
    mine, result, offset = shape.marks(shape.rank, shape.n * shape.count), shape.untouched(shape.n * shape.count), shape.rank * shape.count
    expected = torch.cat([shape.marks(rank, shape.n * shape.count)[offset : offset + shape.count] for rank in range(shape.n)])
    return Trial(lambda: dist.all_to_all_single(result, mine), result, expected, lambda wrong: _segments(wrong, shape.count))


def broadcast(shape: Shape, root: int) -> Trial:
    """Every rank gets the root's data."""
    tensor = shape.marks(root, shape.n * shape.count) if shape.rank == root else shape.untouched(shape.n * shape.count)
    return Trial(lambda: dist.broadcast(tensor, root), tensor, shape.marks(root, shape.n * shape.count), lambda wrong: [root])


def send_recv(shape: Shape) -> Trial:
    """Every rank gets the data of the rank before it on the ring."""
    before, after = (shape.rank - 1) % shape.n, (shape.rank + 1) % shape.n
    mine, result = shape.marks(shape.rank, shape.n * shape.count), shape.untouched(shape.n * shape.count)

    def issue() -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, mine, after), dist.P2POp(dist.irecv, result, before)]):
            work.wait()

    return Trial(issue, result, shape.marks(before, shape.n * shape.count), lambda wrong: [before])


def trials(n: int) -> Iterator[tuple[str, float, Callable[[Shape], Trial]]]:
    """Name, bus factor and maker of every trial among `n` ranks, except the barrier, which moves no data."""
    yield "all_reduce", 2 * (n - 1) / n, all_reduce_sum
    yield "all_reduce max", 2 * (n - 1) / n, all_reduce_max
    yield "all_gather", (n - 1) / n, all_gather
    yield "reduce_scatter", (n - 1) / n, reduce_scatter
    yield "all_to_all", (n - 1) / n, all_to_all
    for root in range(n) if n <= EVERY_ROOT else sorted({0, 1, n // 2, n - 1}):
        yield f"broadcast from {root}", 1.0, functools.partial(broadcast, root=root)
    yield "send/recv", 1.0, send_recv


def run(rank: Rank) -> Iterator[Sample | Fact]:
    """Per operation a sample (float32, the largest size) and at most one fact "fail"; at the end a fact "checked"."""
    n, elements, operations = rank.world_size, 0, 0
    types: set[torch.dtype] = set()
    for name, bus_factor, make in trials(n):
        correct, seconds, nbytes = True, 0.0, 0
        for dtype in TYPES:
            for count in (*TINY, max(1, LARGE // dtype.itemsize // n)):
                trial = make(Shape(rank.rank, n, count, dtype, rank.torch_device))
                took = _run(rank, name, trial, n * count * dtype.itemsize)
                if took is None:
                    if rank.rank == 0:
                        yield Fact("note", fields={"title": f"{dist.get_backend()} has no {name} for {_name(dtype)}; not checked"})
                    break
                wrong = pattern.difference(trial.result, trial.expected)
                if wrong and correct:  # one fact per operation says enough
                    yield pattern.corruption(rank.rank, name, trial.result, wrong, trial.culprits(wrong))
                correct = correct and wrong is None
                elements, operations = elements + len(trial.expected), operations + 1
                types.add(dtype)
                if dtype is TYPES[0]:
                    seconds, nbytes = took, n * count * dtype.itemsize
        if nbytes:
            yield Sample(name, nbytes, _name(TYPES[0]), n, [seconds], bus_factor, correct)
    with rank.step("barrier"):
        dist.barrier(device_ids=None if rank.device.index is None else [rank.device.index])
        _complete(rank)
    yield Fact("checked", rank=rank.rank, fields={"operations": operations + 1, "types": len(types), "elements": elements})


def _run(rank: Rank, name: str, trial: Trial, nbytes: int) -> float | None:
    """Seconds from issue to completion; None if the backend says it cannot do this, which all ranks are told alike."""
    _complete(rank)  # what filled the tensors
    with rank.step(name, nbytes=nbytes, dtype=_name(trial.result.dtype)):
        start = time.perf_counter()
        try:
            trial.issue()
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if not any(words in str(error).lower() for words in _UNSUPPORTED):
                raise
            return None
        _complete(rank)
        return time.perf_counter() - start


def _complete(rank: Rank) -> None:
    """An NCCL call returns before its kernel has run."""
    if rank.device.index is not None:
        torch.cuda.synchronize()


def _segments(wrong: Difference, count: int) -> list[int]:
    """The senders of wrong elements where the result is one segment of `count` elements per rank."""
    return sorted(set((wrong.index // count).tolist()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    run_alone(__file__)

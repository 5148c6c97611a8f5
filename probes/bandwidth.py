"""Measure all-reduce latency and bandwidth from 8 bytes up.

What it checks
    All-reduce (float32) in sizes that grow by a factor of 8, until the time budget or the memory ends it; each sum is
    checked. On GPUs the iterations are issued back to back and timed by events, as nccl-tests does; below 2 MiB they also
    run in a CUDA graph, because there an eager loop measures the host and not the link.

What a failure means
    A wrong sum is silent data corruption. Low busbw at the largest sizes only is bandwidth: NVLink, PCIe, the NIC, or a path
    over sockets instead of InfiniBand. High latency at small sizes only is the host, the clocks or the protocol.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.bandwidth
    With NCCLCHECK_OPTIONS='{"max_bytes": 8589934592, "budget": 60, "timeout": 150}' it goes to 8 GiB and may take a minute.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ncclcheck import pattern
from ncclcheck.model import Fact, Sample
from ncclcheck.pattern import Difference
from ncclcheck.probe import FIRST_BOUND, STALL_FACTOR, STALL_FLOOR, Rank
from ncclcheck.rank import run_alone

TIMEOUT = 90.0
MIN_RANKS = 2
DEFAULT = True
ORDER = 30
MEASURES = True

SMALLEST, FACTOR = 8, 8  # bytes; each size is so many times the one before
LARGEST_GPU, LARGEST_CPU = 2**30, 2**28  # bytes, unless "max_bytes" says otherwise
BUDGET_GPU, BUDGET_CPU = 8.0, 4.0  # seconds, unless "budget" says otherwise
LEAST, MOST, SHARE = 5, 100, 0.05  # iterations of one size: what takes this share of the budget, within these limits
GRAPH_BELOW, GRAPHED = 2 * 2**20, 10  # bytes; operations in one CUDA graph


def run(rank: Rank) -> Iterator[Sample | Fact]:
    """One sample per size, and on GPUs one "all_reduce (graph)" per small size; a fact "fail" for each wrong sum."""
    cuda = rank.device.index is not None
    budget = float(rank.options.get("budget") or (BUDGET_GPU if cuda else BUDGET_CPU))
    largest = -_greatest(rank, -_room(rank))[0]  # what the rank with the least room allows
    _check(rank, SMALLEST)  # connects the ranks and loads kernels: its time says nothing
    start, nbytes = time.perf_counter(), SMALLEST
    while nbytes <= largest:
        before = time.perf_counter()
        tensor, wrong = _check(rank, nbytes)
        fixed = time.perf_counter() - before
        issue = functools.partial(dist.all_reduce, tensor)  # its values grow to inf from here on, which takes no longer
        (once,) = _greatest(rank, *_time(rank, "all_reduce", nbytes, issue, iterations=1, bound=FIRST_BOUND))
        iterations = max(LEAST, min(MOST, int(SHARE * budget / once)))
        seconds = _time(rank, "all_reduce", nbytes, issue, iterations, bound=max(STALL_FLOOR, STALL_FACTOR * once * iterations))
        yield from _report(rank, "all_reduce", tensor, wrong, seconds)
        if cuda and nbytes < GRAPH_BELOW:
            yield from _graph(rank, nbytes, iterations)
        spent, next_size = _greatest(rank, time.perf_counter() - start, FACTOR * (fixed + (1 + LEAST) * once))
        if spent + next_size > budget:
            return
        nbytes *= FACTOR


def _room(rank: Rank) -> float:
    """Bytes of the largest tensor that this rank wants to sum: it, what it must be, and what compares them must fit."""
    if rank.device.index is None:
        return float(rank.options.get("max_bytes") or LARGEST_CPU)
    return min(float(rank.options.get("max_bytes") or LARGEST_GPU), torch.cuda.mem_get_info()[0] / 8)


def _greatest(rank: Rank, *values: float) -> list[float]:
    """The greatest of each value over all ranks, so that all decide alike."""
    tensor = torch.tensor(values, dtype=torch.float64, device=rank.torch_device)
    with rank.step("all_reduce (agree)", nbytes=tensor.nbytes, dtype="float64"):
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]


def _check(rank: Rank, nbytes: int) -> tuple[Tensor, Difference | None]:
    """Sum once and compare: the tensor, and where it is wrong."""
    count, device = nbytes // 4, rank.torch_device
    with rank.local("fill"):
        tensor = pattern.summands(rank.rank, rank.world_size, count, torch.float32, device)
        _complete(rank)
    with rank.step("all_reduce", nbytes=nbytes, dtype="float32"):
        dist.all_reduce(tensor)
        _complete(rank)
    with rank.local("compare"):
        return tensor, pattern.difference(tensor, pattern.sums(rank.world_size, count, torch.float32, device))


def _time(rank: Rank, name: str, nbytes: int, issue: Callable[[], object], iterations: int, bound: float, operations: int = 1) -> list[float]:
    """Seconds of one operation in each iteration; `issue` starts `operations` of them.

    On a GPU one more iteration, which aligns the ranks, goes first; nothing waits for anything until all are issued.
    """
    with rank.step(name, nbytes=nbytes, dtype="float32", bound=bound) as announced:
        if rank.device.index is None:
            return announced.repeat(issue, iterations)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]  # type: ignore[no-untyped-call]
        for index, event in enumerate(events):
            announced.issued(operations if index else operations - 1)  # the step's own announcement is the first
            issue()
            event.record()
        torch.cuda.synchronize()
    return [one.elapsed_time(other) / 1e3 / operations for one, other in itertools.pairwise(events)]


def _graph(rank: Rank, nbytes: int, iterations: int) -> Iterator[Sample | Fact]:
    """The same, replayed from a CUDA graph of GRAPHED all-reduces; a fact "note" where that cannot be captured."""
    name, count, reason = "all_reduce (graph)", nbytes // 4, ""
    tensor = pattern.summands(rank.rank, rank.world_size, count, torch.float32, rank.torch_device)
    graph = torch.cuda.CUDAGraph()
    with rank.step("all_reduce (capture)", nbytes=nbytes, dtype="float32"):  # NCCL may connect while it is captured
        try:
            # thread_local: torch's NCCL watchdog queries events in its own thread meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(GRAPHED):
                    dist.all_reduce(tensor)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        _complete(rank)
    if _greatest(rank, float(bool(reason)))[0]:
        if reason:
            yield Fact("note", rank=rank.rank, fields={"title": f"rank {rank.rank} cannot capture all_reduce {nbytes} B in a CUDA graph: {reason}"})
        return
    with rank.step(name, nbytes=nbytes, dtype="float32") as announced:
        announced.issued(GRAPHED - 1)
        graph.replay()
        _complete(rank)
    # Each further sum of equal values multiplies by the world size, exactly or nearly so.
    expected = pattern.sums(rank.world_size, count, torch.float32, rank.torch_device) * float(rank.world_size) ** (GRAPHED - 1)
    wrong = pattern.difference(torch.where(torch.isclose(tensor, expected, rtol=1e-5), expected, tensor), expected)
    seconds = _time(rank, name, nbytes, graph.replay, iterations, bound=FIRST_BOUND, operations=GRAPHED)
    graph.reset()  # before the communicator that it uses
    yield from _report(rank, name, tensor, wrong, seconds)


def _report(rank: Rank, name: str, tensor: Tensor, wrong: Difference | None, seconds: list[float]) -> Iterator[Sample | Fact]:
    n = rank.world_size
    if wrong:
        yield pattern.corruption(rank.rank, name, tensor, wrong, pattern.miscounted(wrong, n))
    yield Sample(name, tensor.nbytes, "float32", n, seconds, 2 * (n - 1) / n, wrong is None)


def _complete(rank: Rank) -> None:
    """An NCCL call returns before its kernel has run."""
    if rank.device.index is not None:
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_alone(__file__)

"""What an all-reduce between nodes costs inside an engine of vLLM's: by its own group, between computations, from when the last rank has come.

On CPUs that is another figure than the same all-reduce in a row: ranks that sleep while others compute must be woken, and what was computed has
pushed the collective out of the caches. So it is measured after reading more and more memory, as weights are read. GPUs queue their
collectives behind their computations; within a node of CPUs vLLM uses shared memory, whose microseconds differ by a factor of two from one
minute to the next: there it is not measured.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ncclcheck import pattern
from ncclcheck.model import Fact
from ncclcheck.probe import Rank

NAME = "vllm all_reduce"
SIZES = (2**10, 2**12, 2**14, 2**16)  # bytes; larger ones are the same inside an engine and outside
READS = (2**18, 2**22, 2**24, 2**26)  # bytes that a rank reads before each
PASSES, ROUNDS = 3, 11  # of all kinds, so that a slow moment meets all alike; of each kind in a pass, of which the first only warms up
GROUP = 5  # calls of a kind that are averaged before the median is taken

Kind = tuple[int, int]  # bytes read before, bytes of the all-reduce
Times = dict[Kind, list[float]]


def measure(rank: Rank, group: Any, exchange: Callable[[Times], list[Times]]) -> tuple[dict[Kind, float], list[Fact]]:
    """Typical seconds of each kind, and a fact "fail" for each size of which a sum was wrong.

    `group`: vLLM's own, of all ranks of the job, which all call this. `exchange` returns what every rank gave it.
    """
    weights = {read: torch.ones(int((read // 4) ** 0.5), int((read // 4) ** 0.5)) for read in READS}
    expected = {nbytes: pattern.sums(rank.world_size, nbytes // 4, torch.float32, "cpu") for nbytes in SIZES}
    mine: Times = {kind: [] for kind in itertools.product(READS, SIZES)}
    wrongs: dict[int, Fact] = {}
    for read, nbytes in itertools.product(READS * PASSES, SIZES):
        for number in range(ROUNDS):
            tensor = pattern.summands(rank.rank, rank.world_size, nbytes // 4, torch.float32, "cpu")
            torch.mv(weights[read], weights[read][0])
            with rank.step(NAME, nbytes=nbytes, dtype="float32", group="vllm"):
                start = time.perf_counter()
                summed = group.device_communicator.all_reduce(tensor)
                seconds = time.perf_counter() - start
            if number:
                mine[read, nbytes].append(seconds)
            if nbytes not in wrongs and (wrong := pattern.difference(summed, expected[nbytes])):
                wrongs[nbytes] = pattern.corruption(rank.rank, NAME, summed, wrong, pattern.miscounted(wrong, rank.world_size))
    everyone = exchange(mine)
    # of each call the shortest: who comes last waits for nobody
    return {kind: _typical(list(map(min, zip(*(one[kind] for one in everyone), strict=True)))) for kind in mine}, list(wrongs.values())


def _typical(seconds: Sequence[float]) -> float:
    """Seconds of one of many that follow each other, as in a token: often some take twice the usual time, which adds up; a slow moment does not."""
    return statistics.median(statistics.fmean(seconds[first : first + GROUP]) for first in range(0, len(seconds), GROUP))

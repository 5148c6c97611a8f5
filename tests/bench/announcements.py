"""What announcing an operation costs: Gloo all-reduces with and without the rank's slot, in turn, in one run.

torchrun --standalone --nproc-per-node 2 tests/bench/announcements.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ncclcheck.journal import Journal, create_maps

ROUNDS = 200
SIZES = {2: 200, 2**14: 100, 2**18: 50}  # float32 elements -> all-reduces in a round


def main() -> None:
    """Print what an announcement adds; the two kinds take turns, so that a slow machine slows both."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    folder = Path(tempfile.gettempdir(), f"announcements-{os.environ['MASTER_PORT']}")
    folder.mkdir(exist_ok=True)
    if rank == 0:
        create_maps(folder, dist.get_world_size())
    dist.barrier()
    journal = Journal(folder, rank, rank)
    kinds = (_plain, partial(_announced, journal))
    for elements, iterations in SIZES.items():
        operation = partial(dist.all_reduce, torch.ones(elements))
        journal.enter("all_reduce", nbytes=4 * elements)
        rounds: list[list[tuple[float, float]]] = [[], []]
        for number in range(ROUNDS):
            for which in (number % 2, 1 - number % 2):  # who follows whom must not matter
                rounds[which].append(_timed(kinds[which], operation, iterations))
        if rank == 0:
            (plain, idle), (announced, busy) = (map(statistics.median, zip(*each, strict=True)) for each in rounds)
            print(
                f"{4 * elements} B all_reduce: {plain * 1e6:.1f} µs; announcing takes {(busy - idle) * 1e6:.2f} µs, {(busy - idle) / plain:.2%} "
                f"(whole rounds, as noisy as the machine: {announced / plain:.4f})"
            )
    dist.barrier()
    for path in folder.iterdir() if rank == 0 else ():
        path.unlink()
    dist.barrier()
    if rank == 0:
        folder.rmdir()
    dist.destroy_process_group()


def _timed(kind: Callable[[Callable[[], object], int], list[float]], operation: Callable[[], object], iterations: int) -> tuple[float, float]:
    """Seconds of one iteration, and of what is not the operation in it."""
    start = time.perf_counter()
    inside = sum(kind(operation, iterations))
    seconds = time.perf_counter() - start
    return seconds / iterations, (seconds - inside) / iterations


def _plain(operation: Callable[[], object], iterations: int) -> list[float]:
    """Each iteration timed, as any benchmark does."""
    seconds: list[float] = []
    for _ in range(iterations):
        start = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - start)
    return seconds


def _announced(journal: Journal, operation: Callable[[], object], iterations: int) -> list[float]:
    """Each announced, too."""
    return journal.repeat(operation, iterations, None, opened=False, slow=9.0)


if __name__ == "__main__":
    main()

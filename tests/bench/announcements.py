"""What announcing an operation costs: 8-byte Gloo all-reduces with and without the rank's slot, in turn, in one run.

torchrun --standalone --nproc-per-node 2 tests/bench/announcements.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ncclcheck.journal import Journal, create_slots

ROUNDS, ITERATIONS = 40, 500


def main() -> None:
    """Print the median of the ratios, round by round (the two take turns, so that a slow machine slows both)."""
    dist.init_process_group("gloo")
    rank, tensor = dist.get_rank(), torch.ones(2)
    folder = Path(tempfile.gettempdir(), f"announcements-{os.environ['MASTER_PORT']}")
    folder.mkdir(exist_ok=True)
    if rank == 0:
        create_slots(folder / "slots", dist.get_world_size())
    dist.barrier()
    journal = Journal(folder, rank, rank)
    plain, announced, alone = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(ITERATIONS):
            dist.all_reduce(tensor)
        plain.append(time.perf_counter() - start)
        journal.enter("all_reduce", nbytes=8)
        start = time.perf_counter()
        for _ in range(ITERATIONS):
            journal.again()
            dist.all_reduce(tensor)
            journal.leave()
        announced.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(ITERATIONS):
            journal.again()
            journal.leave()
        alone.append(time.perf_counter() - start)
    ratios = [with_ / without for with_, without in zip(announced, plain, strict=True)]
    if rank == 0:
        print(f"8 B all_reduce: {statistics.median(plain) / ITERATIONS * 1e6:.1f} µs; announced / plain: median {statistics.median(ratios):.3f}")
        print(f"two announcements alone: {statistics.median(alone) / ITERATIONS * 1e6:.2f} µs")
    dist.barrier()
    for path in folder.iterdir() if rank == 0 else ():
        path.unlink()
    dist.barrier()
    if rank == 0:
        folder.rmdir()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

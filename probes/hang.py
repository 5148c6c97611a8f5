"""Hang one rank on purpose, and check that it is found and blamed.

What it checks
    The tool itself, on this cluster. The ranks sum small tensors in a loop; after 20 collectives one of them stops in a Python
    function for ever. The agents, which take no part in the collectives, must notice, name the rank and the line,
    end everything and leave nothing behind. Then the same loop runs without the fault and must finish.

What a failure means
    A real hang would not be explained here: see which evidence is missing (stacks need ptrace, journals need a
    writable run directory). If the loop fails without the fault, the collectives themselves are at fault.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.hang
    runs the loop only; with NCCLCHECK_INJECT=hang@rank=1,after=20 it hangs until the watchdog prints every stack.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from ncclcheck import pattern
from ncclcheck.model import Fact, Sample
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone

TIMEOUT = 30.0
MIN_RANKS = 2
DEFAULT = True
ORDER = 40
INJECT = "hang"

ITERATIONS = 40
ELEMENTS = 1024


def run(rank: Rank) -> Iterator[Sample | Fact]:
    """40 small all-reduces, each announced and seen to complete; one sample."""
    n, device = rank.world_size, rank.torch_device
    tensor = pattern.summands(rank.rank, n, ELEMENTS, torch.float32, device)

    def reduce() -> None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)  # once or often: the result is the same
        if tensor.is_cuda:
            torch.cuda.synchronize()

    with rank.step("all_reduce", nbytes=4 * ELEMENTS, dtype="float32") as announced:
        seconds = announced.repeat(reduce, ITERATIONS)
    correct = pattern.difference(tensor, pattern.maxima(n, ELEMENTS, torch.float32, device)) is None
    yield Sample("all_reduce", 4 * ELEMENTS, "float32", n, seconds, 2 * (n - 1) / n, correct)


if __name__ == "__main__":
    run_alone(__file__)

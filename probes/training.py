"""Run a small training loop: does every rank keep step, and is every sum right?

What it checks
    For a few seconds the ranks do what a training does: each step computes, sums gradients over all ranks and over halves of
    them, broadcasts, gathers, hands data around the ring, and now and then writes a checkpoint. Every result is checked.
    What each rank spends outside and inside of collectives shows who makes the others wait, and whether the network
    becomes slower under load.

What a failure means
    slow-rank: the rank named computes, reads or writes longer than the others, and all of them run at its pace.
    slow-network: the collectives themselves take longer than at first. data-corruption: a sum is wrong; where a flipped bit
    or a lost contribution explains it, the rank it came from is named.
    It is the job in which `ncclcheck drill` plants its faults.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.training
    With NCCLCHECK_OPTIONS='{"budget": 60, "timeout": 90}' it runs for a minute.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ncclcheck import pattern
from ncclcheck.collective import Collective, Group
from ncclcheck.model import Fact, Sample
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone

TIMEOUT = 60.0
MIN_RANKS = 2
ORDER = 50
PACED = True
CALLS = True

BUDGET = 5.0  # seconds of training, unless "budget" says otherwise
GRADIENTS = (16384, 4096)  # float32 elements of the sums of one step
SMALL = 256  # elements of the other collectives
WIDTH = 192  # of the matrices that are multiplied
CHECKPOINT = 2**18  # bytes that each rank writes
EVERY = 10  # steps from one checkpoint to the next


def run(rank: Rank) -> Iterator[Sample | Fact]:
    """One sample "training step" on each rank; a fact "fail" for the first wrong result."""
    job = _Job(rank)
    seconds: list[float] = []
    end = time.monotonic() + float(rank.options.get("budget") or BUDGET)
    go_on = True
    with tempfile.TemporaryFile(dir=os.environ.get("NCCLCHECK_DIR")) as checkpoint:
        while go_on:
            start = time.perf_counter()
            job.compute()
            results = job.communicate()
            if len(seconds) % EVERY == EVERY - 1:
                with rank.local("checkpoint"):
                    os.pwrite(checkpoint.fileno(), bytes(CHECKPOINT), 0)
            seconds.append(time.perf_counter() - start)
            go_on = job.agree(time.monotonic() < end)
            if wrong := job.wrong(results):  # only now: a rank that left before the next collective would look as if it had never come
                yield wrong
                return
    settled = seconds[1:] or seconds  # the first one also made connections
    yield Sample("training step", sum(GRADIENTS) * 4, "float32", rank.world_size, settled[-1000:], 1.0, True)


Result = tuple[str, Tensor, Tensor]  # operation, what it gave, what it must be


class _Job:
    """The tensors of one rank, and the groups it is in."""

    def __init__(self, rank: Rank) -> None:
        self._rank, self._n, device = rank, rank.world_size, rank.torch_device
        with rank.step("new_group", bound=60.0):
            half = max(2, self._n // 2) if self._n > 3 else self._n
            parts = [list(range(first, min(first + half, self._n))) for first in range(0, self._n, half)]
            handles = [dist.new_group(part) for part in parts]
        mine = next(handle for part, handle in zip(parts, handles, strict=True) if rank.rank in part)
        self.world = Group("world", None, Group("half", mine))
        self.half = Group("half", mine, Group("world"))
        self._contribution = [pattern.summands(rank.rank, self._n, count, torch.float32, device) for count in GRADIENTS]
        self._sums = [pattern.sums(self._n, count, torch.float32, device) for count in GRADIENTS]
        self._marks = [pattern.marks(other, SMALL, torch.float32, device) for other in range(self._n)]
        self._weights = torch.ones(WIDTH, WIDTH, device=device)

    def compute(self) -> None:
        """Forward and backward, as it were."""
        for _ in range(4):
            self._weights = (self._weights @ self._weights).clamp(-1, 1)
        if self._weights.is_cuda:
            torch.cuda.synchronize()

    def communicate(self) -> list[Result]:
        """All collectives of one step."""
        issue, rank = self._rank.issue, self._rank.rank
        device = self._rank.torch_device
        gradients = [contribution.clone() for contribution in self._contribution]
        for gradient in gradients:
            issue(Collective("all_reduce", gradient, self.world))
        loss = torch.full((1,), float(rank), dtype=torch.float64, device=device)
        issue(Collective("all_reduce", loss, self.half, "max"))
        learning_rate = self._marks[rank].clone()
        issue(Collective("broadcast", learning_rate, self.world))
        gathered = torch.full((self._n * SMALL,), pattern.UNTOUCHED, dtype=torch.float32, device=device)
        issue(Collective("all_gather", self._marks[rank], self.world, result=gathered))
        activations = torch.full_like(learning_rate, pattern.UNTOUCHED)
        issue(Collective("exchange", self._marks[rank], self.world, result=activations))
        return [
            *(("all_reduce", gradient, expected) for gradient, expected in zip(gradients, self._sums, strict=True)),
            ("broadcast", learning_rate, self._marks[0]),
            ("all_gather", gathered, torch.cat(self._marks)),
            ("exchange", activations, self._marks[(rank - 1) % self._n]),
        ]

    def wrong(self, results: Sequence[Result]) -> Fact | None:
        """The first wrong result, as a failure."""
        return next((wrong for result in results if (wrong := self._check(*result))), None)

    def agree(self, go_on: bool) -> bool:
        """Whether every rank wants another step."""
        tensor = torch.tensor([float(not go_on)], device=self._rank.torch_device)
        self._rank.issue(Collective("all_reduce", tensor, self.world, "max"))
        return not tensor.item()

    def _check(self, operation: str, result: Tensor, expected: Tensor) -> Fact | None:
        wrong = pattern.difference(result, expected)
        if wrong is None:
            return None
        culprits = pattern.flipped(wrong, self._n) or pattern.miscounted(wrong, self._n) if operation == "all_reduce" else []
        return pattern.corruption(self._rank.rank, operation, result, wrong, culprits)


if __name__ == "__main__":
    run_alone(__file__)

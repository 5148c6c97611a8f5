"""One rank sits in host code and never enters the collective that its peers wait in.

Look at the culprit, not at the ranks that report the time-out: they wait for it. Its stack says where it is: a lock, a
data loader, a checkpoint on a dead file system, a condition that only some ranks meet.

Blames
    rank 0 @ a: init, all_reduce, all_reduce...
    rank 1 @ b: init, all_reduce | stack stuck_here (faults/hang.py:20)
    => 1

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce...
    rank 2 @ b: init
    => 2

Blames
    rank 0 @ a: init, all_reduce, all_reduce...
    rank 1 @ b: init, all_reduce... | stack stuck_here (faults/hang.py:20)
    => 1

Spares
    rank 0 @ a: init, broadcast, all_reduce...
    rank 1 @ b: init, broadcast... | stack broadcast (distributed/distributed_c10d.py:2900)

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | gone
"""

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("network_unreachable",)


def check(run: Run) -> list[Finding]:
    """Ranks that are behind a collective which others are inside, are alive, and are in no collective themselves."""
    last = run.last_steps()
    inside = [step for step in last.values() if step.inside and not step.local]
    gone = {fact.rank for kind in ("gone", "stopped", "error", "done") for fact in run.of(kind)}
    if not inside:
        return []
    newest = max(step.seq for step in inside)
    stacks = {fact.rank: fact for fact in run.of("stack")}
    elsewhere = {rank for rank, stack in stacks.items() if not _communicates(stack.get("frames", []))}
    # on a GPU a rank counts as inside what it issued and has not waited for: its stack says whether it is
    stuck = [rank for rank, step in last.items() if step.seq < newest and rank not in gone and (step.local or not step.inside or rank in elsewhere)]
    result = []
    for rank in stuck:
        stack = stacks.get(rank)
        spot = f" in {stack.get('own')}" if stack and stack.get("own") else ""
        result.append(
            Finding(
                "rank-stuck-in-python",
                f"{run.name(rank)} sits{spot} and never entered {reading.operation(max(inside, key=lambda s: s.seq))}; it is {reading.at(run, rank)}"
                f"{reading.bystanders(run, [rank])}",
                run.blame([rank]),
                0.95 if stack else 0.8,
                [
                    *reading.quote(*([stack] if stack else []), *(fact for fact in run.of("state") if fact.rank == rank)),
                    *reading.positions(run, [rank]),
                ],
                f"on {run.ranks[rank].host if rank in run.ranks else 'its host'}: py-spy dump --pid "
                f"{run.ranks[rank].pid if rank in run.ranks else 'PID'}   # then mend what holds it at the top of that stack",
            )
        )
    return result


def _communicates(frames: list[str]) -> bool:
    """Whether the innermost frames are torch's: a collective, or a wait for the GPU."""
    return any("distributed_c10d" in frame or "torch/cuda/" in frame or "cuda/streams" in frame for frame in frames[:3])

"""Every rank is inside the same collective with the same arguments, nobody is behind, and it does not finish.

Then no program is at fault that can be seen from sequence numbers. A kernel on one GPU that never ends (its own, or one
queued before the collective on the same stream) looks like this on all ranks; so does a network that drops the data.

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    => -

Blames
    rank 0 @ a: init, all_reduce... | recorded started
    rank 1 @ b: init, all_reduce... | recorded scheduled
    => 1

Spares
    rank 0 @ a: init, all_reduce... | recorded started
    rank 1 @ b: init, all_reduce... | recorded started

Spares
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 7, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
"""

from collections.abc import Sequence

from ncclcheck import waits
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("network_unreachable", "slow_rank")


def check(run: Run) -> list[Finding]:
    """GPUs that have not begun what the others have begun; else all ranks in one call, and which GPU holds it cannot be told."""
    return _not_begun(run) or _held(run)


def _not_begun(run: Run) -> list[Finding]:
    """What ranks that hang, or their flight recorders, say of their GPUs: on some the collective runs, on others it waits behind something."""
    places: dict[tuple[object, ...], dict[int, Fact]] = {}  # a collective -> the last that each rank said of it
    for fact in run.of("recorded"):
        if fact.rank is not None:
            places.setdefault(tuple(fact.get(name) for name in ("group", "what", "seq")), {})[fact.rank] = fact
    return next((found for facts in places.values() if (found := _of_place(run, list(facts.values())))), [])


def _of_place(run: Run, facts: Sequence[Fact]) -> list[Finding]:
    waiting = [fact for fact in facts if fact.get("state") == "scheduled"]
    begun = [fact for fact in facts if fact.get("state") == "started"]
    if not begun or not waiting or len(waiting) > len(begun):
        return []
    ranks = sorted(fact.rank for fact in waiting if fact.rank is not None)
    names = ", ".join(run.name(rank) for rank in ranks[:4])
    what = waiting[0].get("what")
    return [
        Finding(
            "gpu-kernel-stuck",
            f"a kernel that does not end holds the GPU of {names}: {what} was issued there and has not begun, and on {len(begun)} "
            f"other GPU{'s' * (len(begun) > 1)} it runs and waits",
            run.blame(ranks),
            0.95,
            reading.quote(*waiting[:4], *begun[:2]),
            f"on {reading.place(run.ranks[ranks[0]].host if ranks[0] in run.ranks else None)}: cuda-gdb -p "
            f"{run.ranks[ranks[0]].pid if ranks[0] in run.ranks else 'PID'}   # then `info cuda kernels` names it; compute-sanitizer finds its error",
        )
    ]


def _held(run: Run) -> list[Finding]:
    """By flight recorders' dumps."""
    found = waits.of(run)
    wait = found.held
    if not run.dumps or found.messages or wait is None or len(wait.waiting) < 2 or (run.world_size or 0) > len(found.waiting):
        return []
    if len(set(wait.inside.values())) > 1:  # one side completed what the other is inside of
        return []
    everybody = len(wait.waiting) == len(found.waiting)
    who = f"all {len(wait.waiting)} ranks" if everybody else f"ranks {', '.join(map(str, wait.waiting[:8]))}, for whom all others wait,"
    return [
        Finding(
            "gpu-kernel-stuck",
            f"{who} are inside {wait.what or 'the collective'} #{wait.seq} of {wait.group} and it does not finish: "
            "a kernel on one GPU or the network holds it; which, the sequence numbers cannot tell",
            Culprit(),
            0.45,
            wait.evidence,
            "export TORCH_NCCL_ENABLE_TIMING=1 TORCH_FR_BUFFER_SIZE=2000 and run again: the rank whose operation is `scheduled` where the others' is "
            "`started` has a stuck kernel before it; cuda-gdb -p PID, then `info cuda kernels`, names it; compute-sanitizer finds its error. "
            "The root of broadcast, reduce, gather and scatter is not recorded: print src or dst on every rank: where they differ it hangs like this",
            [
                "nvidia-smi -q -d UTILIZATION,ECC,PERFORMANCE on every node",
                "py-spy dump --native --pid PID of every rank",
                "dmesg -T | grep -i xid on every node",
            ],
        )
    ]

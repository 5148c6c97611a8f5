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

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 7, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    => 1

Blames
    log gpu-a.rank0.txt: Process 411: python train.py
    log gpu-a.rank0.txt: Thread 411 (idle): "MainThread"
    log gpu-a.rank0.txt:     all_reduce (torch/distributed/distributed_c10d.py:3068)
    log gpu-a.rank0.txt:     step (train.py:41)
    log gpu-b.rank1.txt: Process 522: python train.py
    log gpu-b.rank1.txt: Thread 522 (idle): "MainThread"
    log gpu-b.rank1.txt:     read_shard (data.py:12)
    log gpu-b.rank1.txt:     step (train.py:39)
    => 1

Spares
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_1: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}

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

from ncclcheck import recorder, waits
from ncclcheck.model import Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("network_unreachable", "slow_rank", "gpu_kernel_stuck", "p2p_mismatch", "rpc_timeout")


def check(run: Run) -> list[Finding]:
    """Ranks that are alive and behind what others are inside of, as announced, or as flight recorders and watchdogs show."""
    return _announced(run) or _behind(run) or _unheard(run) or _by_stacks(run)


def _unheard(run: Run) -> list[Finding]:
    """The only rank whose watchdog says nothing: it waits for nothing. Connections to it are whole, so it lives."""
    found = waits.of(run)
    ended = {fact.rank for kind in ("exit", "gone", "left", "stopped", "error", "oom-kill") for fact in run.of(kind)}
    if run.dumps or len(found.absent) != 1 or found.absent[0] in ended or run.of("reset") or len(found.waiting) < 2:
        return []
    rank = found.absent[0]
    wait = found.of(rank)
    return [
        Finding(
            "rank-stuck-in-python",
            f"{run.name(rank)} alone has no time-out of its own: {wait}, so it never entered that collective",
            run.blame([rank]),
            0.65,
            wait.evidence if wait else (),
            _remedy(run, rank, None) + "; give every rank the same number of steps (join, drop_last=True) if its data ends earlier",
            [f"the log of rank {rank}, and py-spy dump of its process"],
        )
    ]


def _behind(run: Run) -> list[Finding]:
    """Ranks that others wait for and that wait for nobody, though nothing says that they ended."""
    found = waits.of(run)
    ended = {fact.rank for kind in ("exit", "gone", "left", "stopped", "zombie", "oom-kill") for fact in run.of(kind)}
    ended |= {fact.rank for fact in run.of("error") if not reading.CONSEQUENCE.search(str(fact.get("message", "")))}
    dumps = recorder.by_rank(tuple(run.dumps))
    stacks = {fact.rank: fact for fact in reversed(run.of("stack")) if fact.get("thread") in (None, "MainThread")}
    behind = [rank for rank in found.idle if not (rank in stacks and _communicates(stacks[rank].get("frames", [])))]
    if not behind or ended & set(found.idle) or len(found.idle) > max(1, len(found.waiting)):
        return []
    rank = behind[0]
    wait, seen = found.of(rank), [stacks[rank] for rank in behind if rank in stacks]
    recorded = set(behind) <= dumps.keys()
    if not recorded and (len(found.idle) > 1 or (wait and wait.unknown)):  # logs tell nothing of sends and receives: one may wait for another
        return []
    spots = {rank: f" sits in {stacks[rank].get('own')} and" if rank in stacks and stacks[rank].get("own") else "" for rank in behind}
    places = [found.positions[rank] for rank in behind if rank in found.positions]
    after = f"; the last it issued is #{places[0].enqueued}" if len(behind) == 1 and places and places[0].enqueued else ""
    return [
        Finding(
            "rank-stuck-in-python",
            f"{', '.join(run.name(rank) + spots[rank] for rank in behind[:4])} never entered the collective its peers wait in: "
            f"{wait or 'a message from it'}{after}",
            run.blame(behind),
            0.95 if len(seen) == len(behind) else 0.85 if recorded else 0.75,
            [
                *reading.quote(*seen[:4]),
                *[place.evidence for place in places[:4]],
                *([] if places else [dumps[rank].newest()] if rank in dumps else []),
                *(wait.evidence[:2] if wait else ()),
            ],
            _remedy(run, rank, stacks.get(rank)),
            [f"py-spy dump --pid PID of rank {rank}, twice" for rank in behind[:8]],
        )
    ]


def _by_stacks(run: Run) -> list[Finding]:
    """Stacks alone, as of a job that hangs now: most ranks are in a collective and a few are elsewhere."""
    stacks = {fact.rank: fact for fact in reversed(run.of("stack")) if fact.rank is not None and fact.get("thread") in (None, "MainThread")}
    ended = {fact.rank for kind in ("exit", "gone", "left", "stopped", "zombie", "error", "oom-kill") for fact in run.of(kind)}
    inside = [stack for stack in stacks.values() if _communicates(stack.get("frames", []))]
    elsewhere = [stack for stack in stacks.values() if stack not in inside and stack.rank not in ended]
    if run.steps or run.dumps or not inside or len(elsewhere) > max(1, len(inside) - 1):
        return []
    return [
        Finding(
            "rank-stuck-in-python",
            f"{run.name(stack.rank)} sits in {stack.get('own')}; {len(inside)} of {len(stacks)} ranks wait in {inside[0].get('frames')[0]}",
            run.blame([stack.rank]),
            0.8 if len(elsewhere) == 1 else 0.6,
            reading.quote(stack, inside[0]),
            _remedy(run, stack.rank, stack),
            [f"py-spy dump --pid PID of rank {stack.rank}, twice"],
        )
        for stack in elsewhere
        if stack.rank is not None
    ]


def _remedy(run: Run, rank: int, stack: Fact | None) -> str:
    who = run.ranks.get(rank)
    pid = who.pid if who and who.pid else "PID"
    spot = str(stack.get("own")) if stack and stack.get("own") else "the top of that stack"
    return (
        f"on {reading.place(who.host if who else None)}: py-spy dump --pid {pid}"
        f"   # then mend what holds rank {rank} at {word(spot)}: a lock, a data "
        "loader, a checkpoint or a branch that only this rank takes. Where it only takes long, give init_process_group a longer timeout"
    )


def _announced(run: Run) -> list[Finding]:
    """Ranks that are behind a collective which others are inside, are alive, and are in no collective themselves."""
    last = run.last_steps()
    inside = [step for step in last.values() if step.inside and not step.local]
    gone = {fact.rank for kind in ("gone", "stopped", "error", "done") for fact in run.of(kind)}
    if not inside:
        return []
    newest = max(inside, key=lambda step: step.seq)
    stacks = {fact.rank: fact for fact in run.of("stack")}
    states: dict[int | None, list[Fact]] = {}
    for fact in run.of("state"):
        states.setdefault(fact.rank, []).append(fact)
    elsewhere = {rank for rank, stack in stacks.items() if not _communicates(stack.get("frames", []))}
    # on a GPU a rank counts as inside what it issued and has not waited for: its stack says whether it is
    behind = [step for step in last.values() if step.seq < newest.seq and step.rank not in gone]
    stuck = [step.rank for step in behind if step.local or not step.inside or step.rank in elsewhere]
    result = []
    for rank in stuck:
        stack = stacks.get(rank)
        spot = f" in {stack.get('own')}" if stack and stack.get("own") else ""
        result.append(
            Finding(
                "rank-stuck-in-python",
                f"{run.name(rank)} sits{spot} and never entered {reading.operation(newest)}; it is {reading.at(run, rank)}"
                f"{reading.bystanders(run, [rank])}",
                run.blame([rank]),
                0.95 if stack else 0.8,
                [
                    *reading.quote(*([stack] if stack else []), *states.get(rank, ())),
                    *reading.positions(run, [rank]),
                ],
                f"on {reading.place(run.ranks[rank].host if rank in run.ranks else None)}: py-spy dump --pid "
                f"{run.ranks[rank].pid if rank in run.ranks else 'PID'}   # then mend what holds it at the top of that stack",
            )
        )
    return result


def _communicates(frames: list[str]) -> bool:
    """Whether the innermost frames are torch's: a collective, or a wait for the GPU."""
    return any(
        place in frame
        for frame in frames[:3]
        for place in ("distributed_c10d", "torch/cuda/", "cuda/streams", "cuda/__init__", "ncclcheck/collective")
    )

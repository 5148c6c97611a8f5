"""One rank left normally while others still communicate.

A data set of another length, a condition met on one rank only, or a script that ends early: the others wait for a rank
that will never come.

Blames
    rank 0 @ a: init, all_reduce, all_reduce...
    rank 1 @ b: init, all_reduce | done
    => 1

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log rank1.log: [rank1]:[W ProcessGroupNCCL.cpp:1575] Warning: WARNING: destroy_process_group() was not called before program exit, which can leak resources.
    => 1

Blames
    log rank0.log: [rank0]:[W ProcessGroupNCCL.cpp:1250] Warning: WARNING: process group has NOT been destroyed before we destruct ProcessGroupNCCL.
    log rank1.log: [rank1]:[E ProcessGroupNCCL.cpp:607] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600071 milliseconds
    => 0

Spares
    rank 0 @ a: init, all_reduce | done
    rank 1 @ b: init, all_reduce | done
"""  # noqa: E501 (lines of logs)

from ncclcheck import waits
from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_killed", "rank_stuck_in_python", "network_unreachable", "peer_reset", "slow_rank", "gpu_kernel_stuck")

_REMEDY = (
    "give every rank the same number of steps (uneven data sets: drop_last=True, or torch.distributed.algorithms.join), find the exit() or return "
    "that only this rank takes, and leave through destroy_process_group on all ranks together"
)


def check(run: Run) -> list[Finding]:
    """Ranks that left in order while another one is inside a collective: as announced, or as their logs say."""
    return _announced(run) or _left(run) or _finished(run)


def _finished(run: Run) -> list[Finding]:
    """Ranks that left in order or said that they are done, where others ran into the time-out and no sequence number is known."""
    late = {fact.rank: fact for kind in ("timeout", "position") for fact in run.of(kind) if fact.rank is not None}
    done = {fact.rank: fact for kind in ("left", "ended") for fact in run.of(kind) if fact.rank is not None and fact.rank not in late}
    if not late or not done or run.dumps or run.of("position") or reading.own_errors(run) or [fact for fact in run.of("exit") if fact.get("code")]:
        return []
    ranks = sorted(rank for rank in done if rank is not None)
    names = ", ".join(run.name(rank) for rank in ranks[:4])
    title = f"{names} ended in order, while {len(late)} other rank{'s' * (len(late) > 1)} waited until the time-out"
    return [Finding("rank-exited-early", title, run.blame(ranks), 0.75, reading.quote(*done.values(), *late.values())[:8], _REMEDY)]


def _left(run: Run) -> list[Finding]:
    """Ranks whose log ends in order, and that others wait for."""
    found = waits.of(run)
    own = {fact.rank for fact in run.of("error") if not reading.CONSEQUENCE.search(str(fact.get("message", "")))}
    killed = {fact.rank for kind in ("exit", "oom-kill") for fact in run.of(kind) if fact.get("code") != 0}
    result = []
    for fact in run.of("left"):
        if fact.rank not in {*found.absent, *found.idle} - own - killed or fact.rank is None:
            continue
        wait = found.of(fact.rank)
        result.append(
            Finding(
                "rank-exited-early",
                f"{run.name(fact.rank)} left normally while others still communicate: {wait}",
                run.blame([fact.rank]),
                0.9,
                [*reading.quote(fact), *(wait.evidence[:2] if wait else ())],
                _REMEDY,
            )
        )
    return result


def _announced(run: Run) -> list[Finding]:
    """Ranks that left in order, or with exit code 0, while another one is inside a collective."""
    clean = {fact.rank for kind in ("exit", "gone") for fact in run.of(kind) if fact.get("code") == 0}
    left = [fact for fact in run.facts if fact.rank is not None and (fact.kind == "done" or (fact.kind == "gone" and fact.rank in clean))]
    ranks = [fact.rank for fact in left if fact.rank is not None]
    if not ranks or not reading.waiting(run, ranks):
        return []
    names = ", ".join(run.name(rank) for rank in ranks)
    return [
        Finding(
            "rank-exited-early",
            f"{names} left normally{reading.bystanders(run, ranks)}",
            run.blame(ranks),
            0.9,
            reading.quote(*left),
            _REMEDY,
        )
    ]

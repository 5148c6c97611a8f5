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
    return _announced(run) or _left(run)


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

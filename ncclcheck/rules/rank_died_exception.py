"""One rank raised an error of its own, and the others wait for it or fail after it.

The earliest error that is not about a lost connection is the cause: its traceback is in that rank's log.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | error ValueError: no such file
    => 1

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection closed by peer
    rank 1 @ b: init | error KeyError: 'labels'
    => 1

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce | gone 3
    => 1

Spares
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection closed by peer
    rank 1 @ b: init, all_reduce
"""

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_stuck_in_python", "rank_exited_early", "network_unreachable", "peer_reset")


def check(run: Run) -> list[Finding]:
    """The first rank whose error is its own."""
    own = [fact for fact in run.of("error") if fact.rank is not None and not reading.CONSEQUENCE.search(str(fact.get("message", "")))]
    if run.of("engine-error"):
        return []
    if not own:
        return _silent(run)
    first = own[0]
    logs = [fact for fact in run.of("traceback") if fact.rank == first.rank]
    assert first.rank is not None
    return [
        Finding(
            "rank-died-exception",
            f"{run.name(first.rank)} raised {reading.error(first)}, {reading.at(run, first.rank)}{reading.bystanders(run, [first.rank])}",
            run.blame([first.rank]),
            0.9,
            reading.quote(*(logs or [first])),
            f"read the traceback of rank {first.rank} on {first.host or 'its host'} and mend what it names; the other ranks only wait for it",
        )
    ]


def _silent(run: Run) -> list[Finding]:
    """Ranks that left with an error's exit code and no error of their own."""
    spoke = {fact.rank for fact in run.of("error")}
    codes = {fact.rank: fact for kind in ("gone", "exit") for fact in run.of(kind) if fact.rank is not None and (fact.get("code") or 0) > 0}
    return [
        Finding(
            "rank-died-exception",
            f"{run.name(rank)} left with exit code {fact.get('code')} and no traceback, {reading.at(run, rank)}{reading.bystanders(run, [rank])}",
            run.blame([rank]),
            0.85,
            reading.quote(fact),
            f"read the log of rank {rank} on {fact.host or 'its host'} in the run directory: something in it called exit({fact.get('code')})",
        )
        for rank, fact in codes.items()
        if rank not in spoke
    ]

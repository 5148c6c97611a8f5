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

Spares
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection closed by peer
    rank 1 @ b: init, all_reduce
"""

from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_stuck_in_python", "rank_exited_early", "network_unreachable", "peer_reset")


def check(run: Run) -> list[Finding]:
    """The ranks whose error is their own; where every rank of several has the same one, no rank is to blame."""
    own = [fact for fact in run.of("error") if fact.rank is not None and not reading.CONSEQUENCE.search(str(fact.get("message", "")))]
    if not own or run.of("engine-error"):
        return []
    first = own[0]
    text = f"{first.get('type')}: {str(first.get('message')).splitlines()[0][:200]}" if first.get("message") else str(first.get("type"))
    everybody = run.world_size is not None and run.world_size > 1 and len({fact.rank for fact in own}) == run.world_size
    logs = [fact for fact in run.of("traceback") if fact.rank == first.rank]
    host = first.host or "its host"
    if everybody:
        return [
            Finding(
                "probe-crashed",
                f"every rank failed alike: {text}",
                confidence=0.8,
                evidence=reading.quote(*(logs or [first])),
                remedy=f"read the traceback on {host} (in the run directory) and mend what it names; alike everywhere points at the installation",
            )
        ]
    assert first.rank is not None
    return [
        Finding(
            "rank-died-exception",
            f"{run.name(first.rank)} raised {text}, {reading.at(run, first.rank)}{reading.bystanders(run, [first.rank])}",
            run.blame([first.rank]),
            0.9,
            reading.quote(*(logs or [first])),
            f"read the traceback of rank {first.rank} on {host} and mend what it names; the other ranks only wait for it",
        )
    ]

"""A rank's process is stopped: alive for the kernel, silent to its peers.

SIGSTOP, a debugger that holds it, a shell's Ctrl-Z or a frozen cgroup do this. Its peers wait without any error until
their time-outs.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce... | stopped
    => 1

Blames
    rank 0 @ a: init, all_reduce
    fact launcher-stopped @ a state=T
    => a

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_stuck_in_python", "rank_died_exception", "network_unreachable", "collective_mismatch")


def check(run: Run) -> list[Finding]:
    """One finding per rank in state T."""
    launchers = [
        Finding(
            "process-stopped",
            f"torchrun of {fact.host} (pid {fact.pid}) is stopped (process state T)",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.95,
            reading.quote(fact),
            f"on {fact.host}: kill -CONT {fact.pid}   # but first: who stopped it?",
        )
        for fact in run.of("launcher-stopped")
    ]
    stacks = {fact.rank: fact for fact in run.of("stack")}
    return launchers + [
        Finding(
            "process-stopped",
            f"{run.name(fact.rank)} is stopped (process state T) {reading.at(run, fact.rank)}{reading.bystanders(run, [fact.rank])}",
            run.blame([fact.rank]),
            0.97,
            reading.quote(fact, *([stacks[fact.rank]] if fact.rank in stacks else [])),
            f"on {fact.host or 'its host'}: kill -CONT {fact.pid}   # but first: who stopped it? a debugger, Ctrl-Z, a frozen cgroup",
        )
        for fact in run.of("stopped")
        if fact.rank is not None
    ]

"""A file system that the job needs is full.

Blames
    fact agent-failed @ b type=OSError message=full errno=28
    => b

Blames
    rank 0 @ a: init | error OSError: [Errno 28] No space left on device
    rank 1 @ b: init
    => 0

Spares
    fact agent-failed @ b type=TypeError message=x errno=0
"""

import errno

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "probe_crashed")
_REMEDY = "df -h . /tmp /dev/shm; df -i .   # there; then free space, or choose another place with --run-dir and TMPDIR"


def check(run: Run) -> list[Finding]:
    """Agents and ranks that could not write (ENOSPC)."""
    ranks = [fact for fact in run.of("error") if fact.rank is not None and "No space left on device" in str(fact.get("message", ""))]
    agents = [fact for fact in run.of("agent-failed") if fact.get("errno") == errno.ENOSPC]
    who = [fact.rank for fact in ranks if fact.rank is not None]
    result = []
    if who:
        names = ", ".join(run.name(rank) for rank in who[:4])
        result.append(Finding("disk-full", f"{names}: no space left on device", run.blame(who), 0.95, reading.quote(*ranks), _REMEDY))
    for fact in agents:
        title = f"ncclcheck could not write on {fact.host}: {fact.get('message')}"
        result.append(Finding("disk-full", title, Culprit(hosts=[fact.host] if fact.host else None), 0.95, reading.quote(fact), _REMEDY))
    return result

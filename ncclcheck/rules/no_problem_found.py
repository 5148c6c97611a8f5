"""The report shows a job that ran to its end, or serves, and no symptom anywhere.

Blames
    log a.log: [I] torch/distributed/elastic/agent/server/api.py:933] [default] worker group successfully finished. Waiting 300 seconds for \
other agents to finish.
    => -

Blames
    log a.log: [W socket.cpp:697] [c10d] The client socket has failed to connect to [gpu-1]:29500 (errno: 111 - Connection refused).
    log a.log: INFO:torch.distributed.distributed_c10d:Rank 1: Completed store-based barrier for key:store_based_barrier_key:1 with 2 nodes.
    log a.log: Training finished.
    log a.log: [rank1]:[W ProcessGroupNCCL.cpp:1662] Failed to check the "should dump" flag on TCPStore, (maybe TCPStore server has shut \
down too early)
    => -

Spares
    log a.log: Training completed. Do not forget to share your model on huggingface.co/models =)
    log b.log: [rank1]: Traceback (most recent call last):
    log b.log: [rank1]: KeyError: 'labels'

Spares
    log a.log: rank 0/2 is up
"""

from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

_SYMPTOMS = (
    *(
        "says",
        "fail",
        "error",
        "timeout",
        "position",
        "reset",
        "joined",
        "store-connect",
        "connect",
        "store-wait",
        "store-lost",
        "barrier",
    ),
    *(
        "stall",
        "fingerprint",
        "stopped",
        "zombie",
        "xid",
        "oom-kill",
        "cancelled",
        "ended-by-launcher",
        "bind-address",
        "suffers",
        "gone",
        "agent-failed",
        "clock",
    ),
)


_RETRIED = ("joined", "store-connect", "store-wait")  # of no weight where the ranks came together later
_LATE = ("store-lost", "reset")  # of no weight after the work was done: whoever ends last finds the others gone


def _unsettled(run: Run, kind: str) -> bool:
    """Whether a symptom of this kind stands in the report, and its log does not show that it came to nothing."""
    facts = run.of(kind)
    if kind in _RETRIED:
        last = _lines(run, "joined-all", "ended")
        return any(not fact.source or max(last.get(fact.source.file, ()), default=0) <= fact.source.line for fact in facts)
    if kind in _LATE:
        ends = _lines(run, "ended")
        return any(not fact.source or min(ends.get(fact.source.file, ()), default=fact.source.line + 1) > fact.source.line for fact in facts)
    return bool(facts)


def _lines(run: Run, *kinds: str) -> dict[str, tuple[int, int]]:
    """The first and the last line of each file on which a fact of these kinds stands."""
    lines: dict[str, tuple[int, int]] = {}
    for kind in kinds:
        for fact in run.of(kind):
            if fact.source:
                first, last = lines.get(fact.source.file, (fact.source.line, fact.source.line))
                lines[fact.source.file] = min(first, fact.source.line), max(last, fact.source.line)
    return lines


def check(run: Run) -> list[Finding]:
    """Every rank that is known left in order or said that the work is done, or the job as a whole did."""
    bad_exit = [fact for fact in run.of("exit") if fact.get("code")]
    trouble = [fact for fact in run.of("ras") if fact.get("problem") not in (None, "unreachable")]  # a job that has ended answers no ncclras
    if run.dumps or bad_exit or trouble or any(_unsettled(run, kind) for kind in _SYMPTOMS) or reading.own_errors(run):
        return []
    ended = [*run.of("ended"), *run.of("served")]
    left = {fact.rank: fact for fact in run.of("left") if fact.rank is not None}
    everybody = bool(left) and set(left) >= set(range(run.world_size or len(run.ranks)))
    if not ended and not everybody:
        return []
    facts: list[Fact] = [*ended[:4], *list(left.values())[:4]]
    title = "the job ran to its end" if run.of("ended") or everybody else "the job started and serves"
    return [
        Finding(
            "no-problem-found", f"{title}, and no symptom of a problem stands in the report", Culprit(), 0.85, reading.quote(*facts), "nothing to do"
        )
    ]

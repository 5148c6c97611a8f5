"""The report shows a job that ran to its end, or serves, and no symptom anywhere.

Blames
    log a.log: [I] torch/distributed/elastic/agent/server/api.py:933] [default] worker group successfully finished. Waiting 300 seconds for \
other agents to finish.
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


def check(run: Run) -> list[Finding]:
    """Every rank that is known left in order or said that the work is done, or the job as a whole did."""
    bad_exit = [fact for fact in run.of("exit") if fact.get("code")]
    trouble = [fact for fact in run.of("ras") if fact.get("problem")]
    if run.dumps or bad_exit or trouble or any(run.of(kind) for kind in _SYMPTOMS) or reading.own_errors(run):
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

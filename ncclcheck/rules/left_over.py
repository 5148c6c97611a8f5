"""Something of the run could not be ended or was left behind.

Blames
    fact left-over @ b what=process-812 state=D
    => b

Blames
    fact no-answer @ b order=Stop seconds=8
    => b

Spares
    fact missing-node @ b node_rank=1 nproc_per_node=1
"""

from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word


def check(run: Run) -> list[Finding]:
    """Processes and shared memory that outlived their launch, per host."""
    result = [
        Finding(
            "left-over",
            f"{fact.host} did not confirm in {fact.get('seconds'):g} s that its ranks are ended",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.7,
            reading.quote(fact),
            f"on {word(fact.host)}: grep -l NCCLCHECK_RUN /proc/*/environ   # what is left; end it by pid",
        )
        for fact in run.of("no-answer")
        if fact.get("order") == "Stop"
    ]
    for host in dict.fromkeys(fact.host for fact in run.of("left-over")):
        facts = [fact for fact in run.of("left-over") if fact.host == host]
        what = ", ".join(f"{fact.get('what')}" + (f" ({fact.get('state')})" if fact.get("state") else "") for fact in facts)
        result.append(
            Finding(
                "left-over",
                f"{what} was left on {host} after its launch",
                Culprit(hosts=[host] if host else None),
                0.9,
                reading.quote(*facts),
                f"on {word(host)}: a process in uninterruptible I/O waits for a driver or a disk (dmesg -T | tail); remove files of /dev/shm by hand",
            )
        )
    return result

"""A CUDA or NCCL call blocks torch's watchdog itself, or a thread holds the GIL inside one.

That much torch's heartbeat monitor says. Which call it is, and why it does not return, only the stacks of that process show.

Blames
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:1746] [PG ID 0 PG GUID 0(default_pg) Rank 1] ProcessGroupNCCL's watchdog got stuck for 480 \
seconds without making progress in monitoring enqueued collectives.
    => 1

Blames
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:1282] [PG 0 Rank 1] Heartbeat monitor timed out! Process will be terminated after dumping \
debug info. workMetaList_.size()=2
    log a.log: [rank3]:[E ProcessGroupNCCL.cpp:1282] [PG 0 Rank 3] Heartbeat monitor timed out! Process will be terminated after dumping \
debug info. workMetaList_.size()=2
    => -

Spares
    log a.log: [rank1]:[E ProcessGroupNCCL.cpp:563] [Rank 1] Some NCCL operations have failed or timed out.
"""

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

_REMEDY = (
    "py-spy dump --native --pid PID   # of that rank, before it is ended: which call blocks? then export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=1800 "
    "if the wait is legitimate, TORCH_NCCL_DUMP_ON_TIMEOUT=1 with TORCH_FR_BUFFER_SIZE=20000 for a flight recorder, NCCL_DEBUG=INFO, "
    "and look at dmesg -T | grep Xid; dispatch_batches: false where the data are streamed"
)

READS = (
    Clue("suffers", r"watchdog got stuck for (?P<stuck>\d+) seconds"),
    Clue("suffers", r"(?P<heartbeat>Heartbeat monitor timed out)! Process will be terminated"),
)


def check(run: Run) -> list[Finding]:
    """What heartbeat monitors say. A rank is named where it is the only one: where several say it, they may wait for one that does not."""
    facts = [fact for fact in run.of("suffers") if fact.get("stuck") is not None or fact.get("heartbeat")]
    if not facts:
        return []
    ranks = {fact.rank for fact in facts}
    alone = next(iter(ranks)) if len(ranks) == 1 else None
    whose = "torch's watchdog" if alone is None else f"the watchdog of {run.name(alone)}"
    stuck = next((fact.get("stuck") for fact in facts if fact.get("stuck") is not None), None)
    what = "gave no heartbeat" if stuck is None else f"made no progress for {stuck} s"
    culprit = Culprit() if alone is None else run.blame([alone])
    confidence = 0.45 if stuck is None else 0.5
    title = f"{whose} {what}: a CUDA or NCCL call blocks it"
    return [Finding("watchdog-stuck-cuda", title, culprit, confidence, reading.quote(*facts[:8]), _REMEDY)]

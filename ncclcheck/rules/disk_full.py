"""A file system that the job needs is full.

Blames
    fact agent-failed @ b type=OSError message=full errno=28
    => b

Blames
    fact agent-failed @ b type=OSError message=full errno=122
    => b

Blames
    fact agent-lost @ b node_rank=1 reason=OSError:[Errno_28]_full
    => b

Blames
    rank 0 @ a: init | error OSError: [Errno 28] No space left on device
    rank 1 @ b: init
    => 0

Blames
    log node-a.log: [rank3]: OSError: [Errno 28] No space left on device: '/data/ckpt/step-10'
    => 3

Blames
    log node-a.log: [rank3]: OSError: [Errno 122] Disk quota exceeded
    => 3

Blames
    log a.log: [rank0]: RuntimeError: [enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0
    => 0

Blames
    log a.log: [rank0]: SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })
    => 0

Blames
    log a.log: [rank2]: RuntimeError: [enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/1: file write failed
    => 2

Spares
    log a.log: gpu-1:7:9 [0] NCCL WARN Call to posix_fallocate failed: No space left on device

Spares
    fact agent-failed @ b type=TypeError message=x errno=0

Spares
    log a.log: [rank0]: OSError: [Errno 28] No space left on device: '/dev/shm/torch_77'
"""

from ncclcheck.evidence._reads import Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_died_exception", "probe_crashed")
_REMEDY = "df -h . /tmp /dev/shm; df -i .   # there; then free space, or choose another place with --run-dir and TMPDIR"
_LOGGED = "df -h; df -i; quota -s   # on that host; then free space, keep fewer checkpoints, or write them and TMPDIR to another file system"

READS = (
    Statement(r"^(?!.*(?:/dev/shm|NCCL|psm_)).*No space left on device", "{who} could not write: no space left on the device", _LOGGED, 0.9),
    Statement(r"Disk quota exceeded", "{who} could not write: the disk quota is used up", _LOGGED, 0.92),
    Statement(
        r"inline_container\.cc:\d+\] .{0,3}(?:unexpected pos|PytorchStreamWriter failed writing file)",
        "{who} could not finish writing a checkpoint: the disk is full or went away",
        _LOGGED,
        0.75,
    ),
)


def check(run: Run) -> list[Finding]:
    """Agents and ranks that could not write (ENOSPC), as a live run knows them."""
    errors = [fact for fact in run.of("error") if fact.rank is not None and not fact.source]
    ranks = [fact for fact in errors if "No space left on device" in str(fact.get("message", ""))]
    agents = {fact.host: fact for fact in (*run.of("agent-failed"), *run.of("agent-lost")) if reading.could_not_write(fact)}
    who = [fact.rank for fact in ranks if fact.rank is not None]
    result = []
    if who:
        names = ", ".join(run.name(rank) for rank in who[:4])
        result.append(Finding("disk-full", f"{names}: no space left on device", run.blame(who), 0.95, reading.quote(*ranks), _REMEDY))
    for host, fact in agents.items():
        said = fact.get("message") or str(fact.get("reason")).removeprefix("OSError: ")
        title = f"ncclcheck could not write on {host}: {said}"
        result.append(Finding("disk-full", title, Culprit(hosts=[host] if host else None), 0.95, reading.quote(fact), _REMEDY))
    return result

"""/dev/shm is full or tiny (64 MiB in a container by default): NCCL, PyTorch's data loader and engines share memory through it.

Blames
    log a.log: node-a:311:405 [0] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device
    log a.log: node-a:311:405 [0] include/shm.h:48 NCCL WARN Error while creating shared memory segment nccl-shm-recv-1-0-1-3 (size 9637888)
    => node-a

Blames
    log a.log: node-a:311:405 [1] misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-x to 33030532 bytes, error: No space left on
    => node-a

Blames
    log rank1.log: RuntimeError: DataLoader worker (pid 912) is killed by signal: Bus error. It is possible that dataloader's workers are out of
    => 1

Blames
    log rank1.log: RuntimeError: unable to allocate shared memory(shm) for file </torch_91_1>: No space left on device (28)
    log rank1.log: RuntimeError: unable to write to file </torch_91_2>: No space left on device (28)
    => 1

Blames
    log rank1.log: RuntimeError: Insufficient space in /dev/shm: 160 MiB required, 64 MiB free. Increase /dev/shm (e.g. --shm-size or --ipc=host).
    log rank1.log: OSError: [Errno 28] No space left on device: '/psm_1a2b3c4d'
    => 1

Blames
    fact shm @ a size=67108864
    fact exit @ a code=-7
    => a

Blames
    log rank1.log: ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).
    => 1

Blames
    fact shm @ a size=67108864
    log rank1.log: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:268, unhandled system error (run with NCCL_DEBUG=INFO for details)
    => 1

Blames
    log a.log: The object store is using /tmp instead of /dev/shm because /dev/shm has only 67104768 bytes available.
    log a.log: Fatal Python error: Bus error
    => -

Spares
    log rank1.log: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:268, unhandled system error (run with NCCL_DEBUG=INFO for details)

Spares
    fact exit @ a code=-7

Spares
    log a.log: node-a:311:405 [0] misc/shmutils.cc:129 NCCL WARN Error while attaching to shared memory segment /dev/shm/nccl-x (size 100), error: No

Spares
    log rank1.log: OSError: [Errno 28] No space left on device: '/checkpoints/step-100.pt'
"""

from __future__ import annotations

from ncclcheck.evidence._reads import Clue, Statement
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.units import bytes_text

EXPLAINS = ("rank_died_exception", "disk_full", "peer_reset", "rank_killed", "rank_exited_early", "missing_rank_at_rendezvous")

REMEDY = (
    "docker run --shm-size=16g (or --ipc=host); Kubernetes: an emptyDir with medium: Memory mounted at /dev/shm (sharedMemory of the operator); "
    "df -h /dev/shm; rm /dev/shm/nccl-* left by dead jobs; NCCL_SHM_DISABLE=1 only works around it"
)
LARGE = 1 << 30  # bytes of /dev/shm with which NCCL and engines run
SIGBUS = (-7, 135)
TITLE = "/dev/shm is too small for {who}"

READS = (
    Statement(r"Call to (?:posix_fallocate|fallocate|ftruncate) failed ?: No space left on device", TITLE, REMEDY, 0.93),
    Statement(r"Error while creating shared memory segment \S+ \(size (?P<bytes>\d+)\)(?!, error: (?!No space))", TITLE, REMEDY, 0.85),
    Statement(r"failed to extend (?:/dev/shm/)?\S+ to (?P<bytes>\d+) bytes(?!, error: (?!No space))", TITLE, REMEDY, 0.95),
    Statement(r"DataLoader worker .*is killed by signal: Bus error", TITLE + "'s data loader", REMEDY, 0.93),
    Statement(r"caused by insufficient shared memory \(shm\)", TITLE + "'s data loader", REMEDY, 0.93),
    Statement(
        r"unable to (?:allocate shared memory\(shm\) for|write to|open|mmap .{0,30}from) file </torch_\w+>.*(?:No space|Cannot allocate)",
        TITLE,
        REMEDY,
        0.93,
    ),
    Statement(
        r"Insufficient space in /dev/shm: (?P<needed>[\d.]+ \w+) required, (?P<free>[\d.]+ \w+) free",
        TITLE + ": {needed} needed, {free} free",
        REMEDY,
        0.95,
    ),
    Clue("bus-error", r"(?:Bus error|SIGBUS)(?P<text>.{0,40})"),
    Clue("system-error", r"(?P<error>unhandled system error)"),
    Clue("shm", r"because /dev/shm has only (?P<available>\d+) bytes available"),
    Statement(r"No space left on device: '/(?:dev/shm/)?(?:psm|torch|sem\.|nccl-|vllm)", TITLE, REMEDY, 0.92),
)


def check(run: Run) -> list[Finding]:
    """A process ended by SIGBUS, as writing to a full /dev/shm does, or a system call of NCCL failed, where /dev/shm is known to be small or full."""
    small = [fact for fact in run.of("shm") if int(fact.get("available", fact.get("size", LARGE))) < LARGE]
    killed = [*(fact for fact in run.of("exit") if fact.get("code") in SIGBUS), *run.of("bus-error")]
    failed = killed or run.of("system-error")
    if not small or not failed:
        return []
    ranks = sorted({fact.rank for fact in failed if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in [*failed, *small] if fact.host))
    room = f"holds {bytes_text(int(small[0].get('size')))}" if small[0].get("size") else f"has {bytes_text(int(small[0].get('available')))} left"
    title = f"{'a process was ended by SIGBUS' if killed else 'a system call of NCCL failed'} where /dev/shm {room}"
    sure = 0.85 if killed else 0.7
    return [Finding("shm-too-small", title, Culprit(ranks=ranks or None, hosts=hosts or None), sure, reading.quote(*failed[:3], small[0]), REMEDY)]

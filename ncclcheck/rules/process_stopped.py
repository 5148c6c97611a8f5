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

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log pyspy.b.rank1.txt: Process 77: python train.py
    log pyspy.b.rank1.txt: Python v3.12.3 (/usr/bin/python3.12)
    log pyspy.b.rank1.txt:
    log pyspy.b.rank1.txt: Thread 77 (idle): "MainThread"
    log pyspy.b.rank1.txt:     step (train.py:41)
    log pyspy.b.rank1.txt:     <module> (train.py:90)
    => 1

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log status.txt: Name:	python
    log status.txt: State:	T (stopped)
    log status.txt: Pid:	77
    => 1

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce...
"""

from ncclcheck import waits
from ncclcheck.model import Culprit, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = (
    "rank_stuck_in_python",
    "rank_died_exception",
    "network_unreachable",
    "collective_mismatch",
    "rank_killed",
    "slow_rank",
    "gpu_kernel_stuck",
    "missing_rank_at_rendezvous",
    "rpc_timeout",
)


def check(run: Run) -> list[Finding]:
    """One finding per process in state T; else the one that lives and answers nobody."""
    return _stopped(run) or _mute(run)


def _mute(run: Run) -> list[Finding]:
    """The only rank that wrote no dump and no last position, though its process is there and its peers wait for it."""
    found = waits.of(run)
    ended = {fact.rank for kind in ("exit", "gone", "left", "zombie", "oom-kill", "error") for fact in run.of(kind)}
    here = [fact for kind in ("state", "stack") for fact in run.of(kind) if fact.rank in found.absent]
    dumped = {dump.rank for dump in run.dumps}
    if not dumped or len(found.absent) != 1 or not here or found.absent[0] in ended or not set(found.waiting) <= dumped:
        return []
    rank = found.absent[0]
    wait = found.of(rank)
    return [
        Finding(
            "process-stopped",
            f"{run.name(rank)} is there and answers nobody: {wait}, and it alone wrote no flight recorder's dump; it is stopped, or something in it "
            "holds the lock that its watchdog needs",
            run.blame([rank]),
            0.65,
            [*reading.quote(*here[:2]), *(wait.evidence[:2] if wait else ())],
            f"on {reading.place(here[0].host)}: grep State /proc/{here[0].pid or 'PID'}/status   # T (stopped): kill -CONT (SIGCONT), and "
            "find out who stopped it: SIGSTOP, a debugger, Ctrl-Z, a frozen cgroup; otherwise py-spy dump --native --pid PID",
        )
    ]


def _stopped(run: Run) -> list[Finding]:
    launchers = [
        Finding(
            "process-stopped",
            f"torchrun of {fact.host} (pid {fact.pid}) is stopped (process state T)",
            Culprit(hosts=[fact.host] if fact.host else None),
            0.95,
            reading.quote(fact),
            f"on {word(fact.host)}: kill -CONT {fact.pid}   # but first: who stopped it?",
        )
        for fact in run.of("launcher-stopped")
    ]
    stacks = {fact.rank: fact for fact in run.of("stack")}
    nameless = [fact for fact in run.of("stopped") if fact.rank is None]
    absent = waits.of(run).absent if len(nameless) == 1 else ()
    if len(absent) == 1:  # the only process that is stopped is the only rank that says nothing
        rank, fact = absent[0], nameless[0]
        launchers.append(
            Finding(
                "process-stopped",
                f"process {fact.pid or ''} is stopped (process state T); it is {run.name(rank)}, which alone says nothing: {waits.of(run).of(rank)}",
                run.blame([rank]),
                0.85,
                reading.quote(fact),
                f"on {reading.place(fact.host)}: kill -CONT {fact.pid or 'PID'}   # SIGCONT; but who sent SIGSTOP: a debugger, Ctrl-Z, a cgroup?",
            )
        )
    return launchers + [
        Finding(
            "process-stopped",
            f"{run.name(fact.rank)} is stopped (process state T) {reading.at(run, fact.rank)}{reading.bystanders(run, [fact.rank])}",
            run.blame([fact.rank]),
            0.97,
            reading.quote(fact, *([stacks[fact.rank]] if fact.rank in stacks else [])),
            f"on {reading.place(fact.host)}: kill -CONT {fact.pid or 'PID'}   # SIGCONT; but who stopped it? SIGSTOP, a debugger, Ctrl-Z, a cgroup",
        )
        for fact in run.of("stopped")
        if fact.rank is not None
    ]

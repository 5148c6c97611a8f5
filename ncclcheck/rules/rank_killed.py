"""A rank was killed by a signal, and its peers wait or fail because of it.

Signal 9 comes from the kernel's out-of-memory killer, from a scheduler or from a person: the culprit's kernel log
says which. Signals 7 and 11 point at its own code, its GPU driver or a full /dev/shm.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | gone | exit -9
    => 1

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection reset by peer
    rank 1 @ b: init, all_reduce... | gone -9
    => 1

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ a: init, all_reduce... | gone -9
    fact launcher-failed @ a code=-9
    => 1

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection reset by peer
    rank 1 @ b: init, all_reduce... | gone -9
    fact launcher-signalled @ b signal=15
    => 1

Blames
    rank 0 @ a: init...
    rank 1 @ b: init | exit -9
    fact launcher-failed @ b code=1
    => 1

Blames
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log rank0.log: [rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.3.4]:51234
    => 1

Blames
    log a.log: E0119 17:02:11.3 77 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: -11) local_rank: 3 (pid: 91) of binary: python
    log a.log: Fatal Python error: Segmentation fault
    => -

Blames
    log a.log: Received 1 death signal, shutting down workers
    => -

Blames
    log a.log: slurmstepd: error: *** STEP 7.0 ON gpu-1 CANCELLED AT 2026-01-02T10:00:00 DUE TO TIME LIMIT ***
    log a.log: srun: error: gpu-1: tasks 0-3: Terminated
    => -

Blames
    log a.log: W0102 10:00:00.1 77 torch/distributed/elastic/agent/server/api.py:753] Received Signals.SIGINT death signal, shutting down workers
    => -

Blames
    log a.log: E0102 10:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1003] failed (exitcode: -2) local_rank: 0 (pid: 4884) \
of binary: /usr/bin/python
    => -

Spares
    log a.log: slurmstepd: error: *** STEP 7.0 ON gpu-1 CANCELLED AT 2026-01-02T10:00:00 DUE TO TIME LIMIT ***
    log rank0.log: [rank0]: Traceback (most recent call last):
    log rank0.log: [rank0]: KeyError: 'labels'

Spares
    log fr_rank_0: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log fr_rank_2: {"pg_config": {"0": {"ranks": "[0, 1, 2]"}}, "pg_status": {"0": {"last_enqueued_collective": 9, "last_completed_collective": 7}}}
    log rank1.log: [rank1]:[E] [PG ID 0 PG GUID 0(default_pg) Rank 1] failure detected by watchdog at work sequence id: 8 PG status: last enqueued work: 9, last completed work: 7

Spares
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | gone 0

Spares
    rank 0 @ a: init, all_reduce
    rank 1 @ b: init, all_reduce
"""  # noqa: E501 (lines of logs)

import signal
from collections.abc import Mapping

from ncclcheck import waits
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = (
    "rank_stuck_in_python",
    "rank_died_exception",
    "rank_exited_early",
    "network_unreachable",
    "missing_rank_at_rendezvous",
    "peer_reset",
    "probe_crashed",
    "slow_rank",
    "gpu_kernel_stuck",
)

_REMEDY = (
    "dmesg -T | grep -i -E 'out of memory|oom|killed process|segfault|Xid'   # who sent the signal (SIGKILL: the OOM killer, a scheduler, a person); "
    "then free -h, or raise the memory limit of the job; its exit code stands in the launcher's log"
)


_TERMINAL = (
    "the terminal from which the job was started was closed (SIGHUP), and torchrun ended its ranks",
    "start it so that it outlives the terminal: tmux or screen, setsid, or sbatch; nohup alone does not, since torchrun handles SIGHUP itself",
    0.85,
)
_KEYBOARD = (
    "the job was interrupted at the keyboard (Ctrl-C, SIGINT)",
    "if it hung before: py-spy dump --pid PID of every rank while it does; TORCH_FR_BUFFER_SIZE=20000 with TORCH_NCCL_DUMP_ON_TIMEOUT=1 next time",
    0.55,
)
_ENDED_BY = {  # what the launcher says of the end -> what it means, what to do, how sure that is the cause
    "TIME LIMIT": (
        "Slurm ended the job at its time limit",
        "#SBATCH --time with more, or checkpoint and resume; if it made no progress before, it hung: py-spy dump --pid PID of every rank next time",
        0.6,
    ),
    "PREEMPTION": (
        "Slurm ended the job for another one (preemption)",
        "#SBATCH --requeue and resume from a checkpoint; another partition or QOS",
        0.85,
    ),
    "NODE FAILURE": ("a node of the job failed", "scontrol show node NODE; sinfo -R   # then drain it; sbatch --exclude NODE --requeue", 0.8),
    "2": _KEYBOARD,
    "SIGINT": _KEYBOARD,
    "1": _TERMINAL,
    "SIGHUP": _TERMINAL,
    "": (
        "the job was ended from outside by its launcher, a scheduler or a person",
        "scontrol show job JOB, sacct -j JOB, kubectl describe pod POD   # who ended it, and why? preemption, a limit, scancel, an eviction",
        0.55,
    ),
}


_CRASHED = (
    "export PYTHONFAULTHANDLER=1 shows the Python stack of a crash; ulimit -c unlimited, then gdb python core; dmesg -T | grep -iE 'segfault|Xid'; "
    "df -h /dev/shm (SIGBUS: it is full); then another release of the package whose library crashed"
)
_ABORTED = (
    "the lines above its end say why: an assertion, a C++ exception (what():), a corrupted heap, or torch's watchdog; "
    "export PYTHONFAULTHANDLER=1 shows the Python stack of the abort; ulimit -c unlimited, then gdb python core"
)


def check(run: Run) -> list[Finding]:
    """Ranks that died without a word of their own: as their launcher saw it, or because nothing but silence is left of them."""
    return _cancelled(run) or _ended_by_launcher(run) or _ended(run) or _unnamed(run) or _silent(run) or _interrupted(run)


def _interrupted(run: Run) -> list[Finding]:
    """Ranks that ended by Ctrl-C, and nothing else is known of their end."""
    facts = [fact for fact in run.of("exit") if fact.get("code") == -signal.SIGINT]
    title, remedy, confidence = _KEYBOARD
    return [Finding("rank-killed", title, Culprit(), confidence, reading.quote(*facts[:4]), remedy)] if facts and not reading.own_errors(run) else []


def _unnamed(run: Run) -> list[Finding]:
    """Processes killed by a signal of which no rank is known: the launcher says the local rank, or the pid alone."""
    codes = [fact for fact in run.of("exit") if fact.rank is None and -(fact.get("code") or 0) in (reading.CRASHES | {signal.SIGKILL})]
    own = [fact for fact in reading.own_errors(run) if fact.get("type") != "Fatal Python error"]
    if not codes or own or run.of("says") or run.dumps or run.of("served"):
        return []
    first = codes[0]
    who = f"local rank {first.get('local')}" if first.get("local") is not None else f"process {first.pid}" if first.pid else "a process"
    code = int(first.get("code"))
    culprit = Culprit(hosts=list(dict.fromkeys(fact.host for fact in codes if fact.host)) or None)
    return [Finding("rank-killed", f"{who} was killed by {_signal(code)}", culprit, 0.75, reading.quote(*codes[:6]), _remedy(code))]


def _cancelled(run: Run) -> list[Finding]:
    """A job that was ended from outside, and nothing else is known to be wrong with it."""
    facts = run.of("cancelled")
    others = ("says", "timeout", "position", "reset", "joined", "store-connect", "connect", "oom-kill", "stack", "xid", "ended")
    alone = [fact for fact in run.of("exit") if (fact.get("code") or 0) not in (0, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP, -signal.SIGINT)]
    if not facts or alone or run.dumps or any(run.of(kind) for kind in others) or reading.own_errors(run):
        return []
    why = next((str(fact.get("reason")) for fact in facts if fact.get("reason")), "")
    number = next((str(fact.get("signal")) for fact in facts if fact.get("signal")), "")
    key = next((key for key in _ENDED_BY if key in why or key == number.removeprefix("Signals.")), "")
    title, remedy, confidence = _ENDED_BY[key]
    return [Finding("rank-killed", title, Culprit(), confidence, reading.quote(*facts[:4]), remedy)]


def _silent(run: Run) -> list[Finding]:
    """Ranks that others wait for and that neither wrote a dump nor answer: no stack, no state, no error, no last position."""
    found = waits.of(run)
    told = {
        fact.rank
        for kind in ("error", "exit", "gone", "left", "stopped", "stack", "state", "zombie", "oom-kill", "ended-by-launcher")
        for fact in run.of(kind)
    }
    looked_at = {fact.rank for kind in ("stack", "state") for fact in run.of(kind)} & set(found.waiting)
    missed = {rank: fact for fact in run.of("ras") if fact.get("problem") == "incomplete" for rank in fact.get("ranks") or ()}
    resets = [fact for fact in run.of("reset") if fact.rank in found.waiting]
    if len(found.absent) != 1 or found.absent[0] in told or found.of(found.absent[0]) is None:
        return []
    if any(fact.rank is None for fact in reading.own_errors(run)):
        return []  # somebody raised, and it may be this one
    rank = found.absent[0]
    heard = any(fact.rank == rank and "NCCL" not in (fact.source.text if fact.source else "") for fact in run.of("last-line"))
    signs = [rank in missed, bool(resets), bool(run.dumps) and len(looked_at) > 1]
    if not any(signs):
        return []  # its dump may only not be in the heap
    evidence = [*reading.quote(*([missed[rank]] if rank in missed else []), *resets[:3]), *_wait_lines(found, rank)]
    silence = "; it wrote no flight recorder's dump, though its peers did" if run.dumps else ""
    return [
        Finding(
            "rank-killed",
            f"{run.name(rank)} is silent: {found.of(rank)}{silence}{', and connections to it closed' if resets else ''}",
            run.blame([rank]),
            0.5 + 0.12 * sum(signs) if heard else 0.7,  # without its own log: it may have raised, or left
            evidence,
            f"on {reading.place(next(iter(run.hosts([rank])), None))}: {_REMEDY}",
            [f"the end of rank {rank}'s log and its launcher's log", "dmesg -T of its host"],
        )
    ]


def _wait_lines(found: waits.Waits, rank: int) -> list[Evidence]:
    wait = found.of(rank)
    return list(wait.evidence[:3]) if wait else []


def _ended_by_launcher(run: Run) -> list[Finding]:
    """Ranks whose launcher was asked to end by a signal: whoever sent it wanted the job gone, and no rank is at fault."""
    facts = [fact for fact in run.of("launcher-signalled") if fact.host]
    hosts = list(dict.fromkeys(str(fact.host) for fact in facts))
    ranks = sorted({fact.rank for kind in ("exit", "gone") for fact in run.of(kind) if fact.rank is not None and fact.host in hosts})
    if not ranks:
        return []
    name = _signal(-int(facts[0].get("signal")))
    named = run.name(ranks[0]) if len(ranks) == 1 else f"{len(ranks)} ranks, {run.name(ranks[0])} among them"
    where = f", {reading.at(run, ranks[0])}{reading.bystanders(run, ranks)}" if run.steps else ""
    return [
        Finding(
            "rank-killed",
            f"torchrun of {', '.join(hosts[:8])} was asked to end by {name} (who sent it is not known), and ended {named}{where}",
            run.blame(ranks),
            0.95,
            reading.quote(*facts[:8], *(fact for fact in run.of("gone") if fact.rank in ranks[:4])),
            f"on {word(hosts[0])}: journalctl --since -10min | grep -iE 'slurm|kubelet|systemd|signal'; last -5"
            "   # a scheduler's limit or preemption, an "
            "eviction, a person? scontrol show job JOB, kubectl describe pod POD",
        )
    ]


def _ended(run: Run) -> list[Finding]:
    """One finding per rank that died without a word of its own."""
    spoke = {fact.rank for fact in run.of("error")}
    ended = {fact.rank for fact in run.of("ended-by-launcher")}  # because another one had failed
    codes = {fact.rank: fact for fact in run.of("exit") if fact.rank is not None}
    with_it = {
        fact.host: f"torchrun of {fact.host} was killed by {_signal(fact.get('code'))}, and with it "
        for fact in run.of("launcher-failed")
        if fact.get("code") < 0
    }
    gone_facts = {fact.rank: fact for kind in ("exit", "gone") for fact in run.of(kind)}
    result = []
    for rank, gone in gone_facts.items():
        if rank is None or rank in spoke or rank in ended:
            continue
        exit_ = codes.get(rank)
        code = exit_.get("code") if exit_ else gone.get("code")
        if code is not None and (code >= 0 or code == -signal.SIGINT or _follows(run, rank, code, codes)):
            continue
        how = f"was killed by {_signal(code)}" if code is not None else "is gone without a word (its exit code is not known)"
        where = f"{'' if code is not None else ', last seen'} {reading.at(run, rank)}{reading.bystanders(run, [rank])}" if run.steps else ""
        result.append(
            Finding(
                "rank-killed",
                f"{with_it.get(gone.host, '')}{run.name(rank)} {how}{where}",
                run.blame([rank]),
                0.97 if code is not None else 0.6,
                reading.quote(*([exit_] if exit_ and exit_ is not gone else []), gone),
                f"on {reading.place(gone.host)}: {_remedy(code)}",
            )
        )
    return result


def _remedy(code: int | None) -> str:
    """What helps against the end by this signal."""
    return _CRASHED if -(code or 0) in reading.CRASHES else _ABORTED if code == -signal.SIGABRT else _REMEDY


def _signal(code: int) -> str:
    """The name of the signal in an exit code below zero."""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _follows(run: Run, rank: int, code: int, codes: Mapping[int, Fact]) -> bool:
    """Whether the signal came because of another rank: the watchdog's abort after a time-out, the launcher's end of the survivors."""
    if -code == signal.SIGABRT:
        first = {fact.rank for fact in run.of("first-failure")}
        told = any(fact.rank == rank for kind in ("timeout", "position", "reset", "error") for fact in run.of(kind))
        return told or bool(first and rank not in first)
    return -code == signal.SIGTERM and any(-(fact.get("code") or 0) != signal.SIGTERM for fact in codes.values())

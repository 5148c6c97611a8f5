"""One rank is merely late: the job goes on, or would have, and everybody waits for it.

A rank that prepares data for all the others, reads from a slow disk, or computes more than its share is late at every
collective. Where that takes longer than the time-out, its peers fail though nothing is broken.

Blames
    log a.log: Map (num_proc=8):  61%|######    | 610/1000 [30:02<19:12,  2.95s/ examples]
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600031 milliseconds
    => 0

Blames
    log a.log: Downloading shards:  12%|#1        | 4/33 [09:57<1:11:02, 147.00s/it]
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600031 milliseconds
    => 0

Blames
    log a.log: Saving weights:  50%|#####     | 2/4 [09:57<09:57, 1.20it/s]
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600031 milliseconds
    => 0

Blames
    rank 0 @ a: init, all_reduce
    rank 1 @ b: init, all_reduce | slow
    => 1

Blames
    rank 0 @ a: init, all_reduce
    rank 1 @ b: init, all_reduce | late
    => 1

Spares
    rank 0 @ a: init, all_reduce
    rank 1 @ b: init, all_reduce | late | stopped

Spares
    log a.log: Training:  12%|#1        | 4/33 [09:57<1:11:02, 147.00s/it]
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600031 milliseconds

Spares
    log a.log: Map (num_proc=8): 100%|##########| 1000/1000 [30:02<00:00,  2.95s/ examples]
    log rank1.log: [rank1]:[E] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600031 milliseconds
"""  # noqa: E501 (lines of logs)

import re

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Finding, Run
from ncclcheck.rules import _reading as reading

READS = (
    Clue(
        "preparing",
        r"(?P<what>[A-Z][\w ()=-]{2,60}):\s{0,9}(?P<percent>\d{1,3})%\|[^|]{0,200}\|\s?(?P<done>\d+)/(?P<all>\d+) \[[^\]]{0,60} examples",
    ),
    Clue(
        "preparing",
        r"(?P<what>(?:Downloading|Fetching|Preprocessing|Tokenizing|Saving|Evaluating|Validating|Predicting|Packing|Converting|Extracting"
        r"|Uploading|Merging|Generating|Computing)[\w ]{0,40}):\s{0,9}(?P<percent>\d{1,3})%\|[^|]{0,200}\|\s?(?P<done>\d+)/(?P<all>\d+) "
        r"\[[^\]]{0,60}(?:it/s|s/it)",
    ),
)
_JOINT = re.compile(r"Evaluat|Validat|Predict|Generat|Comput")  # work that all ranks usually share


def check(run: Run) -> list[Finding]:
    """Work on data that was under way when the others' time was over; or counts of launched operations that differ while nobody complains."""
    return _measured(run) or _late(run) or _preparing(run) or _counts(run)


def _measured(run: Run) -> list[Finding]:
    """Ranks that spent more time outside of collectives than the others, while those waited inside."""
    return [
        Finding(
            "slow-rank",
            f"{run.name(fact.rank)} makes the others wait: of the last {fact.get('seconds')} s it spent {fact.get('worked')} s outside of "
            f"collectives, the others {fact.get('others')} s{_with_what(run, fact.rank)}",
            run.blame([fact.rank]),
            0.9,
            reading.quote(fact),
            f"on {_host(run, fact.rank)}: py-spy record --duration 10 --pid {run.ranks[fact.rank].pid if fact.rank in run.ranks else 'PID'}   "
            "# what takes longer there? and nvidia-smi -q -d CLOCK,PERFORMANCE; top; iostat -x 1",
        )
        for fact in run.of("slow")
        if fact.rank is not None
    ]


def _host(run: Run, rank: int) -> str:
    return reading.place(run.ranks[rank].host if rank in run.ranks else None)


def _with_what(run: Run, rank: int) -> str:
    """The local step that takes this rank much longer than the others."""
    for fact in run.of("lengthy"):
        if fact.rank == rank:
            return f"; mostly in {fact.get('step')}, {fact.get('longest')} s there and {fact.get('others')} s elsewhere"
    return ""


def _late(run: Run) -> list[Finding]:
    """Ranks that started long after the others, and did nothing worse."""
    failed = {fact.rank for kind in ("gone", "stopped", "error") for fact in run.of(kind)}
    return [
        Finding(
            "slow-rank",
            f"{run.name(fact.rank)} started {fact.get('seconds')} s after the others, which waited for it",
            run.blame([fact.rank]),
            0.85,
            reading.quote(fact),
            f"on {_host(run, fact.rank)}: what came before the program? journalctl --since -10min; "
            "an image that was fetched, a slow or busy disk (iostat -x 1), a queue of the scheduler",
        )
        for fact in run.of("late")
        if fact.rank is not None and not failed
    ]


def _preparing(run: Run) -> list[Finding]:
    """A progress bar that had not reached its end, while other ranks ran into a time-out."""
    waiting = [fact for kind in ("timeout", "position", "joined", "arrived", "reset", "store-wait") for fact in run.of(kind) if fact.rank is not None]
    waiting += [fact for fact in [*run.of("error"), *run.of("error-line")] if fact.rank is not None and "imed out" in str(fact.get("message", ""))]
    bars: dict[str, object] = {}
    for fact in run.of("preparing"):
        bars[str(fact.get("what"))] = fact
    open_bars = [fact for fact in run.of("preparing") if bars[str(fact.get("what"))] is fact and str(fact.get("percent")) != "100"]
    if not open_bars or not waiting:
        return []
    bar = open_bars[-1]
    late = {fact.rank for fact in waiting}
    rank = bar.rank if bar.rank is not None and bar.rank not in late else 0  # a bar without a name is rank 0's: the others print none
    if rank in late:
        return []
    return [
        Finding(
            "slow-rank",
            f"{run.name(rank)} was still at work on the data ({bar.get('what')}, {bar.get('done')} of {bar.get('all')}) when the others' time ended",
            run.blame([rank]),
            0.55 if _JOINT.match(str(bar.get("what"))) else 0.85,
            [*reading.quote(bar), *reading.quote(*waiting[:3])],
            "raise the time-out: init_process_group(timeout=timedelta(hours=3)), ddp_timeout in Hugging Face's TrainingArguments and axolotl; "
            "better, preprocess (tokenize, download) the data once, before the job, and let every rank read the cached result",
        )
    ]


def _counts(run: Run) -> list[Finding]:
    """NCCL RAS saw ranks one operation apart: in a snapshot of a running job that is the one that comes last."""
    if run.dumps or any(run.of(kind) for kind in ("timeout", "position", "exit", "gone", "stopped", "error")):
        return []
    apart = [fact for fact in run.of("ras") if fact.get("problem") == "mismatch"]
    if len(apart) < len(run.of("ras")):  # a process that is gone leaves the survivors at different counts
        return []
    behind: dict[int, int] = {}
    for fact in apart:
        counts = {int(count): ranks for count, ranks in dict(fact.get("counts") or {}).items()}
        for rank in counts[min(counts)] if len(counts) > 1 and max(counts) - min(counts) == 1 else ():
            behind[int(rank)] = behind.get(int(rank), 0) + 1
    late = sorted(rank for rank, times in behind.items() if times == len(apart))
    if not late:
        return []
    return [
        Finding(
            "slow-rank",
            f"{', '.join(run.name(rank) for rank in late[:4])} had launched one operation less than the others when NCCL was asked: late, or stuck",
            run.blame(late),
            0.55,
            reading.quote(*apart[:4]),
            "ask ncclras twice, 10 s apart: counts that grow mean a slow rank (a straggler), and py-spy record --pid PID there shows "
            "with what; counts that stay mean a stuck one, and py-spy dump --pid PID shows where. A slow network looks alike: measure its bandwidth",
            ["ncclras -v, twice", "py-spy dump --pid PID of every rank", "the flight recorder's dumps (TORCH_FR_BUFFER_SIZE=2000) of every rank"],
        )
    ]

"""Loading the weights takes long on some ranks, which is mistaken for a hang: the others wait for them in the first collective.

One node often reads from a slow or shared disk, or all of them read from the same one at once.

Blames
    log a.log: (Worker_TP0 pid=71) INFO 03-02 10:00:00 [default_loader.py:268] Starting load weights
    log a.log: (Worker_TP1 pid=72) INFO 03-02 10:00:00 [default_loader.py:268] Starting load weights
    log a.log: (Worker_TP1 pid=72) INFO 03-02 10:04:10 [default_loader.py:268] Loading weights took 249.10 seconds
    => 0

Blames
    log a.log: (Worker_TP0 pid=71) INFO 03-02 10:00:30 [default_loader.py:268] Loading weights took 29.10 seconds
    log a.log: (Worker_TP1 pid=72) INFO 03-02 10:09:00 [default_loader.py:268] Loading weights took 540.00 seconds
    log a.log: TimeoutError: RPC call to load_model timed out.
    => 1

Blames
    log a.log: Loading safetensors checkpoint shards:  12% Completed | 20/163 [21:40<2:30:00, 63.10s/it]
    => -

Blames
    log a.log: TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow weight loading for large models. \
Waited 600s
    => -

Blames
    log a.log: Loading safetensors checkpoint shards:  31% Completed | 5/16 [00:57<02:00, 11.41s/it]
    log a.log: [rank8]:[E] [Rank 8] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, \
Timeout(ms)=600000) ran for 600004 milliseconds before timing out.
    => -

Blames
    rank 0 @ a: init, barrier...
    rank 1 @ b: init | stack safetensors_weights_iterator (vllm/model_executor/model_loader/weight_utils.py:812)
    => 1

Spares
    log a.log: (Worker_TP0 pid=71) INFO 03-02 10:00:30 [default_loader.py:268] Loading weights took 29.10 seconds
    log a.log: (Worker_TP1 pid=72) INFO 03-02 10:00:40 [default_loader.py:268] Loading weights took 39.10 seconds

Spares
    log a.log: Loading safetensors checkpoint shards:  50% Completed | 2/4 [01:00<01:00, 30.10s/it]
    log a.log: (Worker_TP0 pid=71) INFO 03-02 10:02:30 [default_loader.py:268] Loading weights took 120.10 seconds
    log a.log: INFO:     Application startup complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Run
from ncclcheck.rules import _reading as reading

EXPLAINS = ("rank_stuck_in_python", "slow_rank")

_LOADER = re.compile(r"weights_iterator|model_loader/|load_weights|weight_utils\.py")
_MEETS = re.compile(r"distributed_c10d\.py|all_reduce|all_gather|broadcast|barrier")

LONG = 60.0  # seconds that a rank needed while others still load: longer than any start-up noise
SEVERAL_TIMES = 3.0  # how much longer than the quickest rank is not the same work any more
SLOW_SHARD = 20.0  # seconds per checkpoint file (5 GB, usually): under 250 MB/s

_DISK = (
    "iostat -x 5 and nfsiostat 5 on the slow node while it loads; copy the model to a local disk (local storage, NVMe) on every node, "
    "or stagger the readers; "
    "--safetensors-load-strategy=prefetch (vLLM) for a network file system; raise the time-out of whoever starts it (VLLM_ENGINE_READY_TIMEOUT_S; "
    "SGLang: --dist-timeout 3600 --watchdog-timeout 3600)"
)


def check(run: Run) -> list[Finding]:
    """Ranks that are still loading long after others ended, that took several times longer, or a pace that will take hours."""
    return [] if run.of("served") else [*_reading(run), *_behind(run), *_longest(run), *_pace(run), *_late(run)]


def _reading(run: Run) -> list[Finding]:
    """Ranks whose stack stands in an engine's loader of weights, and not in a collective."""
    stacks = [
        fact
        for fact in run.of("stack")
        if fact.rank is not None and _LOADER.search(text := "\n".join(fact.get("frames", ()))) and not _MEETS.search(text)
    ]
    ranks = sorted({fact.rank for fact in stacks if fact.rank is not None})
    if not ranks or len(ranks) == run.world_size:
        return []
    title = f"{_named(run, stacks)} still read{'s' * (len(ranks) == 1)} the model's weights, and the others wait"
    return [Finding("model-load-slow", title, run.blame(ranks), 0.75, reading.quote(*stacks[:8]), _DISK)]


def _behind(run: Run) -> list[Finding]:
    ended = run.of("load-ended")
    done = {_who(fact) for fact in ended}
    behind = list({_who(fact): fact for fact in run.of("load-begun") if _who(fact) not in done}.values())
    longest = max(map(_seconds, ended), default=0.0)
    if not behind or longest < LONG:
        return []
    title = f"loading the weights took {longest:.0f} s on {_named(run, ended)}, and {_named(run, behind)} had not finished"
    return [_finding(run, title, 0.7, [*behind, *ended], behind)]


def _longest(run: Run) -> list[Finding]:
    ended = sorted(run.of("load-ended"), key=_seconds)
    if len({_who(fact) for fact in ended}) < 2 or not (run.of("engine-timeout") or run.of("timeout")):
        return []
    quick, slow = ended[0], ended[-1]
    if _seconds(slow) < max(LONG, SEVERAL_TIMES * _seconds(quick)):
        return []
    title = f"loading the weights took {_seconds(slow):.0f} s on {_named(run, [slow])} and {_seconds(quick):.0f} s on {_named(run, [quick])}"
    return [_finding(run, title, 0.7, [slow, quick], [slow])]


def _pace(run: Run) -> list[Finding]:
    pace = run.of("load-pace")
    late = run.of("timeout") or run.of("engine-timeout")
    if run.of("load-ended") or not pace or (_seconds(pace[-1]) < SLOW_SHARD and not late):
        return []
    done, files = (int(pace[-1].get(name, 0)) for name in ("done", "of"))
    hours = _seconds(pace[-1]) * (files - done) / 3600
    title = f"the weights load at {_seconds(pace[-1]):.0f} s per file, {done} of {files} are there: {hours:.1f} hours more, and no hang"
    return [_finding(run, title, 0.7 if late else 0.65, [pace[-1], *late[:3]], [])] if done < files else []


def _late(run: Run) -> list[Finding]:
    """What vLLM itself supposes; a stack knows better."""
    late = run.of("engine-late")
    if not late or run.of("stack"):
        return []
    title = f"the engine was not ready after {late[0].get('seconds')} s, and says that slow loading is the usual reason"
    return [_finding(run, title, 0.55, late[:1], [])]


def _finding(run: Run, title: str, confidence: float, quoted: Sequence[Fact], slow: Sequence[Fact]) -> Finding:
    evidence: list[Evidence] = [fact.source for fact in quoted if fact.source][:8]
    ranks = sorted({fact.rank for fact in slow if fact.rank is not None})
    return Finding("model-load-slow", title, run.blame(ranks) if ranks else Culprit(), confidence, evidence, _DISK)


def _seconds(fact: Fact) -> float:
    return float(str(fact.get("seconds", 0)) or 0)


def _who(fact: Fact) -> tuple[int | None, int | None]:
    return fact.rank, fact.pid if fact.rank is None else None


def _named(run: Run, facts: Sequence[Fact]) -> str:
    ranks = sorted({fact.rank for fact in facts if fact.rank is not None})
    if not ranks:
        return "a process" if len(facts) == 1 else f"{len(facts)} processes"
    return run.name(ranks[0]) if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks[:8]))}"


READS = (Clue("engine-late", r"Timed out waiting for engine core processes to start\. .{0,200}?Waited (?P<seconds>\d+)s"),)

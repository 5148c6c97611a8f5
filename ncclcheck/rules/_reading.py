"""What several rules read out of a run in the same way."""

from __future__ import annotations

import errno
import math
import re
import signal

from ncclcheck.model import Evidence, Fact, Run, Step
from ncclcheck.safe_text import word
from ncclcheck.units import bytes_text

CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Signals that a process's own code, its driver or a full /dev/shm brings upon it."""

CONSEQUENCE = re.compile(
    r"[Cc]onnection (?:was likely )?(?:closed|reset|lost|aborted)|[Bb]roken pipe|recvValue\w* failed|sendBytes failed|Read error|Write error"
    r"|remote process exited|[Tt]imed out (?:waiting|initializing|after)|wait timeout after|Watchdog caught|has timed out after"
    r"|[Cc]aught collective operation timeout|Socket [Tt]imeout|Socket closed|Engine core initialization failed"
    r"|WorkerProc (?:initialization )?failed|Worker failed with error|EngineDeadError|encountered an issue|RPC call to .* timed out"
    r"|failed to recv, got \d+ bytes|[Hh]eartbeat|communicator was aborted|Application timeout caused pair closure"
    r"|The client socket has|store->get\(|retrieving ncclUniqueId|(?:failed to pass|successfully reached) monitoredBarrier|connectFullMesh failed"
    r"|nccl\w*Error|NCCL (?:error|failure)|unhandled (?:cuda|system) error|NCCL communicator|Aborting due to|background process|died unexpectedly"
    r"|terminated with (?:signal|exit code)|returned non-zero exit status|exit(?:ed|s)? with|The actor .*(?:died|dead)|ActorDied|ActorUnavailable"
    r"|workers? died|_store_based_barrier|another rank|remote rank|peer (?:gone|died)|cancelled|shutdown",
)
"""Errors that a rank shows because another one failed (never a cause by themselves)."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID_FULL = re.compile(rf"OSError: ?\[Errno.(?:{errno.ENOSPC}|{errno.EDQUOT})\]")

_WRAPPERS = re.compile(
    r"(?:^|\.)(?:Dist(?:Backend|Network|Store)?Error|ChildFailedError|SignalException|ProcessRaisedException|ProcessExitedException"
    r"|CalledProcessError|SystemExit|KeyboardInterrupt|BrokenPipeError|Connection\w*Error|EOFError|EndOfStream|CancelledError|IncompleteReadError"
    r"|Empty|Rendezvous\w*Error|Ray\w*Error|Actor\w*Error|WorkerCrashedError|NodeDiedError|OwnerDiedError|GetTimeoutError|EngineDeadError"
    r"|TimeoutError|HTTPException|HorovodInternalError)(?:\(\w+\))?$"
)
"""Errors of these types say that another process or a connection failed."""


def consequence(fact: Fact) -> bool:
    """Whether this error is only what the failure of another process looks like from here."""
    return bool(_WRAPPERS.search(str(fact.get("type", "")))) or bool(CONSEQUENCE.search(str(fact.get("message", ""))))


def could_not_write(fact: Fact) -> bool:
    """Whether an agent ended as its disk was full, or as its user may have no more of it: it says so itself, or node 0 heard it say so."""
    return fact.get("errno") in _FULL or bool(_SAID_FULL.match(str(fact.get("reason", ""))))


def said_there(run: Run) -> set[tuple[str, int]]:
    """The lines (file, number) in which a program states a cause that some rule knows."""
    return {(fact.source.file, fact.source.line) for fact in run.of("says") if fact.source}


def own_errors(run: Run) -> list[Fact]:
    """The first error of each process that is its own: none about another process, and none that a rule knows the cause of.

    What a launcher saw failing first comes first, then those with a time, the earliest first; the rest keep the order in which they stand.
    """
    known = said_there(run)
    first = {fact.rank for fact in run.of("first-failure") if fact.rank is not None}
    seen: set[object] = set()
    result = []
    for fact in [*run.of("error"), *run.of("error-line")]:
        where = (fact.source.file, fact.source.line) if fact.source else None
        process = (fact.source.file if fact.source else "", fact.rank, fact.pid)
        if process in seen or (where is None and fact.rank is None):
            continue
        if where in known:
            seen.add(process)
        elif not consequence(fact):
            seen.add(process)
            result.append(fact)
    return sorted(result, key=lambda fact: (fact.rank not in first, math.inf if fact.time is None else fact.time))


def at(run: Run, rank: int) -> str:
    """`in all_reduce 4 MiB (#130)`, `after barrier (#12)`, or `before its first step`."""
    step = run.last_steps().get(rank)
    if step is None:
        return "before its first step"
    return f"{'in' if step.inside else 'after'} {operation(step)}"


def operation(step: Step) -> str:
    """`all_reduce 4 MiB (#130)`, or with the phase that it is in `vllm engine start, phase weights (#1)`."""
    size = f" {bytes_text(step.nbytes)}" if step.nbytes else ""
    number = "" if step.local else f" (#{step.seq})"
    phase = f", phase {step.phase}" if step.phase else ""
    return f"{step.name}{size}{phase}{number}"


def waiting(run: Run, culprits: list[int]) -> list[Step]:
    """The collectives in which the other ranks sit now, the newest first."""
    return [step for step in run.once(_inside) if step.rank not in culprits]


def bystanders(run: Run, culprits: list[int]) -> str:
    """`; 7 ranks wait in all_reduce (#130)`, or nothing."""
    steps = run.once(_inside)
    last = run.last_steps()
    count = len(steps) - sum(_is_inside(last[rank]) for rank in set(culprits) & last.keys())
    if not count:
        return ""
    newest = next(step for step in steps if step.rank not in culprits)
    who = run.name(newest.rank) + " waits" if count == 1 else f"{count} ranks wait"
    return f"; {who} in {operation(newest)}"


def _inside(run: Run) -> list[Step]:
    return sorted(filter(_is_inside, run.last_steps().values()), key=lambda step: -step.seq)


def _is_inside(step: Step) -> bool:
    return step.inside and not step.local


def phases(run: Run) -> str:
    """`; vllm engine start was in its phase rendezvous on rank 0, weights on rank 1`, of the ranks that are in a step with phases; or nothing."""
    where: dict[tuple[str, str], list[int]] = {}
    for rank, step in run.last_steps().items():
        if step.inside and step.phase:
            where.setdefault((step.name, step.phase), []).append(rank)
    if not where:
        return ""
    ranks = {phase: f"rank {members[0]}" if len(members) == 1 else f"{len(members)} ranks" for (_, phase), members in where.items()}
    return f"; {next(iter(where))[0]} was in its phase {', '.join(f'{phase} on {who}' for phase, who in ranks.items())}"


def place(host: str | None) -> str:
    """The host as a remedy names it; `its host` where none is known."""
    return word(host) if host else "its host"


def quote(*facts: Fact) -> list[Evidence]:
    """The lines that these facts stand on; where a fact is an observation of the agent, it is said in words."""
    return [fact.source or Evidence("", 0, _said(fact)) for fact in facts]


def positions(run: Run, ranks: list[int]) -> list[Evidence]:
    """Where these ranks announced themselves last, as their shared memory shows it; at most eight."""
    return [Evidence("", 0, f"{run.name(rank)} is {at(run, rank)}") for rank in ranks[:8]]


def error(fact: Fact) -> str:
    """`ValueError: the first line of its message`."""
    message = str(fact.get("message") or "").strip()
    return f"{fact.get('type')}: {message.splitlines()[0][:200]}" if message else str(fact.get("type"))


def _said(fact: Fact) -> str:
    who = " ".join(part for part in (f"rank {fact.rank}" if fact.rank is not None else "", f"on {fact.host}" if fact.host else "") if part)
    what = ", ".join(f"{key} {value}" for key, value in fact.fields.items())
    return f"{fact.kind} ({who}): {what}" if who else f"{fact.kind}: {what}"

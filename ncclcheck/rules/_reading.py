"""What several rules read out of a run in the same way."""

from __future__ import annotations

import re

from ncclcheck.model import Evidence, Fact, Run, Step
from ncclcheck.units import bytes_text

CONSEQUENCE = re.compile(
    r"Connection (closed by|reset by) peer|[Bb]roken pipe|recvValue failed|ncclRemoteError|remote process exited|Read error|Write error"
    r"|Timed out waiting|wait timeout after|Watchdog caught|Engine core initialization failed|EngineDeadError|RPC call to .* timed out"
    r"|Socket closed|failed to recv, got 0 bytes|heartbeat|NCCL communicator was aborted|Application timeout caused pair closure",
)
"""Errors that a rank shows because another one failed (never a cause by themselves)."""


def at(run: Run, rank: int) -> str:
    """`in all_reduce 4 MiB (#130)`, `after barrier (#12)`, or `before its first step`."""
    step = run.last_steps().get(rank)
    if step is None:
        return "before its first step"
    return f"{'in' if step.inside else 'after'} {operation(step)}"


def operation(step: Step) -> str:
    """`all_reduce 4 MiB (#130)`."""
    size = f" {bytes_text(step.nbytes)}" if step.nbytes else ""
    number = "" if step.local else f" (#{step.seq})"
    return f"{step.name}{size}{number}"


def waiting(run: Run, culprits: list[int]) -> list[Step]:
    """The collectives in which the other ranks sit now."""
    return [step for rank, step in run.last_steps().items() if step.inside and not step.local and rank not in culprits]


def bystanders(run: Run, culprits: list[int]) -> str:
    """`; 7 ranks wait in all_reduce (#130)`, or nothing."""
    steps = waiting(run, culprits)
    if not steps:
        return ""
    newest = max(steps, key=lambda step: step.seq)
    who = run.name(steps[0].rank) + " waits" if len(steps) == 1 else f"{len(steps)} ranks wait"
    return f"; {who} in {operation(newest)}"


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

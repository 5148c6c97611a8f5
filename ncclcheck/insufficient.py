"""The answer when no rule knows: what is known, where every rank was seen last, and exactly what to collect next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ncclcheck import waits
from ncclcheck.model import Evidence, Fact, Finding, Run

CONSEQUENCES = ("timeout", "reset", "error", "traceback", "connect", "joined", "ras", "collective-stack", "clock")
"""Kinds of facts that show that something is wrong and not why, the most telling first."""
MOST_QUOTES = 6
_RECORDER = """export TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_FR_BUFFER_SIZE=2000 TORCH_FR_DUMP_TEMP_FILE=/tmp/nccl_trace_rank_   # flight recorder
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DEBUG_INFO_TEMP_FILE=/tmp/nccl_trace_rank_   # the same for torch before 2.9"""


def finding(run: Run) -> Finding:
    """Never says more than the evidence does."""
    found = waits.of(run)
    where = ", ".join(f"{run.name(rank)} {'in' if step.inside else 'after'} {step.name} #{step.seq}" for rank, step in run.last_steps().items())
    where = where or _waits(found)
    symptoms = [fact for kind in CONSEQUENCES for fact in run.of(kind)]
    clock = next((str(fact.get("which")) for fact in run.of("clock")), "")
    known = clock or (
        f"{_seen(symptoms[0])}, which is a consequence" if symptoms else "no error is in the evidence" if run.facts or run.dumps else _empty(run)
    )
    quotes = [fact.source for fact in [*symptoms, *run.of("last-line"), *run.facts] if fact.source is not None]
    quotes = [*(line for wait in found.waits for line in wait.evidence[:2]), *quotes]
    return Finding(
        "insufficient-evidence",
        known + (", and nothing that was seen says why" if run.facts or run.dumps or run.steps else "") + (f": {where}" if where else _heard(run)),
        confidence=0.3,
        evidence=list(dict.fromkeys(quotes))[:MOST_QUOTES] or [Evidence("", 0, f"{known}; {where or 'no rank announced itself'}")],
        remedy="\n".join(_next(run)),
        collect=list(_lacking(run)),
    )


def _waits(found: waits.Waits) -> str:
    """`6 ranks wait in all_reduce #20 of default_pg; nothing is known of ranks 6, 7: look there first`."""
    if not found.waits:
        return ""
    wait = found.held or max(found.waits, key=lambda wait: len(wait.waiting))
    if not wait.behind and not wait.unknown and len(set(wait.inside.values())) == 1:
        return f"all {len(wait.waiting)} ranks are in {wait.what or 'the collective'} #{wait.seq} of {wait.group}, nobody is behind"
    if not wait.behind and not wait.unknown:
        return f"{len(wait.waiting)} ranks are in different calls of {wait.group}, #{wait.seq} to #{max(wait.inside.values())}"
    behind = f"; {_ranks(wait.behind)} {'have' if len(wait.behind) > 1 else 'has'} not issued it" if wait.behind else ""
    return f"{wait}{behind}" + (f"; nothing is known of {_ranks(wait.unknown)}: look there first" if wait.unknown else "")


def _ranks(ranks: Sequence[int]) -> str:
    """`ranks 6, 7`; of many the first ones, and how many more there are."""
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{more}"


def _empty(run: Run) -> str:
    """`there is nothing to read in train.log`."""
    return "there is nothing to read" + (f" in {', '.join(run.sources[:4])}" if run.sources else "")


def _seen(fact: Fact) -> str:
    """`rank 3 timed out in ALLREDUCE #47`."""
    who = f"rank {fact.rank}" if fact.rank is not None else fact.host or "a process"
    match fact.kind:
        case "timeout":
            return f"{who} timed out in {fact.get('op', 'a collective')} #{fact.get('seq', '?')}"
        case "reset":
            return f"{who} lost its connection to a peer"
        case "connect":
            return f"{who} could not connect to {fact.get('address', 'a peer')}"
        case "joined":
            return f"{fact.get('there', '?')} of {fact.get('expected', '?')} ranks had joined"
        case "error" | "traceback":
            return f"{who} raised {fact.get('type', 'an error')}"
    return f"{who} reported a {fact.kind}"


def _heard(run: Run) -> str:
    """`; ranks 0-2 of 4 are in the evidence`."""
    if not run.ranks:
        return ""
    silent = _silent(run)
    missing = f"; nothing is there of {_ranks(silent)}" if silent else ""
    return f"; {len(run.ranks)} rank{'s' * (len(run.ranks) > 1)} of {run.world_size or 'an unknown number'} are in the evidence{missing}"


def _silent(run: Run) -> list[int]:
    """The ranks of which nothing is in the evidence; none in a world too large to list."""
    return sorted(set(range(run.world_size or 0)) - set(run.ranks)) if (run.world_size or 0) <= 4096 else []


def _next(run: Run) -> Iterator[str]:
    yield "read the first error of every rank's whole log, rank 0 first: what stands here came later than its cause"
    if not run.of("nccl-version") and not run.of("init"):
        yield "export NCCL_DEBUG=INFO NCCL_DEBUG_FILE=/tmp/nccl.%h.%p.log   # on every node, then run again"
    if not run.dumps:
        yield f"{_RECORDER}, on every node, then run again"


def _lacking(run: Run) -> Iterator[str]:
    """What is not in the evidence, as commands for this job."""
    stacks = {fact.rank for fact in run.of("stack")}
    first = {rank for wait in waits.of(run).waits for rank in (*wait.behind, *wait.unknown)}
    unseen = sorted((identity for rank, identity in run.ranks.items() if rank not in stacks), key=lambda identity: identity.rank not in first)
    for identity in unseen[:8]:
        yield f"py-spy dump --pid {identity.pid or 'PID'}   # rank {identity.rank}{f' on {identity.host}' if identity.host else ''}, while it hangs"
    if not run.ranks:
        yield "py-spy dump --pid PID   # the stack of every rank, while it hangs; or `ncclcheck collect` on every node"
    elif len(unseen) > 8 or not unseen:
        yield "ncclcheck collect   # on every node while it hangs: stacks, states and settings of all its ranks"
    if run.ranks and (silent := _silent(run)):
        yield f"the log of rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent[:16]))}: nothing of theirs is here"
    if not run.dumps:
        yield "the flight recorder's dump (nccl_trace_rank_*) of every rank"
    if not run.of("ras"):
        yield "ncclras -v   # on any node while it hangs (NCCL RAS, 2.24 and newer)"
    if not run.of("xid") and not run.of("oom-kill"):
        yield "dmesg -T | grep -iE 'xid|nvrm|oom|killed|link'; nvidia-smi -q   # on every host"
    if run.of("reset") or run.of("connect"):
        yield "ping and nc -vz between the hosts, ip -s link on each: whether the link between them is up"
    engines: Sequence[Fact] = [*run.of("worker-died"), *run.of("vllm-version"), *run.of("ray")]
    if engines:
        yield "the log of the worker that ended first (Ray: /tmp/ray/session_latest/logs/worker-*; `ray logs`)"

"""Why a `vllm serve` does not serve, as failures of a probe: what was seen of its processes, what it said, and where it stands still. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ncclcheck import triage
from ncclcheck.evidence import text
from ncclcheck.model import Fact, Run
from ncclcheck.safe_text import word
from ncclcheck.vllm_board import Notes, behind
from ncclcheck.vllm_failures import fail

STILL = 0.6  # confidence in what a place where nothing moves means


@dataclass(frozen=True, slots=True)
class Seen:
    """What one node saw of its server: phase, log, processes that were killed (pid -> minus the signal), are stopped, or raised an exception
    and live on (pid -> its words), and its workers (rank -> pid).
    """

    host: str
    node: int
    phase: str
    lines: Sequence[str] = ()
    errors: Sequence[str] = ()
    killed: Mapping[int, int] = field(default_factory=dict)
    stopped: Sequence[int] = ()
    raised: Mapping[int, str] = field(default_factory=dict)
    workers: Mapping[int, int] = field(default_factory=dict)
    ranks: Sequence[int] = ()  # of the launch on that node; Ray may number the nodes otherwise


def seen_here(seen: Seen) -> list[Fact]:
    """What happened to processes of this node: killed, crashed or stopped. Empty for what may be a consequence of something elsewhere."""
    told = []
    for pid in seen.stopped:
        title = f"{_who(seen, pid)} is stopped (process state T) in phase {seen.phase}"
        remedy = f"on {word(seen.host)}: kill -CONT {pid}   # but first: who stopped it? SIGSTOP, a debugger, a cgroup"
        told.append(fail("process-stopped", title, **_blamed(seen, pid), remedy=remedy))
    for pid, code in seen.killed.items():
        title = f"{_who(seen, pid)} was killed by {_signal(-code)} in phase {seen.phase}"
        remedy = f"on {word(seen.host)}: dmesg -T | grep -i -E 'out of memory|oom|killed process|segfault|Xid'   # who sent the signal"
        told.append(fail("rank-killed", title, **_blamed(seen, pid), remedy=remedy))
    workers_first = sorted(told, key=lambda fact: fact.get("ranks") is None)
    return workers_first[:1]  # what else ended, ended with it


def stated(seen: Seen) -> list[Fact]:
    """The causes that vLLM states beyond doubt in its log."""
    blamed = next((_blamed(seen, pid) for pid in seen.raised), {"hosts": [seen.host]})
    return [
        fail(found.cause, f"{found.title} (vllm serve on {seen.host}, phase {seen.phase})", **blamed, remedy=found.remedy,
             evidence=_quotes(found.evidence))
        for found in triage.stated_by(seen.lines, log_name(seen.node))
    ]  # fmt: skip


def log_name(node: int) -> str:
    """The file in the run directory that takes what a node's server prints."""
    return f"vllm-node{node}.log"


def guessed(seen: Seen, why: str) -> Fact:
    """The best that the log carries where nobody knows better: what a worker raised at least; `why` is what ended the wait."""
    found = triage.findings(Run(facts=list(text.lines(seen.lines, log_name(seen.node)))))[0]
    unsaid = triage.UNDECIDED | {"no-problem-found"} | ({"rank-died-exception"} if seen.raised else set())
    if found.confidence >= triage.LIKELY and found.cause not in unsaid:
        title = f"vllm serve on {seen.host}, phase {seen.phase}: {found.title}"
        return fail(found.cause, title, confidence=found.confidence, remedy=found.remedy, evidence=_quotes(found.evidence) or list(seen.errors))
    proof: dict[str, Any] = {"evidence": list(seen.errors), "remedy": f"read {log_name(seen.node)} of {seen.host} in the run directory"}
    for pid, error in seen.raised.items():
        return fail("rank-died-exception", f"{_who(seen, pid)} raised {error} in phase {seen.phase}", **_blamed(seen, pid), **proof)
    return fail("rank-died-exception", f"{why} ({seen.host})", confidence=0.7, hosts=[seen.host], **proof)


def still(notes: Notes, order: Sequence[str], seen: Seen, seconds: float) -> Fact:
    """What it means that nothing moves: a node that is behind the others, or the phase that all are in."""
    hosts = {node: str(note.get("host", f"node {node}")) for node, note in notes.items()}
    where = ", ".join(f"{hosts[node]}: {note.get('phase')}" for node, note in sorted(notes.items()))
    late = behind(notes, order)
    proof: dict[str, Any] = {"confidence": STILL, "evidence": [where, *seen.errors]}
    if late and seen.phase not in ("weights",):
        names = ", ".join(hosts[node] for node in late)
        at = notes[late[0]].get("phase")
        title = f"vllm serve on {names} came no further than phase {at}, and the others wait for it ({seconds:.0f} s)"
        remedy = f"read {log_name(late[0])} of {names} in the run directory; py-spy dump --pid of the process there that is busy or waits"
        return fail("missing-rank-at-rendezvous", title, hosts=[hosts[node] for node in late], remedy=remedy, **proof)
    stuck = f"vllm serve stands still in phase {seen.phase} on {', '.join(hosts.values()) or seen.host} ({seconds:.0f} s)"
    match seen.phase:
        case "rendezvous":
            return fail("blocked-port", f"{stuck}: its workers do not meet at the master's port", **proof)
        case "groups" if any("Failed to get the IP address" in line for line in seen.lines):
            return fail("vllm-host-ip", f"{stuck}: vLLM found no address of {seen.host}", hosts=[seen.host], **proof)
        case "groups":
            return fail("wrong-interface", f"{stuck}: its workers met, and do not connect to each other", **proof)
        case "weights":
            return fail("model-load-slow", stuck, hosts=[seen.host], **proof)
        case _:
            return fail("rank-stuck-in-python", stuck, hosts=[seen.host], **proof)


def _who(seen: Seen, pid: int) -> str:
    rank = next((rank for rank, worker in seen.workers.items() if worker == pid), None)
    return f"vLLM's worker of rank {rank} ({seen.host}, pid {pid})" if rank is not None else f"vLLM's process {pid} on {seen.host}"


def _blamed(seen: Seen, pid: int) -> dict[str, Any]:
    ranks = [rank for rank, worker in sorted(seen.workers.items()) if worker == pid]
    if ranks and seen.ranks and ranks[0] not in seen.ranks:  # by its place among the node's workers
        ranks = list(seen.ranks[sorted(seen.workers).index(ranks[0]) :][:1])
    return {"ranks": ranks} if ranks else {"hosts": [seen.host]}


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _quotes(evidence: Sequence[Any]) -> list[str]:
    return [quoted.text.strip() for quoted in evidence[:4]]

"""Every rule over one Run: causes are kept, what they explain is dropped, and one sentence is made of the rest."""

from __future__ import annotations

from collections.abc import Sequence

from ncclcheck import registry
from ncclcheck.causes import CAUSES
from ncclcheck.model import Culprit, Evidence, Finding, Outcome, ProbeResult, Run, Status, Verdict

UNDECIDED = frozenset({"agent-lost", "insufficient-evidence", "permission-denied", "probe-crashed"})
"""Causes that leave the question open: they make a verdict unknown, not not-ready."""


def findings(run: Run) -> list[Finding]:
    """The causes found in a run, best first; insufficient-evidence where no rule knows better."""
    rules = {name: registry.load("rules", name) for name in registry.names("rules")}
    found = {name: rule.check(run) for name, rule in rules.items()}
    explained = {symptom for name, results in found.items() if results for symptom in getattr(rules[name], "EXPLAINS", ())}
    return order([*reported(run), *(finding for name, results in found.items() if name not in explained for finding in results)]) or [_open(run)]


def reported(run: Run) -> list[Finding]:
    """What a probe found itself (facts of kind "fail") and what an engine's log states (kind "engine-error")."""
    result: list[Finding] = []
    for fact in [*run.of("fail"), *run.of("engine-error")]:
        ranks = fact.get("ranks", [fact.rank] if fact.kind == "engine-error" and fact.rank is not None else None)
        culprit = run.blame(ranks) if ranks else Culprit(hosts=[fact.host] if fact.host and fact.kind == "engine-error" else None)
        evidence = [fact.source] if fact.source else []
        same = next((other for other in result if (other.cause, other.title) == (fact.get("cause"), fact.get("title"))), None)
        if same is None:
            remedy = fact.get("remedy") or CAUSES[fact.get("cause")].remedy
            result.append(Finding(fact.get("cause"), fact.get("title"), culprit, float(fact.get("confidence", 0.95)), evidence, remedy))
    return result


def order(found: Sequence[Finding]) -> list[Finding]:
    """Best first: by confidence; what leaves the question open comes last. One finding per cause and title."""
    unique = {(finding.cause, finding.title): finding for finding in reversed(found)}
    return sorted(reversed(unique.values()), key=lambda finding: (finding.cause in UNDECIDED, -finding.confidence))


def verdict(
    found: Sequence[Finding],
    lacking: Sequence[Finding],
    probes: Sequence[ProbeResult],
    *,
    emulated: bool,
    not_asked: Sequence[str],
    ranks: int,
    nodes: int,
) -> Verdict:
    """One status and one sentence. A probe that could not decide, or was required and could not run, never counts as passed.

    `found` are the causes that speak against the cluster; `lacking` is what kept a required probe from running.
    """
    certain = [finding for finding in found if finding.cause not in UNDECIDED]
    findings = [*found, *lacking]
    states = {probe.status for probe in probes}
    tail = f"; not asked: {', '.join(not_asked)}" if not_asked else ""
    if Status.FAIL in states or certain:
        reason = certain[0].title if certain else next(probe.detail for probe in probes if probe.status is Status.FAIL)
        return Verdict(Outcome.NOT_READY, f"{reason}{tail}", findings)
    undecided = [probe for probe in probes if probe.status in (Status.SKIP, Status.UNKNOWN, Status.CRASHED)]
    if undecided or findings or not probes:
        reason = findings[0].title if findings else f"{undecided[0].name}: {undecided[0].detail}" if undecided else "no probe was asked for"
        names = f" ({', '.join(probe.name for probe in undecided)})" if undecided else ""
        return Verdict(Outcome.UNKNOWN, f"not proven{names}: {reason}{tail}", findings)
    place = " (emulated on this machine; your cluster was not tested)" if emulated else ""
    what = f"{ranks} rank{'s' * (ranks != 1)} on {nodes} node{'s' * (nodes != 1)}"
    if Status.DEGRADED in states:
        return Verdict(Outcome.DEGRADED, f"degraded{place}: {next(p.detail for p in probes if p.status is Status.DEGRADED)}{tail}", findings)
    return Verdict(Outcome.READY, f"ready{place}: {what} passed {', '.join(probe.name for probe in probes)}{tail}", findings)


def _open(run: Run) -> Finding:
    where = ", ".join(f"{run.name(rank)} {'in' if step.inside else 'after'} {step.name} #{step.seq}" for rank, step in run.last_steps().items())
    clock = next((fact.get("which") for fact in run.of("clock")), "something")
    evidence = [fact.source for fact in run.facts if fact.source is not None][:3] or [
        Evidence("", 0, f"{clock}; {where or 'no rank announced itself'}")
    ]
    return Finding(
        "insufficient-evidence",
        f"{clock}, and nothing that was seen says why" + (f": {where}" if where else ""),
        confidence=0.3,
        evidence=evidence,
        remedy="read the ranks' logs in the run directory; run again with NCCL_DEBUG=INFO and TORCH_DISTRIBUTED_DEBUG=DETAIL exported on every node",
        collect=["py-spy dump --pid PID of every rank", "dmesg -T | tail -50 on every node", "NCCL_DEBUG=INFO output of every rank"],
    )

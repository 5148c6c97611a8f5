"""Every rule over one Run: causes are kept, what they explain is dropped, and one sentence is made of the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ncclcheck import attempts, insufficient, registry, stated
from ncclcheck.causes import CAUSES
from ncclcheck.evidence import text
from ncclcheck.model import Culprit, Evidence, Fact, Finding, Outcome, ProbeResult, Run, Status, Verdict
from ncclcheck.rules import _reading as reading

UNDECIDED = frozenset(
    {
        "agent-lost",
        "evidence-unread",
        "insufficient-evidence",
        "invalid-message",
        "no-token",
        "order-refused",
        "permission-denied",
        "probe-crashed",
        "rpc-timeout",
        "unsafe-input",
    }
)
"""Causes that leave the question open: they make a verdict unknown, not not-ready."""

UNREAD = frozenset({"evidence-unread", "unsafe-input"})
"""Causes that say that not all of the evidence was read: they make every other less sure, and nothing healthy."""

SLOWER = frozenset({"slow-rank", "slow-network", "slow-link", "slow-gpu", "link-interrupted"})
"""Causes by which a job is slower than it could be: alone they make a verdict degraded."""

ENDS = frozenset({"rank-killed", "rank-died-exception", "rank-died-oom", "rank-exited-early"})
"""Causes that name the rank that ended: something that happened elsewhere does not explain them. Other symptoms show at whoever waits."""

STOP, DEGRADATION = "stop", "degradation"
"""How grave a finding is: a launch would fail, hang or be wrong; or it would work, and slower or less safely than it could."""

_SEVERITIES = {"fail": STOP, "degraded": DEGRADATION}

GUESS = 0.45  # the most that is given to what an earlier attempt of the job failed of
SURE = 0.7  # confidence from which a cause explains symptoms that are stated outright
BEYOND_DOUBT = 0.9  # confidence that a log alone must carry for a probe to fail by it
MOST_OF_CAUSE = 100  # findings of one cause that are kept, the surest
PARTLY = 0.75  # the most that is given to a cause where evidence was left unread
LIKELY = 0.5  # confidence below which a cause is a guess: it is said, and so is what would decide it


def findings(run: Run) -> list[Finding]:
    """The causes found in a run, best first; insufficient-evidence where no rule knows better."""
    alive, now = attempts.newest(run)
    found = _found(now)
    if now is not alive:  # what ended an earlier attempt is a guess at most
        earlier = [finding for finding in _found(alive) if (finding.cause, finding.title) not in {(other.cause, other.title) for other in found}]
        found += [replace(finding, confidence=min(finding.confidence, GUESS)) for finding in earlier]
    return order(_unexplained(found)) or [insufficient.finding(now)]


def _found(run: Run) -> list[Finding]:
    """What all rules find."""
    return [*reported(run), *(finding for name in registry.names("rules") for finding in _guarded(run, name))]


def _unexplained(found: Sequence[Finding]) -> list[Finding]:
    """The findings without the symptoms of others. Of two that explain each other and are as sure, the first is kept."""
    ordered = _few(sorted(found, key=lambda finding: -finding.confidence))
    explaining: dict[str, list[tuple[int, Finding]]] = {}
    for at, cause in enumerate(ordered):
        for name in _symptoms(cause.cause):
            explaining.setdefault(name.replace("_", "-"), []).append((at, cause))
    return [
        symptom
        for index, symptom in enumerate(ordered)
        if not any(_explains(cause, symptom) and (at < index or not _explains(symptom, cause)) for at, cause in explaining.get(symptom.cause, ()))
    ]


def _few(ordered: Sequence[Finding]) -> list[Finding]:
    """The findings, of one cause at most MOST_OF_CAUSE: nobody reads more, and each is compared with the others."""
    of_cause: dict[str, list[Finding]] = {}
    for finding in ordered:
        of_cause.setdefault(finding.cause, []).append(finding)
    left = {cause: len(same) - MOST_OF_CAUSE for cause, same in of_cause.items() if len(same) > MOST_OF_CAUSE}
    last = {id(of_cause[cause][MOST_OF_CAUSE - 1]): more for cause, more in left.items()}
    kept = {id(finding) for same in of_cause.values() for finding in same[:MOST_OF_CAUSE]}
    return [
        replace(finding, title=f"{finding.title}; and {last[id(finding)]} more findings like this") if id(finding) in last else finding
        for finding in ordered
        if id(finding) in kept
    ]


def _explains(cause: Finding, symptom: Finding) -> bool:
    """Whether one finding is why there is the other: its rule says so, it is as sure or sure enough, and an end elsewhere is another end."""
    return (
        _name(symptom.cause) in _symptoms(cause.cause)
        and cause.confidence >= min(symptom.confidence, SURE)
        and (symptom.cause not in ENDS or _meet(cause.culprit, symptom.culprit))
    )


def _name(cause: str) -> str:
    return cause.replace("-", "_")


@functools.cache
def _symptoms(cause: str) -> tuple[str, ...]:
    """The rules whose findings are only symptoms of a cause; of a cause that has no rule, as only probes find it, none are."""
    name = _name(cause)
    return getattr(registry.load("rules", name), "EXPLAINS", ()) if name in registry.names("rules") else ()


def _meet(one: Culprit, other: Culprit) -> bool:
    """Whether two culprits may be the same: they share a rank, or a host where ranks are unknown, or one of them names nobody."""
    for mine, its in ((one.ranks, other.ranks), (one.hosts, other.hosts)):
        if mine and its:
            return not set(mine).isdisjoint(its)
    return True


def stated_by(lines: Iterable[str], file: str) -> list[Finding]:
    """The causes that a program's own words name beyond doubt; that something was raised is told by whoever catches it."""
    found = findings(Run(facts=list(text.lines(lines, file))))
    return [finding for finding in found if finding.confidence >= BEYOND_DOUBT and finding.cause not in UNDECIDED | {"rank-died-exception"}]


def of_rule(run: Run, name: str) -> list[Finding]:
    """What one rule finds: its statements that stand in the evidence, and what its check concludes."""
    rule = registry.load("rules", name)
    return [*stated.findings(run, name), *(rule.check(run) if hasattr(rule, "check") else [])]


def _guarded(run: Run, name: str) -> list[Finding]:
    """The same; a rule that fails on evidence that nobody foresaw is a finding of its own, and the others are still heard."""
    try:
        return of_rule(run, name)
    except Exception as error:
        title = f"ncclcheck's own rule {name} failed on this evidence: {type(error).__name__}: {error}"
        remedy = "report it to ncclcheck with the evidence, if you may share it"
        return [Finding("probe-crashed", title[:300], confidence=0.3, evidence=[Evidence("", 0, title[:300])], remedy=remedy)]


def reported(run: Run) -> list[Finding]:
    """What a probe found itself: facts of kind "fail", and of kind "degraded" where a launch would work even so."""
    found = [_reported(run, fact, severity) for kind, severity in _SEVERITIES.items() for fact in run.of(kind)]
    return list({(finding.cause, finding.title): finding for finding in reversed(found)}.values())[::-1]


def _reported(run: Run, fact: Fact, severity: str) -> Finding:
    culprit = run.blame(fact.get("ranks")) if fact.get("ranks") else Culprit()
    named = {part: fact.get(part) for part in ("hosts", "devices", "interface", "link") if fact.get(part)}
    return Finding(
        fact.get("cause"),
        fact.get("title"),
        replace(culprit, **named),
        float(fact.get("confidence", 0.95)),
        [*([fact.source] if fact.source else []), *(Evidence("", 0, str(line)) for line in fact.get("evidence", ()))],
        fact.get("remedy") or CAUSES[fact.get("cause")].remedy,
        severity=severity,
    )


def placed(run: Run, found: Sequence[Finding]) -> list[Finding]:
    """The findings of a live run; the first also says in which phase a step was, if ranks are in one that has phases and it does not say so."""
    if not found or "phase" in found[0].title:
        return list(found)
    return [replace(found[0], title=found[0].title + reading.phases(run)), *found[1:]]


def order(found: Sequence[Finding]) -> list[Finding]:
    """Best first: what stops a launch, by confidence, then by time; what leaves the question open comes last. One finding per cause and title."""
    unique = {(finding.cause, finding.title): finding for finding in reversed(found)}
    return sorted(
        reversed(unique.values()),
        key=lambda finding: (finding.cause in UNDECIDED, finding.severity != STOP, -finding.confidence, finding.time or math.inf),
    )


def judge(run: Run) -> Verdict:
    """The verdict on a heap of evidence: healthy, problem, or unknown."""
    found = _weakened([_advised(finding) for finding in findings(run)])
    best = found[0]
    if best.cause == "no-problem-found":
        return Verdict(Outcome.HEALTHY, best.title, found)
    if best.confidence < LIKELY and best.cause != "insufficient-evidence":
        return Verdict(Outcome.UNKNOWN, f"perhaps {best.title}; the evidence does not carry more", [*found, insufficient.finding(run)])
    return Verdict(Outcome.UNKNOWN if best.cause in UNDECIDED else Outcome.PROBLEM, best.title, found)


def _weakened(found: list[Finding]) -> list[Finding]:
    """The findings, less sure of themselves where evidence was left unread; that no problem was found is then nothing to begin with."""
    unread = [finding for finding in found if finding.cause in UNREAD]
    if not unread:
        return found
    rest = [replace(finding, confidence=min(finding.confidence, PARTLY)) for finding in found if finding.cause not in UNREAD]
    return [*unread, *rest] if not rest or rest[0].cause in UNDECIDED | {"no-problem-found"} else [*rest, *unread]


def _advised(finding: Finding) -> Finding:
    """The finding with what helps against its cause in general below what it says itself: nobody can ask back."""
    general = CAUSES[finding.cause].remedy
    return finding if finding.remedy == general else replace(finding, remedy=f"{finding.remedy}\nin general: {general}")


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

    `found` are the causes that speak against the cluster; `lacking` is what kept a required probe from running. `ranks` is 0 where none was started.
    """
    states = {probe.status for probe in probes}
    if Status.FAIL not in states:
        found = [replace(finding, severity=DEGRADATION) if finding.cause in SLOWER else finding for finding in found]
    found = order(found)
    certain = [finding for finding in found if finding.cause not in UNDECIDED]
    findings = [*found, *lacking]
    tail = f"; not asked: {', '.join(not_asked)}" if not_asked else ""
    if Status.FAIL in states or any(finding.severity == STOP for finding in certain):
        reason = certain[0].title if certain else next(probe.detail for probe in probes if probe.status is Status.FAIL)
        return Verdict(Outcome.NOT_READY, f"{reason}{tail}", findings)
    undecided = [probe for probe in probes if probe.status in (Status.SKIP, Status.UNKNOWN, Status.CRASHED)]
    open_ = [finding for finding in findings if finding not in certain]
    if undecided or open_ or not probes:
        reason = open_[0].title if open_ else f"{undecided[0].name}: {undecided[0].detail}" if undecided else "no probe was asked for"
        names = f" ({', '.join(probe.name for probe in undecided)})" if undecided else ""
        return Verdict(Outcome.UNKNOWN, f"not proven{names}: {reason}{tail}", findings)
    place = " (emulated on this machine; your cluster was not tested)" if emulated else ""
    what = (f"{ranks} rank{'s' * (ranks != 1)} on " if ranks else "") + f"{nodes} node{'s' * (nodes != 1)}"
    if Status.DEGRADED in states or certain:
        reason = certain[0].title if certain else next(probe.detail for probe in probes if probe.status is Status.DEGRADED)
        return Verdict(Outcome.DEGRADED, f"degraded{place}: {reason}{tail}", findings)
    return Verdict(Outcome.READY, f"ready{place}: {what} passed {', '.join(probe.name for probe in probes)}{tail}", findings)

"""From what a launch showed to how each probe ended, and from all of them to the report. Pure."""

from __future__ import annotations

import time
import zlib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ncclcheck import __version__, documents, received, registry, triage, wire
from ncclcheck.members import folder
from ncclcheck.model import Finding, ProbeResult, RankId, Report, Status
from ncclcheck.options import Options
from ncclcheck.report import masked
from ncclcheck.rollcall import node_entries
from ncclcheck.watch import Clock, View

_ROOM = wire.MAX_MESSAGE - 1024  # bytes
_TOGETHER = 32 * 2**20  # bytes of all copies of a report: node 0 may have to keep them until they are read
_FEW = 8  # findings, of each of them so many ranks, hosts and lines, where all would be too much,
_TEXT = 1000  # and so many characters of each text


def groups(names: Sequence[str]) -> list[list[registry.Plugin]]:
    """Probes that share one launch: neighbours that use the common process group and plant nothing."""
    result: list[list[registry.Plugin]] = []
    for plugin in (registry.describe("probes", name) for name in names):
        alone = bool(plugin.get("INJECT")) or not plugin.get("GROUP", True)
        if result and not alone and result[-1][0].get("GROUP", True) and not result[-1][0].get("INJECT"):
            result[-1].append(plugin)
        else:
            result.append([plugin])
    return result


def of_probe(plugin: registry.Plugin, view: View, clock: Clock, bound: float, found: Sequence[Finding]) -> ProbeResult:
    """How one probe of a launch ended. It passed only if every rank came to its end and none reported a failure."""
    name = plugin.name
    finished = view.finished.get(name, {})
    end = max(finished.values()) if len(finished) == view.world_size else time.monotonic()
    seconds = end - view.began[name] if name in view.began else 0.0
    facts = [replace(fact, fields={k: v for k, v in fact.fields.items() if k != "probe"}) for fact in view.facts if fact.get("probe") == name]
    result = ProbeResult(name, Status.PASS, "", seconds, view.samples.get(name, []), facts)
    failed = [fact for fact in facts if fact.kind == "fail"]
    if failed:
        result.status, result.detail = Status.FAIL, str(failed[0].get("title", ""))
    elif len(finished) == view.world_size and not (clock is Clock.DIFFER and name == view.current()):
        if found and all(finding.cause in triage.SLOWER for finding in found):
            result.status, result.detail = Status.DEGRADED, found[0].title
    elif name not in view.began and view.current() is not None:
        result.status, result.detail = Status.SKIP, "not run: an earlier probe of this launch did not end well"
    elif clock in (Clock.PROBE, Clock.DEADLINE):
        result.status, result.detail = Status.UNKNOWN, f"no end within {clock.value} of {bound:g} s"
    else:
        certain = any(finding.cause not in triage.UNDECIDED for finding in found)
        result.status, result.detail = (Status.FAIL if certain else Status.UNKNOWN), f"{found[0].title if found else 'ended'} ({clock.value})"
    return result


def of_run(
    options: Options,
    *,
    run_id: str,
    hellos: Mapping[int, wire.Hello],
    results: Sequence[ProbeResult],
    findings: Sequence[Finding],
    lacking: Sequence[Finding],
    ranks: Mapping[int, RankId],
    added: Mapping[str, str],
    world_size: int,
    seconds: float,
    planted: Mapping[str, Any] | None = None,
    spared: Sequence[str] = (),
) -> Report:
    """The report. A probe that was asked for and has no result counts as unknown; without a `run_id` the roll call failed.

    Probes that were `spared`, as what they need is not installed, speak neither for nor against the cluster.
    """
    had = {result.name for result in results}
    why = "the run was ended before it" if run_id else "the roll call was not completed"
    unrun = [ProbeResult(name, Status.UNKNOWN if run_id else Status.SKIP, f"not run: {why}") for name in options.probes if name not in had]
    probes = [*results, *unrun]
    set_by_probes = [fact.get("added", {}) for probe in probes for fact in probe.facts if fact.kind == "environment"]
    verdict = triage.verdict(
        findings,
        lacking,
        [probe for probe in probes if probe.name not in spared],
        emulated=bool(options.emulated),
        not_asked=[*options.not_asked, *(f"{name} (not installed)" for name in spared)],
        ranks=world_size if any(registry.needs_ranks(name) for name in options.probes) else 0,
        nodes=len({hello.task["node_rank"] if hello.task else number for number, hello in hellos.items()}),
    )
    run: dict[str, Any] = {"ncclcheck": __version__, "not_asked": list(options.not_asked)}
    if planted:
        run["planted"] = planted
    if options.link:
        run["simulated_link"] = str(options.link)
    if run_id:
        run |= {"id": run_id, "folders": {str(number): f"{run_id}/{folder(number, hello.host)}" for number, hello in hellos.items()}}
    result = Report(
        schema=1,
        status=verdict.status,
        summary=verdict.summary,
        seconds=round(seconds, 3),
        findings=verdict.findings,
        emulated=bool(options.emulated),
        environment={"added": dict(ChainMap(*set_by_probes, dict(added), dict(options.environment)))},
        probes=probes,
        nodes=node_entries(hellos),
        ranks=[ranks[rank] for rank in sorted(ranks)],
        run=run,
    )
    return masked(result)


def of_examination(examined: Report, hellos: Mapping[int, wire.Hello], run_id: str, findings: Sequence[Finding], seconds: float) -> Report:
    """The report on jobs that run: what triage said of all the bundles, after what kept a node from making one."""
    folders = {str(number): f"{run_id}/{folder(number, hello.host)}" for number, hello in hellos.items()}
    run = examined.run | {"id": run_id, "folders": folders}
    found = [*examined.findings, *findings]
    return replace(examined, findings=found, nodes=node_entries(hellos), run=run, seconds=round(seconds, 3))


def pack(report: Report, readers: int = 1) -> bytes:
    """The report as it travels: compressed JSON, without what would be too much for so many readers."""
    room = min(_ROOM, _TOGETHER // max(1, readers))
    for fitting in _ever_shorter(report):
        text = msgspec.json.encode(fitting)
        data = zlib.compress(text)
        if len(data) <= room and len(text) <= received.LARGEST and documents.count_values(text) <= documents.MOST_VALUES:
            break
    return data


def _ever_shorter(report: Report) -> Iterator[Report]:
    """The report; without single iterations; with one rank's samples; with only those ranks and nodes that findings name; what is left in short."""
    yield report
    without = [replace(probe, samples=[{**sample, "seconds": []} for sample in probe.samples]) for probe in report.probes]
    yield (report := replace(report, probes=without))
    slim = [replace(probe, samples=[s for s in probe.samples if s["rank"] == 0], facts=[]) for probe in report.probes]
    yield (report := replace(report, probes=slim))
    ranks = {rank for finding in report.findings for rank in finding.culprit.ranks or ()}
    hosts = {host for finding in report.findings for host in finding.culprit.hosts or ()}
    nodes = [node for node in report.nodes if node["host"] in hosts]
    yield (report := replace(report, ranks=[rank for rank in report.ranks if rank.rank in ranks], nodes=nodes, run=_few_folders(report.run)))
    yield replace(report, summary=report.summary[:_TEXT], findings=[_short(finding) for finding in report.findings[:_FEW]], ranks=[], nodes=[])


def _few_folders(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "folders": dict(list(run["folders"].items())[:_FEW])} if "folders" in run else dict(run)


def _short(finding: Finding) -> Finding:
    who = replace(finding.culprit, ranks=(finding.culprit.ranks or [])[:_FEW] or None, hosts=(finding.culprit.hosts or [])[:_FEW] or None)
    evidence = [replace(line, text=line.text[:_TEXT]) for line in finding.evidence[:_FEW]]
    return replace(finding, title=finding.title[:_TEXT], culprit=who, evidence=evidence)

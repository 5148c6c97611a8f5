"""Prometheus text exposition, for the textfile collector or a push gateway. It holds no time stamp: the scraper has a clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ncclcheck.model import EXIT_CODES, Finding, Report
from ncclcheck.report import engines, slowest
from ncclcheck.safe_text import printable

Labels = Mapping[str, object]


def render(report: Report) -> str:
    """Every metric is a gauge. A series that would appear twice appears once; a value that is not finite does not appear."""
    lines: list[str] = []
    for name, meaning, series in _metrics(report):
        values = {_labels(labels): value for labels, value in series if isinstance(value, int | float) and math.isfinite(value)}
        if values:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *(f"{name}{labels} {value!r}" for labels, value in values.items())]
    return "\n".join(lines) + "\n"


def _metrics(report: Report) -> Iterator[tuple[str, str, list[tuple[Labels, object]]]]:
    """(name, meaning, [(labels, value)])."""
    yield "ncclcheck_ready", "1 if the verdict is ready or healthy.", [({}, int(EXIT_CODES[report.status] == 0))]
    yield "ncclcheck_emulated", "1 if the nodes were emulated on one machine, so that no cluster was tested.", [({}, int(report.emulated))]
    yield "ncclcheck_run_seconds", "How long the run took.", [({}, report.seconds)]
    yield "ncclcheck_probe_status", "1 for the status each probe ended with.", [({"probe": p.name, "status": p.status}, 1) for p in report.probes]
    yield "ncclcheck_probe_seconds", "How long each probe took.", [({"probe": p.name}, p.seconds) for p in report.probes]
    planted = [row for row in report.drill if row["status"] != "skip"]
    faults = {row["fault"]: all(same["status"] == "pass" for same in planted if same["fault"] == row["fault"]) for row in planted}
    meaning = "1 if a planted fault was found each time, blamed on the right place and cleaned up after."
    yield "ncclcheck_drill_right", meaning, [({"fault": fault}, int(right)) for fault, right in faults.items()]
    hosts = {rank.rank: rank.host for rank in report.ranks}
    named = [labels for finding in report.findings for labels in _named(finding, hosts)]
    yield "ncclcheck_finding", "1 for each cause found and each rank or host it names.", [(labels, 1) for labels in named]
    chosen = [(probe.name, sample) for probe in report.probes for sample, _ in slowest(s for s in probe.samples if s["name"] == "all_reduce")]
    for metric, field, meaning in (
        ("busbw_bytes_per_second", "busbw", "Bus bandwidth of the slowest rank's median all-reduce."),
        ("latency_seconds", "latency_median", "Median time of an all-reduce on the slowest rank."),
    ):
        keys = ("nbytes", "dtype", "ranks")
        yield f"ncclcheck_all_reduce_{metric}", meaning, [({"probe": name, **{k: s[k] for k in keys}}, s[field]) for name, s in chosen]
    for field, meaning in (
        ("startup_seconds", "Time until the vLLM engine was ready."),
        ("first_token_seconds", "Time to the first token (TTFT)."),
        ("token_seconds", "Time per output token after the first (TPOT)."),
    ):
        layouts = ("tensor_parallel", "pipeline_parallel")
        yield f"ncclcheck_engine_{field}", meaning, [({name: e[name] for name in layouts}, e[field]) for e in engines(report.probes)]


def _named(finding: Finding, hosts: Mapping[int, str]) -> list[Labels]:
    if finding.culprit.ranks:
        return [{"cause": finding.cause, "rank": rank, "host": hosts.get(rank, "")} for rank in finding.culprit.ranks]
    return [{"cause": finding.cause, "rank": "", "host": host} for host in finding.culprit.hosts or [""]]


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(text: str) -> str:
    text = "\n".join(map(printable, text.encode("utf-8", "backslashreplace").decode().split("\n")))  # a name that was not UTF-8, or tries a terminal
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

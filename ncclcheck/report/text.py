"""What a person reads on a terminal: tables, then findings, then the verdict just above the prompt."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import MIN_PADDING, tabulate

from ncclcheck import units
from ncclcheck.model import EXIT_CODES, Finding, ProbeResult, RankId, Report
from ncclcheck.report import engines, slowest
from ncclcheck.safe_text import printable

WIDTH = 100  # columns; only commands are longer, since a wrapped command cannot be copied
MANY_NODES = 8  # above this many only the nodes and ranks that a finding names are listed
EVIDENCE_LINES = 6  # quoted per finding
GENERAL = "in general: "  # begins the line of a remedy that its cause has in general (triage.py)
MANY_RANKS = 32  # above this many ranks triage lists only those that a finding names
MOST_NOTES = 8  # of a kind and a probe that are listed
NAMED_HOSTS = 4  # in the line of a note
MOST_PROBLEMS = 12  # sources with a problem that are listed
EVIDENCE_CHARACTERS = 300  # quoted per line
SWEPT_OPERATIONS = 2  # a probe with at most this many operations on one type gets a row per size, another a row per operation
_RIGHT = {"node", "rank", "local_rank", "node_rank", "pid", "size", "min", "median", "p99", "algbw", "busbw", "seconds"}
_COLOURS = {0: "32", 1: "31", 3: "33"}  # by exit code: green, red, yellow


def render(report: Report, color: bool = False) -> str:
    """Tables first, then findings, and last the verdict with what to type next."""
    sections = [
        *_sources(report),
        *_nodes(report),
        *_measurements(report.probes),
        *_engine(report.probes),
        *_served(report.probes),
        *_probes(report.probes),
        *_drill(report),
    ]
    sections += [_finding(number, finding, color) for number, finding in enumerate(report.findings, 1)]
    return "\n\n".join([*sections, _verdict(report, color)]) + "\n"


def span(ranks: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def details(finding: Finding) -> Iterator[tuple[str, str]]:
    """A finding's parts below its title, as (label, one printable line): where it was seen, the quote, what to do and to collect."""
    for evidence in finding.evidence[:EVIDENCE_LINES]:
        where = f"{printable(evidence.file)}:{evidence.line}  " if evidence.line else ""
        quote = printable(evidence.text.strip())
        yield "evidence", where + (quote if len(quote) <= EVIDENCE_CHARACTERS else quote[:EVIDENCE_CHARACTERS] + " ...")
    if (more := len(finding.evidence) - EVIDENCE_LINES) > 0:
        yield "evidence", f"and {more} more, which --format json shows"
    yield from (("do", printable(line)) for line in finding.remedy.splitlines() if line.strip())
    yield from (("collect", printable(line)) for line in finding.collect)


def sentence(report: Report) -> str:
    """The verdict: its word in capitals and the summary. It always says when the nodes were emulated."""
    word = report.status.replace("-", " ")
    summary = printable(report.summary).strip()
    if summary.lower().startswith(word):
        summary = summary[len(word) :].lstrip(" :;,-")
    if report.emulated and "emulated" not in summary:
        summary = f"(emulated on this machine; your cluster was not tested): {summary}"
    separator = " " if summary.startswith("(") else ": " if summary else ""
    return f"{word.upper()}{separator}{summary}".rstrip()


def _drill(report: Report) -> Iterator[str]:
    """One line for each planted fault, and below them what was said of those that were not found as they should."""
    if not report.drill:
        return
    answer = {True: "yes", False: "NO"}
    rows = [
        [
            row["fault"], row["victim"], answer[row["detected"]], row["seconds"], row["cause"] or "",
            answer[row["cause_right"]], answer[row["culprit_right"]], answer[row["clean"]],
        ]
        for row in report.drill if row["status"] != "skip"
    ]  # fmt: skip
    head = ["fault", "victim", "detected", "seconds", "cause", "cause right", "culprit right", "clean"]
    if rows:
        yield "drill: faults that were planted, and how they were found\n" + tabulate(rows, head, floatfmt=".1f")
    skipped = [f"  {row['fault']}: {printable(row['said'])}" for row in report.drill if row["status"] == "skip"]
    if skipped:
        yield "\n".join(["skipped, since they cannot be planted here", *skipped])
    wrong = [f"  {row['fault']} ({row['spec']}): {printable(row['said'])}" for row in report.drill if row["status"] not in ("pass", "skip")]
    if wrong:
        yield "\n".join(["not as it should be", *wrong])


def _verdict(report: Report, color: bool) -> str:
    first, *rest = _wrap(f"{sentence(report)} [{units.seconds_text(report.seconds)}]")
    word = report.status.replace("-", " ").upper()
    lines = [_paint(word, _COLOURS[EXIT_CODES[report.status]], color) + first[len(word) :], *rest]
    remedies = [line for finding in report.findings for label, line in details(finding) if label == "do"]
    directory = printable(str(report.run.get("directory") or ""))
    if planted := report.run.get("planted"):
        after = f" after {planted['after']} collectives" if planted["after"] else ""
        named = "it never struck" if planted["seconds"] is None else f"named {planted['seconds']:.1f} s later" if remedies else "not found"
        lines.append(f"planted:  {printable(str(planted['fault']))} in rank {planted['rank']}{after}; {named} ({printable(str(planted['clock']))})")
    if simulated := report.run.get("simulated_link"):
        lines.append(f"link:     {printable(str(simulated))} each way between the emulated nodes, simulated")
    if strangers := report.run.get("strangers"):
        named = ", ".join(f"{printable(str(address))} ({count})" for address, count in strangers["addresses"].items())
        lines += _wrap(f"turned away: {strangers['connections']} connections to node 0 without this run's token, most from {named}")
    if remedies:
        lines.append(f"next:     {remedies[0]}")
    if report.findings:
        lines.append(f"explain:  ncclcheck explain {printable(report.findings[0].cause)}")
    if directory:
        lines.append(f"evidence: {directory}")
    return "\n".join(lines)


def _finding(number: int, finding: Finding, color: bool) -> str:
    grave = "" if finding.severity == "stop" else f"{finding.severity}, "
    first, *rest = _wrap(f"{number}. {finding.title} [{finding.cause}, {grave}{finding.confidence:.0%} sure]", indent="   ")
    lines = [_paint(first, "1", color), *(_paint(line, "1", color) for line in rest)]
    previous = ""
    for label, text in details(finding):
        if number > 1 and text.startswith(GENERAL):
            continue  # of the first finding only: what helps in general is long
        head = f"   {label + ':' if label != previous else '':10}"
        lines += _wrap(head + text, indent=" " * len(head)) if label == "evidence" else [head + text]
        previous = label
    return "\n".join(lines)


def _sources(report: Report) -> Iterator[str]:
    """What was read, and a line about each source that was not, or not wholly."""
    sources = list(report.sources)
    if sources:
        size = units.bytes_text(sum(source["bytes"] for source in sources))
        lines = _wrap(f"read {len(sources)} source{'s' * (len(sources) != 1)}, {size}")
        problems = [source for source in sources if source["problem"]]
        lines += [line for source in problems[:MOST_PROBLEMS] for line in _wrap(f"  {source['name']}: {source['problem']}", indent="    ")]
        more = len(problems) - MOST_PROBLEMS
        yield "\n".join([*lines, *([f"  and {more} more with a problem, which --format json lists"] if more > 0 else [])])


def _nodes(report: Report) -> Iterator[str]:
    nodes, ranks = list(report.nodes), list(report.ranks)
    title, many = "nodes", len(nodes) > MANY_NODES
    if many:
        named_ranks = {rank for finding in report.findings for rank in finding.culprit.ranks or ()}
        named_hosts = {host for finding in report.findings for host in finding.culprit.hosts or ()}
        named_hosts |= {rank.host for rank in ranks if rank.rank in named_ranks}
        shown = [node for node in nodes if node.get("host") in named_hosts]
        title = f"{len(nodes)} nodes with {len(ranks)} ranks; a finding names {len(shown) or 'none'} of the nodes"
        ranks_shown = [rank for rank in ranks if rank.rank in named_ranks] or [rank for rank in ranks if rank.host in named_hosts]
    elif len(ranks) > MANY_RANKS and not nodes:  # triage knows ranks only
        named_ranks = {rank for finding in report.findings for rank in finding.culprit.ranks or ()}
        shown, ranks_shown = [], [rank for rank in ranks if rank.rank in named_ranks]
    else:
        shown, ranks_shown = nodes, ranks
    if nodes:
        rows = [_node(node, [rank for rank in ranks if rank.node_rank == node.get("node_rank")]) for node in shown]
        yield _table(title, ("node", "host", "address", "ranks", "GPUs", "torch", "vLLM"), rows)
    if ranks_shown:
        wiring = [(r.rank, _or_dash(r.local_rank), _or_dash(r.node_rank), r.host, _device(r), _or_dash(r.pid)) for r in ranks_shown]
        yield _table("wiring", ("rank", "local_rank", "node_rank", "host", "device", "pid"), wiring)


def _node(node: Mapping[str, Any], ranks: Sequence[RankId]) -> tuple[str, ...]:
    versions, models = node.get("versions") or {}, [str(gpu.get("name")) for gpu in node.get("gpus") or ()]
    gpus = ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models)) or "none (CPU)"
    reachable = [a for addresses in (node.get("addresses") or {}).values() for a in addresses if not a.startswith(("127.", "::1", "fe80:"))]
    address = f"{reachable[0]} (+{len(reachable) - 1})" if reachable[1:] else "".join(reachable)
    numbers = span(rank.rank for rank in ranks)
    cells = (node.get("node_rank"), node.get("host"), address, numbers, gpus, versions.get("torch"), versions.get("vllm"))
    return tuple(_or_dash(cell) for cell in cells)


def _device(rank: RankId) -> str:
    return " ".join(dict.fromkeys(part for part in (str(rank.device), rank.device.name, rank.device.pci_bus_id) if part)) or "-"


def _measurements(probes: Sequence[ProbeResult]) -> Iterator[str]:
    for probe in probes:
        if not probe.samples:
            continue
        chosen = slowest(probe.samples)
        types = list(dict.fromkeys(sample["dtype"] for sample, _ in chosen))
        rows: list[Sequence[str]]
        operations = list(dict.fromkeys(sample["name"] for sample, _ in chosen))
        if len(operations) <= SWEPT_OPERATIONS and len(types) == 1:
            title = f"{probe.name} ({types[0]}): per size, the times of the rank with the slowest median"
            headers: tuple[str, ...] = ("operation", "ranks", "size", "min", "median", "p99", "algbw", "busbw", "correct")
            rows = [_sweep_row(sample, same) for sample, same in chosen]
        else:
            title = f"{probe.name}: per operation; the median is the slowest rank's at the largest size"
            headers = ("operation", "timed as", "ranks", "sizes", "median", "correct")
            rows = [_summary_row([pair for pair in chosen if pair[0]["name"] == name]) for name in operations]
        yield _table(title, headers, rows)


def _sweep_row(sample: Mapping[str, Any], same: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    times = [_number(units.seconds_text, sample[f"latency_{which}"]) for which in ("min", "median", "p99")]
    rates = [_number(units.bandwidth_text, sample[which]) for which in ("algbw", "busbw")]
    return (sample["name"], str(sample["ranks"]), units.bytes_text(sample["nbytes"]), *times, *rates, _correct(same))


def _summary_row(chosen: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> Sequence[str]:
    samples = [sample for sample, _ in chosen]
    sizes = sorted({sample["nbytes"] for sample in samples})
    sizes_text = units.bytes_text(sizes[0]) + (f" to {units.bytes_text(sizes[-1])}" if len(sizes) > 1 else "")
    largest = max((sample for sample in samples if sample["nbytes"] == sizes[-1]), key=lambda sample: sample["latency_median"] or 0.0)
    types = ", ".join(dict.fromkeys(sample["dtype"] for sample in samples))
    correct = _correct([sample for _, same in chosen for sample in same])
    return samples[0]["name"], types, span(s["ranks"] for s in samples), sizes_text, _number(units.seconds_text, largest["latency_median"]), correct


def _correct(samples: Sequence[Mapping[str, Any]]) -> str:
    wrong = [sample["rank"] for sample in samples if sample["correct"] is False]
    if wrong:
        return f"NO: rank {span(wrong)}"
    return "yes" if all(sample["correct"] for sample in samples) else "not checked"


def _engine(probes: Sequence[ProbeResult]) -> Iterator[str]:
    found = engines(probes)
    rows = [
        (
            _or_dash(engine["tensor_parallel"]),
            _or_dash(engine["pipeline_parallel"]),
            _or_dash(engine["backend"]),
            *(_number(units.seconds_text, engine[name]) for name in ("startup_seconds", "first_token_seconds", "token_seconds")),
            {True: "yes", False: "NO", None: "not compared"}[engine["tokens_equal"]],
        )
        for engine in found
    ]
    if rows:
        table = _table("vLLM engine: the slowest rank's times", ("TP", "PP", "carried by", "startup", "TTFT", "TPOT", "same tokens"), rows)
        phases = [", ".join(f"{name} {_number(units.seconds_text, value)}" for name, value in engine["phase_seconds"].items()) for engine in found]
        yield "\n".join([table, *(line for text in phases if text for line in _wrap(f"phases: {text}", indent="  "))])


def _served(probes: Sequence[ProbeResult]) -> Iterator[str]:
    """What requests over HTTP took, of vLLM's own server."""
    served = [fact.fields for probe in probes for fact in probe.facts if fact.kind == "served"]
    times = ("api_seconds", "first_token_seconds", "ttft_seconds", "token_seconds")
    rows = [
        (
            *(_or_dash(fields.get(name)) for name in ("nodes", "tensor_parallel", "pipeline_parallel")),
            *(_number(units.seconds_text, fields.get(name)) for name in times),
            "yes" if fields.get("tokens_equal") else "NO",
        )
        for fields in served
    ]
    if rows:
        table = _table("vLLM's own server, over HTTP", ("nodes", "TP", "PP", "API up", "first token", "TTFT", "TPOT", "same tokens"), rows)
        phases = [
            ", ".join(f"{name} {_number(units.seconds_text, seconds)}" for name, seconds in fields["phase_seconds"].items()) for fields in served
        ]
        yield "\n".join([table, *(line for text in phases if text for line in _wrap(f"phases: {text}", indent="  "))])


def _probes(probes: Sequence[ProbeResult]) -> Iterator[str]:
    if probes:
        rows = [(probe.name, probe.status.upper() if probe.status != "pass" else "pass", f"{probe.seconds:.1f}", probe.detail) for probe in probes]
        yield _table("probes", ("probe", "status", "seconds", "detail"), rows)
    notes = [line for probe in probes for line in (*_told(probe, "note", "note"), *_told(probe, "unread", "not read"), *_checked(probe))]
    if notes:
        yield "\n".join(line for note in notes for line in _wrap(note, indent="  "))


def _told(probe: ProbeResult, kind: str, word: str) -> Iterator[str]:
    """What is worth knowing, or could not be read; not what is said in the table already."""
    told = [fact for fact in probe.facts if fact.kind == kind]
    for fact in told[:MOST_NOTES]:
        hosts = list(fact.get("hosts") or ())
        where = f"; {', '.join(hosts[:NAMED_HOSTS])}" + (f" and {len(hosts) - NAMED_HOSTS} more" if len(hosts) > NAMED_HOSTS else "") if hosts else ""
        yield f"{word} ({probe.name}{where}): {fact.get('title') or fact.get('text', '')}"
    if len(told) > MOST_NOTES:
        yield f"{word} ({probe.name}): and {len(told) - MOST_NOTES} more, which --format json shows"


def _checked(probe: ProbeResult) -> Iterator[str]:
    """Ranks that counted the same share a line."""
    ranks: dict[str, list[int]] = {}
    for fact in probe.facts:
        if fact.kind == "checked":
            counts = ", ".join(f"{name} {count}" for name, count in fact.fields.items())
            ranks.setdefault(counts, []).extend([] if fact.rank is None else [fact.rank])
    for counts, who in ranks.items():
        yield f"checked ({probe.name}{', rank ' + span(who) if who else ''}): {counts}"


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A titled table, narrowed to WIDTH by wrapping its widest columns."""
    if not rows:
        return "\n".join(_wrap(title))
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(header) + MIN_PADDING, *(len(row[column]) for row in cells)) for column, header in enumerate(headers)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    align = ["right" if header in _RIGHT else "left" for header in headers]
    table = tabulate(cells, headers, tablefmt="simple", disable_numparse=True, maxcolwidths=widths, colalign=align)
    return "\n".join([*_wrap(title), *(line.rstrip() for line in table.splitlines())])


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _number(unit: Callable[[float], str], value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else unit(value)


def _or_dash(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text

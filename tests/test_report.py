"""Reports say the same in every format, whatever the logs they quote contain."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import StringIO

import msgspec
import pytest

from ncclcheck import report as reports
from ncclcheck.journal import sample_fields
from ncclcheck.live import Live
from ncclcheck.model import Culprit, Device, Evidence, Fact, Finding, Outcome, ProbeResult, RankId, Report, Sample, Status
from ncclcheck.report import json as json_report
from ncclcheck.report import junit, prometheus, text

HOSTILE = "a\x1b[31mred\rb\x07c\x9b2Jd\u202ee\u2066f\u200bg\udc80h\x00i\tj\nk"


def ranks(count: int, per_node: int = 1) -> list[RankId]:
    return [
        RankId(rank, rank % per_node, rank // per_node, f"gpu-{rank // per_node:02}", 4000 + rank, Device(rank % per_node, "NVIDIA H200"))
        for rank in range(count)
    ]


def nodes(count: int, gpus: int = 1) -> list[dict[str, object]]:
    return [
        {
            "node_rank": n,
            "host": f"gpu-{n:02}",
            "addresses": {"lo": ["127.0.0.1", "::1"], "eth0": [f"10.0.0.{n + 1}", "fe80::1"]},
            "gpus": [{"name": "NVIDIA H200"}] * gpus,
            "versions": {"torch": "2.13.0", "vllm": None},
        }
        for n in range(count)
    ]


def sample(rank: int, seconds: list[float], name: str = "all_reduce", nbytes: int = 2**20, correct: bool | None = True) -> dict[str, object]:
    return {"rank": rank, **sample_fields(Sample(name, nbytes, "float32", 2, seconds, 1.0, correct))}


def ready() -> Report:
    """Two nodes on which everything is well. Rank 1 is the slower one: 2 ms for 1 MiB."""
    bandwidth = ProbeResult("bandwidth", Status.PASS, "0.52 GB/s", 6.1, [sample(0, [0.001, 0.001, 0.001]), sample(1, [0.002, 0.002, 0.009])])
    collectives = ProbeResult(
        "collectives",
        Status.PASS,
        samples=[sample(r, [0.001], name) for name in ("all_gather", "broadcast", "reduce") for r in (0, 1)],
        facts=[Fact("checked", rank=r, fields={"operations": 42, "wrong": 0}) for r in (0, 1)] + [Fact("note", fields={"text": "Gloo was used"})],
    )
    engine = {
        "startup_seconds": 31.0,
        "first_token_seconds": 0.02,
        "token_seconds": 0.004,
        "tensor_parallel": 2,
        "tokens_equal": True,
        "backend": "gloo",
    }
    vllm = ProbeResult("vllm_engine", Status.PASS, facts=[Fact("engine", fields=engine)])
    return Report(
        1, Outcome.READY, "2 nodes, 2 ranks", 14.25, (), False, {"added": {"NCCL_DEBUG": "INFO"}}, (bandwidth, collectives, vllm), nodes(2), ranks(2),
        {"id": "r1", "directory": "ncclcheck-runs/r1"},
    )  # fmt: skip


def broken(**changes: object) -> Report:
    """Rank 1 never came; the bandwidth probe failed."""
    finding = Finding(
        "rank-stuck-in-python",
        "rank 1 (gpu-01, GPU 0) never entered all_reduce #24; it sleeps",
        Culprit(ranks=[1], hosts=["gpu-01"]),
        0.97,
        (Evidence("gpu-01/rank1.stack", 12, 'File "train.py", line 7 in <module>'),),
        "kill -CONT 4001",
        ("ncclcheck collect --pid 4001",),
    )
    failed = ProbeResult("bandwidth", Status.FAIL, "no progress for 4 s", 8.0)
    skipped = ProbeResult("vllm_engine", Status.SKIP, "vLLM is not installed")
    return replace(ready(), status=Outcome.NOT_READY, summary="rank 1 never came", findings=(replace(finding, **changes),), probes=(failed, skipped))  # type: ignore[arg-type]


def hostile() -> Report:
    """Every text that comes from a log, a peer or a plugin is an attack."""
    report = broken(title=HOSTILE, evidence=(Evidence(HOSTILE, 3, HOSTILE),), remedy=HOSTILE, collect=(HOSTILE,), culprit=Culprit(hosts=[HOSTILE]))
    probe = ProbeResult(HOSTILE, Status.CRASHED, HOSTILE, 1.0, [sample(0, [0.1], HOSTILE)], [Fact("note", fields={"text": HOSTILE})])
    who = RankId(0, host=HOSTILE, device=Device(0, HOSTILE, HOSTILE, HOSTILE))
    hostile_node = {"node_rank": 0, "host": HOSTILE, "addresses": {HOSTILE: [HOSTILE]}, "gpus": [{"name": HOSTILE}], "versions": {"torch": HOSTILE}}
    run = {"directory": HOSTILE}
    return replace(report, summary=HOSTILE, probes=(probe,), nodes=(hostile_node,), ranks=(who,), run=run)


# every format


@pytest.mark.parametrize("format", ["json", "junit", "prometheus", "text"])
@pytest.mark.parametrize("make", [ready, broken, hostile])
def test_every_format_renders_every_report_as_text_that_can_be_encoded(make, format):
    assert format in reports.formats()
    rendered = reports.render(make(), format)
    assert rendered.endswith("\n") and rendered.encode()


def test_an_unknown_format_is_the_callers_mistake_and_the_choices_are_said():
    with pytest.raises(ValueError, match=r"'yaml' is not a format.*json"):
        reports.render(ready(), "yaml")


def test_of_each_size_the_rank_with_the_largest_median_is_chosen():
    (chosen, same), (small, _) = reports.slowest([sample(0, [1.0]), sample(1, [3.0]), sample(2, [2.0]), sample(2, [9.0], nbytes=2**30)])
    assert chosen["rank"] == 1 and [s["rank"] for s in same] == [0, 1, 2]
    assert small["nbytes"] == 2**30


def test_of_each_phase_of_an_engines_start_the_slowest_rank_counts():
    facts = [
        Fact("engine", fields={"tensor_parallel": 2, "phase_seconds": {"spawn": 2.0, "weights": 3.0}}),
        Fact("engine", fields={"tensor_parallel": 2, "phase_seconds": {"spawn": 1.0, "rendezvous": 0.5, "weights": 4.0}}),
        Fact("engine", fields={"tensor_parallel": 1, "pipeline_parallel": 2}),
    ]
    tensor, stages = reports.engines([ProbeResult("vllm_engine", Status.PASS, facts=facts)])
    assert list(tensor["phase_seconds"].items()) == [("spawn", 2.0), ("rendezvous", 0.5), ("weights", 4.0)]
    assert (tensor["pipeline_parallel"], stages["pipeline_parallel"], stages["phase_seconds"]) == (1, 2, {})
    shown = reports.render(replace(ready(), probes=(ProbeResult("vllm_engine", Status.PASS, facts=facts[:2]),)), "text")
    assert "phases: spawn 2 s, rendezvous 500 ms, weights 4 s" in shown


def test_of_an_engine_the_slowest_ranks_times_count_and_one_difference_is_a_difference():
    def engine(**fields):
        return Fact("engine", fields={"tensor_parallel": 2, **fields})

    facts = [
        engine(startup_seconds=30.0, tokens_equal=True, backend="shared memory"),
        engine(startup_seconds=40.0, tokens_equal=False, backend="gloo"),
    ]
    (merged,) = reports.engines([ProbeResult("vllm_engine", Status.FAIL, facts=facts)])
    assert merged["backend"] == "shared memory, gloo"  # ranks on different CPUs
    assert merged["startup_seconds"] == 40.0 and merged["token_seconds"] is None and merged["tokens_equal"] is False
    (merged,) = reports.engines([ProbeResult("vllm_engine", Status.PASS, facts=[engine(tokens_equal=True, compared=[])])])
    assert merged["tokens_equal"] is None


# json


def test_json_is_one_document_with_the_agreed_fields():
    document = json.loads(reports.render(broken(), "json"))
    assert list(document) == [
        "schema",
        "status",
        "summary",
        "seconds",
        "findings",
        "emulated",
        "environment",
        "probes",
        "nodes",
        "ranks",
        "run",
        "drill",
        "sources",
    ]
    assert (document["schema"], document["status"], document["seconds"], document["emulated"]) == (1, "not-ready", 14.25, False)
    assert document["findings"] == [
        {
            "cause": "rank-stuck-in-python",
            "title": "rank 1 (gpu-01, GPU 0) never entered all_reduce #24; it sleeps",
            "culprit": {"ranks": [1], "hosts": ["gpu-01"], "devices": None, "interface": None, "link": None},
            "confidence": 0.97,
            "evidence": [{"file": "gpu-01/rank1.stack", "line": 12, "text": 'File "train.py", line 7 in <module>'}],
            "remedy": "kill -CONT 4001",
            "collect": ["ncclcheck collect --pid 4001"],
            "time": None,
            "severity": "stop",
        }
    ]
    assert document["probes"][0] == {
        "name": "bandwidth", "status": "fail", "detail": "no progress for 4 s", "seconds": 8.0, "samples": [], "facts": [],
    }  # fmt: skip


def test_json_reads_back_as_the_report_it_was():
    document = reports.render(ready(), "json")
    again = msgspec.json.decode(document, type=Report)
    assert reports.render(again, "json") == document
    assert reports.render(again, "text") == reports.render(ready(), "text")


def test_who_was_turned_away_at_node_0s_port_is_named() -> None:
    report = ready()
    assert "turned away" not in reports.render(report, "text")
    report.run["strangers"] = {"connections": 1203, "addresses": {"10.0.0.7": 1200, "fe80::1%\x1b[31m": 3}}
    shown = " ".join(reports.render(report, "text").split())
    assert "turned away: 1203 connections to node 0 without this run's token, most from 10.0.0.7 (1200), fe80::1%" in shown
    assert "\x1b" not in shown


def test_json_says_null_for_a_number_that_is_not_finite_and_the_text_of_what_is_not_json():
    odd = {"nan": math.nan, "inf": [math.inf, 1.5], 3: {"path": os.path}, "big": 2**70, ("a", 1): None}
    rendered = json_report.render(replace(ready(), environment=odd))
    document = json.loads(rendered, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["environment"]["nan"] is None
    assert document["environment"]["inf"] == [None, 1.5]
    assert document["environment"]["big"] == 2**70
    assert document["environment"]["('a', 1)"] is None


def test_json_keeps_the_raw_text_of_a_log_line():
    quoted = json.loads(reports.render(hostile(), "json"))["findings"][0]["evidence"][0]["text"]
    assert quoted == HOSTILE.replace("\udc80", r"\udc80")


def test_json_prints_the_seconds_of_a_sample_on_one_line_and_changes_no_text():
    seconds = [float(n) for n in range(1, 200)]
    probe = ProbeResult("bandwidth", Status.PASS, "[ 1, 2 ]", samples=[sample(0, seconds)])
    rendered = reports.render(replace(ready(), probes=(probe,)), "json")
    line = next(line for line in rendered.splitlines() if '"seconds": [' in line)
    assert json.loads("{" + line.strip().rstrip(",") + "}")["seconds"] == seconds
    assert json.loads(rendered)["probes"][0]["detail"] == "[ 1, 2 ]"


# text


def test_text_ends_with_the_verdict_and_what_to_type_next():
    *_, last = reports.render(broken(), "text").split("\n\n")
    verdict, *after = last.splitlines()
    assert verdict.startswith("NOT READY: rank 1 never came")
    assert any(line.endswith(" kill -CONT 4001") for line in after)
    assert any("ncclcheck explain rank-stuck-in-python" in line for line in after)


def test_text_shows_tables_before_findings_and_a_finding_with_evidence_remedy_and_what_to_collect():
    rendered = reports.render(broken(), "text")
    positions = [rendered.index(part) for part in ("\nprobes\n", "never entered all_reduce #24", "gpu-01/rank1.stack:12", "kill -CONT", "NOT READY")]
    assert positions == sorted(positions)
    assert 'evidence: gpu-01/rank1.stack:12  File "train.py", line 7 in <module>' in rendered
    assert re.search(r"do: +kill -CONT 4001\n +collect: +ncclcheck collect --pid 4001\n", rendered)


def test_text_shows_who_where_and_the_slowest_ranks_times():
    lines = reports.render(ready(), "text").splitlines()
    assert any(line.split() == ["1", "gpu-01", "10.0.0.2", "1", "1", "x", "NVIDIA", "H200", "2.13.0", "-"] for line in lines)
    assert any(line.split() == ["1", "0", "1", "gpu-01", "GPU", "0", "NVIDIA", "H200", "4001"] for line in lines)
    row = next(line for line in lines if line.startswith("all_reduce"))
    assert "1 MiB" in row and "2 ms" in row and "9 ms" in row and "0.524 GB/s" in row and row.endswith("yes")
    assert any("slowest" in line for line in lines)
    assert any("broadcast" in line and "yes" in line for line in lines)
    assert any(line.split() == ["2", "1", "gloo", "31", "s", "20", "ms", "4", "ms", "yes"] for line in lines)
    assert "note (collectives): Gloo was used" in lines
    assert "checked (collectives, rank 0-1): operations 42, wrong 0" in lines


def test_text_names_the_ranks_whose_result_was_wrong_and_never_calls_unchecked_correct():
    wrong = [sample(0, [0.001]), sample(1, [0.002], correct=False), sample(0, [0.001], nbytes=8, correct=None)]
    rendered = reports.render(replace(ready(), probes=(ProbeResult("bandwidth", Status.FAIL, samples=wrong),)), "text")
    small, large = (line for line in rendered.splitlines() if line.startswith("all_reduce"))
    assert "8 B" in small and small.endswith("not checked")
    assert "1 MiB" in large and large.endswith("NO: rank 1")


def test_text_shows_a_node_without_gpus_and_counts_the_addresses_it_leaves_out():
    node = {**nodes(1)[0], "gpus": [], "addresses": {"eth0": ["10.0.0.1"], "ib0": ["10.1.0.1", "fd00::1"]}}
    lines = reports.render(replace(ready(), nodes=(node,)), "text").splitlines()
    assert any(line.split() == ["0", "gpu-00", "10.0.0.1", "(+2)", "0", "none", "(CPU)", "2.13.0", "-"] for line in lines)


def test_text_prints_a_dash_for_a_time_that_is_not_known():
    probe = ProbeResult("vllm_engine", Status.UNKNOWN, facts=[Fact("engine", fields={"tensor_parallel": 1, "startup_seconds": math.nan})])
    lines = reports.render(replace(ready(), probes=(probe,)), "text").splitlines()
    assert any(line.split() == ["1", "1", "-", "-", "-", "-", "not", "compared"] for line in lines)


def test_text_always_says_that_the_nodes_were_emulated():
    spoken = "ready (emulated on this machine; your cluster was not tested)"
    assert text.sentence(replace(ready(), emulated=True, summary=spoken)) == "READY" + spoken[5:]
    assert text.sentence(replace(ready(), emulated=True)) == "READY (emulated on this machine; your cluster was not tested): 2 nodes, 2 ranks"


@pytest.mark.parametrize("status", list(Outcome))
def test_text_begins_the_verdict_with_the_status_in_capitals(status):
    verdict = reports.render(replace(ready(), status=status), "text").split("\n\n")[-1]
    assert verdict.startswith(status.replace("-", " ").upper() + ": 2 nodes")


def test_text_of_many_nodes_lists_only_those_a_finding_names_and_counts_the_rest():
    big = replace(broken(culprit=Culprit(ranks=[37], hosts=["gpu-04"])), nodes=nodes(64), ranks=ranks(512, per_node=8))
    rendered = reports.render(big, "text")
    assert "64 nodes with 512 ranks; a finding names 1 of the nodes" in rendered
    assert "gpu-04" in rendered and "4037" in rendered
    assert "gpu-05" not in rendered and "4036" not in rendered
    assert "32-39" in rendered
    none = reports.render(replace(big, findings=(), status=Outcome.READY), "text")
    assert "names none of the nodes" in none and "gpu-04" not in none


def test_text_stays_within_its_width_with_long_titles_and_names_but_never_breaks_a_command():
    command = "docker run " + "--shm-size=16g " * 20 + "image"
    report = broken(title="word " * 100, remedy=f"give it memory:\n{command}", evidence=[Evidence("f" * 80, 1, "x" * 2000)] * 50)
    report = replace(report, ranks=[replace(rank, host="h" * 150) for rank in ranks(2)], probes=[ProbeResult("p" * 60, Status.FAIL, "why " * 90)])
    lines = reports.render(report, "text").splitlines()
    assert [line for line in lines if len(line) > 100] == [line for line in lines if command in line] != []
    assert "and 44 more" in "\n".join(lines)


def test_text_shows_a_terminal_nothing_that_it_obeys():
    rendered = reports.render(hostile(), "text")
    assert "red" in rendered
    assert [c for c in rendered if c != "\n" and not c.isprintable()] == []


@pytest.mark.parametrize(
    "attack", ["\x1b[31m", "\a", "\x9b2J", "\x1b]0;t\a", "\b\b", "\u202etxt", "\u2066", "\u200b", "\ufeff", "\udc80", "\x00", "\x7f"]
)  # fmt: skip
def test_printable_replaces_what_controls_a_terminal(attack):
    shown = text.printable(f"before {attack} after")
    assert shown.isprintable() and shown.startswith("before ") and shown.endswith(" after") and "\ufffd" in shown


def test_printable_makes_one_line_and_keeps_every_script():
    assert text.printable("a\rb\nc\td\u2028e\x85f") == "a b c d e f"
    assert text.printable("µs → rank 3 (节点, узел)") == "µs → rank 3 (节点, узел)"


def test_text_is_coloured_only_when_asked():
    assert "\x1b" not in text.render(broken())
    coloured = text.render(broken(), color=True)
    assert "\x1b[31mNOT READY\x1b[0m: rank 1" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == text.render(broken())


# junit


def test_junit_has_a_case_per_probe_and_one_for_the_verdict():
    suite = ElementTree.fromstring(junit.render(broken()))
    assert suite.attrib == {"name": "ncclcheck", "time": "14.250", "tests": "3", "failures": "2", "errors": "0", "skipped": "1"}
    bandwidth, vllm, verdict = suite
    assert (bandwidth.get("name"), bandwidth.get("time"), vllm.get("name"), verdict.get("name")) == ("bandwidth", "8.000", "vllm_engine", "verdict")
    failure = bandwidth.find("failure")
    assert failure is not None and failure.get("message") == "no progress for 4 s"
    assert "never entered all_reduce #24" in (failure.text or "") and "do: kill -CONT 4001" in (failure.text or "")
    skipped = vllm.find("skipped")
    assert skipped is not None and skipped.get("message") == "vLLM is not installed"
    assert verdict.find("failure") is not None


@pytest.mark.parametrize("status", list(Status))
def test_junit_shows_only_a_pass_as_a_pass(status):
    tags = {"pass": [], "degraded": ["failure"], "fail": ["failure"], "skip": ["skipped"], "unknown": ["error"], "crashed": ["error"]}[status]
    suite = ElementTree.fromstring(junit.render(replace(ready(), probes=(ProbeResult("p", status),))))
    assert [element.tag for element in suite[0]] == tags


def test_junit_is_not_green_when_no_probe_ran_and_the_verdict_is_unknown():
    (verdict,) = ElementTree.fromstring(junit.render(replace(ready(), probes=(), status=Outcome.UNKNOWN)))
    assert verdict.find("error") is not None


def test_junit_escapes_markup_and_replaces_what_xml_forbids():
    suite = ElementTree.fromstring(junit.render(replace(hostile(), summary="<a>&\"']]>\x00\x1b\ufffe")))
    error = suite[0].find("error")
    assert suite[0].get("name") == text.printable(HOSTILE) and error is not None and "red" in (error.text or "")
    failure = suite[1].find("failure")
    assert failure is not None and "<a>&\"']]>" in failure.get("message", "")


# prometheus

LINE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (?P<value>\S+)')
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"')


def scrape(exposition: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read the format as Prometheus does; a line that is not in it, a series without its TYPE above it, or a duplicate fails."""
    series: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    current, seen = "", set()
    assert exposition.endswith("\n")
    for line in exposition[:-1].split("\n"):
        if line.startswith("# HELP "):
            current = line.split()[2]
            assert current not in seen
            seen.add(current)
            continue
        if line.startswith("# TYPE "):
            assert line == f"# TYPE {current} gauge"
            continue
        match = LINE.fullmatch(line)
        assert match and match["name"] == current, line
        labels = tuple((k, re.sub(r"\\.", lambda m: UNESCAPED[m[0]], v)) for k, v in LABEL.findall(match["labels"] or ""))
        assert (current, labels) not in series
        series[current, labels] = float(match["value"])
    return series


def test_prometheus_has_the_verdict_the_probes_the_findings_and_the_measurements():
    good, bad = scrape(prometheus.render(ready())), scrape(prometheus.render(broken()))
    assert good["ncclcheck_ready", ()] == 1 and bad["ncclcheck_ready", ()] == 0
    assert bad["ncclcheck_probe_status", (("probe", "vllm_engine"), ("status", "skip"))] == 1
    assert bad["ncclcheck_finding", (("cause", "rank-stuck-in-python"), ("rank", "1"), ("host", "gpu-01"))] == 1
    size = (("probe", "bandwidth"), ("nbytes", "1048576"), ("dtype", "float32"), ("ranks", "2"))
    assert good["ncclcheck_all_reduce_latency_seconds", size] == 0.002
    assert good["ncclcheck_all_reduce_busbw_bytes_per_second", size] == pytest.approx(2**20 / 0.002)
    assert good["ncclcheck_engine_startup_seconds", (("tensor_parallel", "2"), ("pipeline_parallel", "1"))] == 31
    assert not [name for name, _ in good if name == "ncclcheck_finding"]


def test_prometheus_escapes_quotes_backslashes_and_new_lines_in_labels():
    name = 'say "hi"\\n\nbye\\'
    rank = replace(ranks(2)[1], host=name)
    series = scrape(prometheus.render(replace(broken(), ranks=(rank,))))
    assert series["ncclcheck_finding", (("cause", "rank-stuck-in-python"), ("rank", "1"), ("host", name))] == 1


def test_prometheus_never_repeats_a_series_and_leaves_out_what_is_not_a_number():
    report = broken()
    facts = [Fact("engine", fields={"startup_seconds": math.nan, "token_seconds": None})]
    report = replace(report, findings=(*report.findings, *report.findings), probes=(ProbeResult("vllm_engine", Status.PASS, facts=facts),))
    series = scrape(prometheus.render(report))
    assert sum(name == "ncclcheck_finding" for name, _ in series) == 1
    assert not [name for name, _ in series if name.startswith("ncclcheck_engine")]


# live


def on_a_terminal(columns: int, act) -> bytes:
    """What a terminal of that width receives."""
    controller, terminal = pty.openpty()
    received = b""
    with os.fdopen(terminal, "w") as stream:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        act(stream)
    with contextlib.suppress(OSError):  # EIO: the other end is closed, and all has arrived
        while data := os.read(controller, 65536):
            received += data
    os.close(controller)
    return received


def test_live_prints_plain_lines_and_no_live_line_where_there_is_no_terminal():
    stream = StringIO()
    live = Live(stream, enabled=True)
    live.say("one")
    live.show("transient")
    live.say("two \x1b[31m")
    live.close()
    assert stream.getvalue() == "one\ntwo \ufffd[31m\n"


def test_live_rewrites_one_line_on_a_terminal_below_what_it_said():
    def act(stream):
        live = Live(stream, enabled=True)
        live.show("1 of 2")
        live.say("done: 1")
        live.show("2 of 2")
        live.close()

    clear = "\r\x1b[K"
    assert on_a_terminal(80, act).decode() == f"{clear}1 of 2{clear}done: 1\r\n1 of 2{clear}2 of 2{clear}"


def test_live_cuts_the_live_line_to_the_terminal_and_makes_it_printable():
    received = on_a_terminal(20, lambda stream: Live(stream, enabled=True).show("\x1b]0;title\a" + "x" * 100)).decode()
    shown = received.removeprefix("\r\x1b[K")
    assert len(shown) == 19 and shown.isprintable()


def test_live_draws_no_live_line_on_a_terminal_when_it_is_not_enabled():
    def act(stream):
        live = Live(stream, enabled=False)
        live.show("transient")
        live.say("one")
        live.close()

    assert on_a_terminal(80, act) == b"one\r\n"


def test_live_survives_a_reader_that_went_away_and_the_process_exits_in_order():
    reader, writer = os.pipe()
    os.close(reader)
    script = "import sys; from ncclcheck.live import Live; live = Live(sys.stderr, True); live.say('a'); live.show('b'); live.say('c'); live.close()"
    try:
        assert subprocess.run([sys.executable, "-c", script], stderr=writer, timeout=120).returncode == 0
    finally:
        os.close(writer)


def test_live_survives_a_closed_file():
    stream = StringIO()
    live = Live(stream, enabled=True)
    stream.close()
    live.say("nobody hears this")
    live.close()


def test_what_triage_read_is_counted_and_what_it_could_not_read_is_named() -> None:
    read = {"name": "gpu-00.log", "kind": "text", "bytes": 3072, "problem": ""}
    refused = {"name": "x\x1b[31m.pkl", "kind": "not read", "bytes": 1024, "problem": "forbidden: it names a function"}
    shown = text.render(replace(broken(), sources=[read, refused]))
    assert "read 2 sources, 4 KiB" in shown
    assert "x\N{REPLACEMENT CHARACTER}[31m.pkl: forbidden: it names a function" in shown
    assert "gpu-00.log" not in shown

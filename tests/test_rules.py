"""Every rule's docstring draws whom it blames and what it spares; both must be true, alone and among all other rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from drawing import drawings, read

from ncclcheck import registry, triage
from ncclcheck.model import Culprit, Fact, Finding, Outcome, ProbeResult, Run, Status
from ncclcheck.survey import degrades

RULES = registry.names("rules")


def cases(heading: str) -> list[object]:
    return list(_cases(heading))


def _cases(heading: str) -> Iterator[object]:
    for rule in RULES:
        for index, drawing in enumerate(drawings(registry.describe("rules", rule).doc, heading)):
            yield pytest.param(rule, drawing, id=f"{rule}-{index}")


def named(culprit: Culprit, blamed: list[str]) -> set[str]:
    """The culprit's ranks where the drawing blames ranks, its hosts where it blames hosts."""
    return {str(rank) for rank in culprit.ranks or ()} if blamed[:1] and blamed[0].isdigit() else set(culprit.hosts or ())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_draws_whom_it_blames_and_what_it_spares(rule: str) -> None:
    doc = registry.describe("rules", rule).doc
    assert drawings(doc, "Blames") and drawings(doc, "Spares")


@pytest.mark.parametrize(("rule", "drawing"), cases("Blames"))
def test_a_rule_blames_whom_its_drawing_blames(rule: str, drawing: str) -> None:
    run, blamed = read(drawing)
    findings = triage.of_rule(run, rule)
    assert findings, "it found nothing"
    assert {finding.cause for finding in findings} == {rule.replace("_", "-")}
    if blamed == ["-"]:
        assert not any(finding.culprit.ranks for finding in findings)
    else:
        assert {who for finding in findings for who in named(finding.culprit, blamed)} == set(blamed)
    assert all(finding.title and finding.remedy and finding.evidence for finding in findings)


@pytest.mark.parametrize(("rule", "drawing"), cases("Blames"))
def test_no_other_rule_outweighs_the_one_that_drew_the_case(rule: str, drawing: str) -> None:
    run, _ = read(drawing)
    assert triage.findings(run)[0].cause == rule.replace("_", "-")


@pytest.mark.parametrize(("rule", "drawing"), cases("Spares"))
def test_a_rule_spares_what_its_drawing_spares(rule: str, drawing: str) -> None:
    run, _ = read(drawing)
    assert triage.of_rule(run, rule) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_explains_only_rules_that_exist(rule: str) -> None:
    assert set(getattr(registry.load("rules", rule), "EXPLAINS", ())) <= set(RULES) - {rule}


@pytest.mark.parametrize("module", [("rules", name) for name in RULES] + [("evidence", name) for name in registry.names("evidence")], ids="/".join)
def test_everything_a_module_reads_stands_in_one_of_its_drawings(module: tuple[str, str]) -> None:
    reads = getattr(registry.load(*module), "READS", ())
    drawn = [line.partition(": ")[2] for line in registry.describe(*module).doc.splitlines() if line.lstrip().startswith("log ")]
    assert [read.pattern for read in reads if not any(re.search(read.pattern, line) for line in drawn)] == []


def test_where_no_rule_knows_better_the_answer_is_insufficient_evidence_and_what_to_collect() -> None:
    run, _ = read("rank 0 @ a: init, all_reduce...\nrank 1 @ a: init, all_reduce...\n")
    (finding,) = triage.findings(run)
    assert finding.cause == "insufficient-evidence" and finding.collect and finding.confidence < 0.5


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        ([Status.PASS, Status.PASS], Outcome.READY),
        ([Status.PASS, Status.FAIL], Outcome.NOT_READY),
        ([Status.FAIL, Status.SKIP], Outcome.NOT_READY),
        ([Status.PASS, Status.SKIP], Outcome.UNKNOWN),
        ([Status.PASS, Status.UNKNOWN], Outcome.UNKNOWN),
        ([Status.PASS, Status.CRASHED], Outcome.UNKNOWN),
        ([Status.PASS, Status.DEGRADED], Outcome.DEGRADED),
        ([], Outcome.UNKNOWN),
    ],
)
def test_skip_and_unknown_never_look_like_pass(statuses: list[Status], outcome: Outcome) -> None:
    probes = [ProbeResult(f"probe{index}", status, "reason") for index, status in enumerate(statuses)]
    assert triage.verdict([], [], probes, emulated=False, not_asked=[], ranks=2, nodes=2).status is outcome


def test_what_only_degrades_a_launch_makes_the_verdict_degraded_and_comes_after_what_stops_it() -> None:
    slower = Finding("mtu-mismatch", "the MTU differs", confidence=0.99, severity=triage.DEGRADATION)
    fatal = Finding("shm-too-small", "/dev/shm is full", confidence=0.8)
    degraded = triage.verdict([slower], [], [ProbeResult("parity", Status.DEGRADED)], emulated=False, not_asked=[], ranks=0, nodes=2)
    assert degraded.status is Outcome.DEGRADED and "the MTU differs" in degraded.summary
    both = triage.verdict([slower, fatal], [], [ProbeResult("host", Status.FAIL)], emulated=False, not_asked=[], ranks=0, nodes=2)
    assert both.status is Outcome.NOT_READY and both.summary == "/dev/shm is full" and list(both.findings) == [fatal, slower]


def test_a_slow_rank_is_a_degradation_also_in_the_report() -> None:
    slow = Finding("slow-rank", "rank 1 is slow")
    verdict = triage.verdict([slow], [], [ProbeResult("training", Status.DEGRADED)], emulated=False, not_asked=[], ranks=2, nodes=2)
    assert verdict.status is Outcome.DEGRADED and verdict.findings[0].severity == triage.DEGRADATION


def test_a_degradation_beside_what_could_not_be_told_leaves_the_verdict_unknown() -> None:
    slower = Finding("mtu-mismatch", "the MTU differs", severity=triage.DEGRADATION)
    probes = [ProbeResult("parity", Status.DEGRADED), ProbeResult("host", Status.UNKNOWN, "GPUs: could not be read")]
    assert triage.verdict([slower], [], probes, emulated=False, not_asked=[], ranks=0, nodes=2).status is Outcome.UNKNOWN


def test_a_probe_that_starts_no_rank_claims_none_to_have_passed() -> None:
    verdict = triage.verdict([], [], [ProbeResult("host", Status.PASS)], emulated=False, not_asked=[], ranks=0, nodes=2)
    assert verdict.summary == "ready: 2 nodes passed host"


def test_everything_that_a_probe_says_of_a_degradation_reaches_its_finding() -> None:
    fact = degrades("mtu-mismatch", "smaller", ["a", "b"], "ip link", evidence=["a: mtu 1500", "b: mtu 9000"], interface="eth0", link="a -> b",
                    devices=["a:mlx5_0"], confidence=0.6)  # fmt: skip
    (finding,) = triage.reported(Run(facts=[fact]))
    assert (finding.cause, finding.severity, finding.confidence, finding.remedy) == ("mtu-mismatch", "degradation", 0.6, "ip link")
    assert finding.culprit == Culprit(hosts=["a", "b"], interface="eth0", link="a -> b", devices=["a:mlx5_0"])
    assert [line.text for line in finding.evidence] == ["a: mtu 1500", "b: mtu 9000"]


def test_a_cause_found_at_roll_call_makes_the_cluster_not_ready() -> None:
    run, _ = read("fact missing-node @ b node_rank=1 nproc_per_node=1\nfact roll-call @ a seconds=60\n")
    skipped = [ProbeResult("wiring", Status.SKIP, "not run")]
    verdict = triage.verdict(triage.findings(run), [], skipped, emulated=False, not_asked=[], ranks=2, nodes=1)
    assert verdict.status is Outcome.NOT_READY and "node 1 (b)" in verdict.summary


def test_a_probe_left_out_by_the_user_is_named_and_not_required() -> None:
    verdict = triage.verdict([], [], [ProbeResult("wiring", Status.PASS)], emulated=True, not_asked=["vllm_engine"], ranks=2, nodes=2)
    assert verdict.status is Outcome.READY
    assert verdict.summary.endswith("not asked: vllm_engine") and "your cluster was not tested" in verdict.summary


def test_an_empty_run_blames_nobody() -> None:
    assert triage.findings(Run())[0].cause == "insufficient-evidence"


def test_a_cause_that_no_rule_finds_but_a_probe_does_explains_nothing_and_is_kept() -> None:
    (finding,) = triage.findings(Run(facts=[Fact("fail", fields={"cause": "network-bypassed", "title": "the traffic took another way"})]))
    assert (finding.cause, finding.title) == ("network-bypassed", "the traffic took another way")


def test_what_a_log_states_beyond_doubt_is_told_and_that_something_was_raised_is_not() -> None:
    refused = (
        "RuntimeError: Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR: Connection refused, remote=[127.0.0.1]:4071"
    )
    (finding,) = triage.stated_by([refused + " (rank=1, size=2, local=[127.0.0.1])"], "rank1.log")
    assert finding.cause == "hostname-resolution" and "GLOO_SOCKET_IFNAME=INTERFACE" in finding.remedy
    assert finding.evidence[0].file == "rank1.log" and finding.evidence[0].line == 1
    assert triage.stated_by(["Traceback (most recent call last):", "KeyError: 'labels'"], "rank1.log") == []

"""A drill draws the same faults on every node, scores what was said of them without mercy, and reports it in every format."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncclcheck import drill, fault, registry
from ncclcheck import report as reports
from ncclcheck.causes import CAUSES
from ncclcheck.drill import Row, Trial
from ncclcheck.fault import Spec
from ncclcheck.model import EXIT_CODES, Culprit, Finding, Outcome, Report, Status

FAULTS = registry.names("faults")
SOME = ["kill", "port_taken", "partition", "wrong_tp", "wrong_dtype"]


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_says_what_it_is_what_it_must_be_found_as_and_where_it_strikes(name: str) -> None:
    plugin = registry.describe("faults", name)
    expected = plugin.get("EXPECT")
    causes = [expected] if isinstance(expected, str) else list(expected)
    assert causes and set(causes) <= CAUSES.keys()
    assert plugin.get("STRIKES") in ("step", "call", "start", "launcher", "node")
    assert plugin.get("SAFE") in (True, False)
    assert plugin.get("BLAMES", "rank") in ("rank", "pair", "node", "link", "master")
    assert set(plugin.get("PROBES", (drill.JOB,))) <= set(registry.names("probes"))
    assert all(need in ("gpu", "vllm", "two-nodes", "two-ranks-on-a-node") or need.startswith("/") for need in plugin.get("NEEDS", ()))
    assert plugin.doc.endswith(".") and plugin.title == plugin.doc


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_the_function_that_belongs_to_where_it_strikes(name: str) -> None:
    pytest.importorskip("torch")
    module = registry.load("faults", name)
    strikes = {"step": "inject", "node": "inject", "call": "alter", "start": "environment", "launcher": "launcher"}
    functions = {function for function in ("inject", "alter", "environment", "launcher") if hasattr(module, function)}
    assert functions == {strikes[module.STRIKES]}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_every_node_draws_the_same_trials_with_victims_and_moments_in_range(nodes: int, each: int, repeat: int, seed: int) -> None:
    drawn = drill.trials(SOME, nodes, each, repeat, seed)
    assert drawn == drill.trials(SOME, nodes, each, repeat, seed)
    assert [trial.spec.name for trial in drawn if trial.moment != "generate"] == [
        name for name in SOME for _ in registry.describe("faults", name).get("PROBES", (drill.JOB,))
    ] * repeat
    assert {trial.probe for trial in drawn if trial.spec.name == "kill"} == {"training", "vllm_engine"}
    for trial in drawn:
        assert 0 <= trial.spec.rank < (each if trial.spec.name == "port_taken" else nodes * each)
        assert fault.parse(str(trial.spec)) == trial.spec
        if trial.spec.strikes in ("start", "launcher"):
            assert (trial.spec.after, trial.spec.delay) == (0, 0.0)
        elif trial.probe == drill.JOB:
            assert drill.FIRST <= trial.spec.after <= drill.LAST and trial.moment == ""
        elif trial.moment == "generate":
            assert drill.ENGINE_STEPS[0] <= trial.spec.after <= drill.ENGINE_STEPS[1]
        else:
            assert (trial.spec.after, trial.spec.delay, trial.moment) == (0, drill.ENGINE_START, "start")


def test_other_seeds_and_other_rounds_draw_other_victims_and_moments() -> None:
    drawn = [drill.trials(["hang"], 4, 8, 1, seed)[0].spec for seed in range(20)]
    assert len({(spec.rank, spec.after) for spec in drawn}) > 15
    rounds = [trial.spec for trial in drill.trials(["hang"], 4, 8, 20, 1)]
    assert len({(spec.rank, spec.after) for spec in rounds}) > 15


def test_what_is_drawn_for_a_fault_does_not_depend_on_which_others_are_drawn() -> None:
    assert set(drill.trials(["hang"], 2, 2, 2, 5)) < set(drill.trials(FAULTS, 2, 2, 2, 5))


def report(cause: str = "rank-killed", culprit: Culprit | None = None, status: Outcome = Outcome.NOT_READY, **planted: Any) -> Report:
    """What a probe said of a fault that struck rank 3, on two nodes with two ranks each."""
    findings = [Finding(cause, f"{cause} it is", culprit or Culprit(ranks=[3], hosts=["b"])), Finding("peer-reset", "a symptom")]
    nodes = [{"node_rank": number, "host": host} for number, host in enumerate("ab")]
    return Report(1, status, "a summary", 9.0, findings, True, {}, (), nodes, (), {"planted": {"seconds": 1.25, "refused": None, **planted}})


def trial(name: str = "kill", rank: int = 3) -> Trial:
    return Trial(Spec(name, rank, 40), "training")


def test_a_fault_that_is_named_with_its_cause_and_its_victim_only_is_right() -> None:
    assert drill.score(trial(), report(), 2, []) == Row(
        "kill", 3, Status.PASS, True, 1.25, "rank-killed", True, True, True, "training", "kill@rank=3,after=40", "rank-killed it is"
    )


def test_degraded_is_a_detection_too() -> None:
    assert drill.score(trial("slow"), report("slow-rank", status=Outcome.DEGRADED), 2, []).status is Status.PASS


@pytest.mark.parametrize(
    "changes, cause_right, culprit_right",
    [
        ({"cause": "rank-died-oom"}, False, True),
        ({"culprit": Culprit(ranks=[2], hosts=["b"])}, True, False),
        ({"culprit": Culprit(ranks=[2, 3], hosts=["b"])}, True, False),  # a bystander with it
        ({"culprit": Culprit(hosts=["b"])}, True, False),
        ({"culprit": Culprit()}, True, False),
        ({"cause": "rank-died-oom", "culprit": Culprit(ranks=[0])}, False, False),
    ],
)
def test_a_wrong_cause_or_a_wrong_culprit_fails(changes: dict[str, Any], cause_right: bool, culprit_right: bool) -> None:
    row = drill.score(trial(), report(**changes), 2, [])
    assert (row.status, row.detected, row.seconds) == (Status.FAIL, True, 1.25)
    assert (row.cause_right, row.culprit_right, row.clean) == (cause_right, culprit_right, True)


@pytest.mark.parametrize(
    "name, rank, hosts, right",
    [
        ("partition", 3, ["b"], True),  # a link has two ends
        ("partition", 3, ["a", "b"], True),
        ("partition", 3, ["a"], False),
        ("missing_rank", 3, ["b"], True),
        ("missing_rank", 3, ["a", "b"], False),
        ("port_taken", 1, ["a"], True),
        ("port_taken", 1, ["b"], False),
    ],
)
def test_a_fault_of_a_node_must_be_blamed_on_that_node(name: str, rank: int, hosts: list[str], right: bool) -> None:
    expected = registry.describe("faults", name).get("EXPECT")
    row = drill.score(trial(name, rank), report(expected, Culprit(hosts=hosts)), 2, [])
    assert (row.culprit_right, row.status is Status.PASS) == (right, right)


@pytest.mark.parametrize("ranks, each, right", [([0, 1], 1, True), ([0], 1, False), ([0, 1], 2, False)])
def test_of_two_ranks_that_contradict_each_other_both_may_be_named_in_a_job_of_two(ranks: list[int], each: int, right: bool) -> None:
    row = drill.score(trial("wrong_dtype", 1), report("collective-mismatch", Culprit(ranks=ranks)), each, [])
    assert row.culprit_right == right
    assert not drill.score(trial("kill", 1), report("rank-killed", Culprit(ranks=[0, 1])), 1, []).culprit_right


@pytest.mark.parametrize("status", [Outcome.READY, Outcome.UNKNOWN])
def test_a_fault_without_an_alarm_was_not_detected_whatever_was_found(status: Outcome) -> None:
    row = drill.score(trial(), report(status=status), 2, [])
    assert (row.status, row.detected, row.seconds, row.cause_right, row.said) == (Status.FAIL, False, None, False, "a summary")


def test_an_alarm_without_a_finding_is_no_detection() -> None:
    row = drill.score(trial(), replace(report(), findings=[]), 2, [])
    assert (row.status, row.detected, row.cause) == (Status.FAIL, False, None)


def test_a_fault_that_never_struck_was_not_detected_though_it_raised_an_alarm() -> None:
    row = drill.score(trial(), report(seconds=None), 2, [])
    assert (row.status, row.detected, row.said) == (Status.FAIL, False, "it never struck: a summary")
    assert drill.score(trial(), replace(report(), run={}), 2, []).detected is False


def test_a_fault_that_this_machine_refuses_is_skipped_with_the_reason() -> None:
    row = drill.score(trial("host_oom"), report(refused="a memory cgroup: Read-only file system", seconds=None), 2, [])
    assert (row.status, row.said, row.clean) == (Status.SKIP, "a memory cgroup: Read-only file system", True)


def test_what_is_left_behind_spoils_a_right_answer_and_is_said() -> None:
    row = drill.score(trial(), report(), 2, ["process 7 still runs"])
    assert (row.status, row.clean, row.cause_right, row.culprit_right) == (Status.FAIL, False, True, True)
    assert row.said == "rank-killed it is; process 7 still runs"


RIGHT = Row("kill", 3, Status.PASS, True, 1.0, "rank-killed", True, True, True, "training", "kill@rank=3,after=40", "rank 3 was killed")
BLAMED = replace(RIGHT, fault="hang", status=Status.FAIL, seconds=3.0, culprit_right=False, said="rank 1 hangs")
UNSEEN = Row("skip", 0, Status.FAIL, clean=True, said="all went well")
DIRTY = replace(RIGHT, fault="freeze", status=Status.FAIL, seconds=2.0, clean=False)
SKIPPED = Row("gpu_oom", 1, Status.SKIP, clean=True, said="no GPU for each rank")
CRASHED = Row("abort", 1, Status.CRASHED, clean=True, said="no end within 240 s")


@pytest.mark.parametrize(
    "rows, alarms, code, told",
    [
        (
            [RIGHT, RIGHT],
            0,
            0,
            "2 of 2 faults detected, 2 with the right cause and culprit, 2 left nothing; named after 1.0 s (median), 1.0 s at most",
        ),
        ([RIGHT, SKIPPED], 0, 0, "1 of 1 faults detected, 1 with the right cause and culprit, 1 left nothing"),
        (
            [RIGHT, BLAMED, DIRTY],
            0,
            1,
            "3 of 3 faults detected, 2 with the right cause and culprit, 2 left nothing; named after 2.0 s (median), 3.0 s",
        ),
        ([RIGHT, UNSEEN], 0, 1, "1 of 2 faults detected"),
        ([UNSEEN], 0, 1, "0 of 1 faults detected, 0 with the right cause and culprit, 1 left nothing"),
        ([RIGHT, CRASHED], 0, 1, "1 of 2 faults detected"),
        ([DIRTY], 0, 1, "0 left nothing"),
        ([RIGHT], 1, 1, "1 of the healthy runs between them raised an alarm"),
        ([SKIPPED], 0, 3, "no fault could be planted here; 1 skipped"),
        ([], 0, 3, "no fault could be planted here"),
    ],
)
def test_a_drill_is_healthy_only_if_everything_was_right(rows: list[Row], alarms: int, code: int, told: str) -> None:
    outcome, summary = drill.summary(drill.Tally(rows, alarms))
    assert EXIT_CODES[outcome] == code
    assert told in summary
    assert ("skipped" in summary) == (SKIPPED in rows)


@pytest.mark.parametrize(
    "rows, alarms, precision, recall",
    [
        ([RIGHT, RIGHT, SKIPPED], 0, 1.0, 1.0),
        ([RIGHT, BLAMED, UNSEEN, CRASHED], 0, 0.5, 0.25),  # of two alarms one was right, of four faults one was named
        ([RIGHT, RIGHT, UNSEEN], 1, 0.6667, 0.6667),  # a false alarm
        ([UNSEEN], 0, None, 0.0),
        ([SKIPPED], 0, None, None),
        ([SKIPPED], 2, 0.0, None),
    ],
)
def test_precision_counts_alarms_and_recall_counts_faults(rows: list[Row], alarms: int, precision: float | None, recall: float | None) -> None:
    figures = drill.figures(drill.Tally(rows, alarms))
    assert (figures["precision"], figures["recall"], figures["false_alarms"]) == (precision, recall, alarms)
    assert figures["trials"] == len([row for row in rows if row is not SKIPPED])


def drilled(rows: list[Row]) -> Report:
    outcome, told = drill.summary(drill.Tally(rows, 0))
    return Report(1, outcome, told, 60.0, (), True, {}, (), (), (), dict(drill.figures(drill.Tally(rows, 0))), drill=[asdict(row) for row in rows])


ALL = [RIGHT, BLAMED, UNSEEN, SKIPPED, CRASHED]


def test_on_a_terminal_each_fault_has_a_line_and_what_went_wrong_is_told_below() -> None:
    text = reports.render(drilled(ALL), "text")
    table = text[: text.index("skipped, since")]
    assert [line.split()[0] for line in table.splitlines()[3:] if line.strip()] == ["kill", "hang", "skip", "abort"]
    (kill,) = [line.split() for line in table.splitlines() if line.startswith("kill")]
    assert kill == ["kill", "3", "yes", "1.0", "rank-killed", "yes", "yes", "yes"]
    assert "  gpu_oom: no GPU for each rank" in text
    wrong = text[text.index("not as it should be") :]
    assert "  hang (kill@rank=3,after=40): rank 1 hangs" in wrong and "all went well" in wrong and "no end within 240 s" in wrong
    assert "rank 3 was killed" not in text


def test_in_json_every_row_is_whole() -> None:
    document = json.loads(reports.render(drilled(ALL), "json"))
    assert document["drill"] == [json.loads(json.dumps(asdict(row))) for row in ALL]
    assert (document["run"]["precision"], document["run"]["recall"]) == (0.5, 0.25)


def test_in_junit_each_fault_is_a_test_case() -> None:
    suite = ElementTree.fromstring(reports.render(drilled(ALL), "junit").encode())
    cases = [case for case in suite.findall("testcase") if case.get("classname") == "ncclcheck.drill"]
    assert [(case.get("name"), [child.tag for child in case]) for case in cases] == [
        ("kill in rank 3", []),
        ("hang in rank 3", ["failure"]),
        ("skip in rank 0", ["failure"]),
        ("gpu_oom in rank 1", ["skipped"]),
        ("abort in rank 1", ["error"]),
    ]
    failure = cases[1].find("failure")
    assert failure is not None and (failure.get("message"), failure.text) == ("rank 1 hangs", "kill@rank=3,after=40")
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["6", "3", "1", "1"]  # the verdict is one, too


def test_in_prometheus_a_fault_is_right_only_if_it_was_right_each_time() -> None:
    text = reports.render(drilled([*ALL, replace(RIGHT, victim=0), replace(RIGHT, fault="slow"), replace(BLAMED, fault="slow")]), "prometheus")
    series = {line for line in text.splitlines() if line.startswith("ncclcheck_drill_right{")}
    right = {"kill": 1, "hang": 0, "skip": 0, "abort": 0, "slow": 0}
    assert series == {f'ncclcheck_drill_right{{fault="{name}"}} {value}' for name, value in right.items()}


def test_a_run_without_a_drill_has_no_metric_of_one() -> None:
    assert "drill" not in reports.render(replace(drilled(ALL), drill=()), "prometheus")

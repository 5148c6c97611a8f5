"""Bundles that travel to node 0: only whole ones are judged, and what is not known of a node is said after what is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncclcheck import examination
from ncclcheck.examination import LARGEST, PART, Bundles
from ncclcheck.model import Finding, Outcome, Report


def test_a_bundle_arrives_as_it_was_sent_in_whatever_order(tmp_path: Path) -> None:
    sent = bytes(range(256)) * (PART // 100)
    pieces = examination.parts(sent)
    bundles = Bundles(tmp_path)
    for number in reversed(range(len(pieces))):
        assert bundles.done() == set()
        bundles.add(1, number, len(pieces), pieces[number], "")
    (path,) = bundles.name({1: "../gpu/02"})
    bundles.add(1, 0, len(pieces), bytes(PART), "")  # again: too late
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == sent


@pytest.mark.parametrize(("part", "count", "size"), [(-1, 1, 4), (1, 1, 4), (0, 0, 4), (0, LARGEST // PART + 1, 4), (0, 1, PART + 1), (1, 3, 4)])
def test_what_is_no_part_of_a_bundle_ends_its_node_and_no_other(part: int, count: int, size: int, tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bundles.add(0, 0, 1, b"whole", "")
    bundles.add(1, 0, 2, bytes(PART), "")
    bundles.add(1, part, count, bytes(size), "")
    assert bundles.done() == {0, 1} and bundles.whole() == {0}
    assert bundles.failed[1].endswith("is none of a bundle")
    assert [path.read_bytes() for path in bundles.name({0: "a", 1: "b"})] == [b"whole"]
    assert len(list(tmp_path.iterdir())) == 1


def _report(status: Outcome) -> Report:
    return Report(
        schema=1, status=status, summary="as it was", seconds=0.0, findings=[Finding("rank-killed", "rank 0 was killed")],
        emulated=False, environment={}, probes=(), nodes=(), ranks=(), run={},
    )  # fmt: skip


def test_a_node_of_which_nothing_came_leaves_a_problem_one_and_makes_health_unknown() -> None:
    absent = [examination.unseen(1, "gpu-02", "it did not come within 60 s")]
    problem, healthy = (examination.completed(_report(status), absent) for status in (Outcome.PROBLEM, Outcome.HEALTHY))
    assert problem.status is Outcome.PROBLEM and problem.summary == "as it was"
    assert [finding.cause for finding in problem.findings] == ["rank-killed", "agent-lost"]
    assert healthy.status is Outcome.UNKNOWN and "nothing is known of node 1 (gpu-02)" in healthy.summary
    assert examination.completed(_report(Outcome.HEALTHY), []).status is Outcome.HEALTHY


def test_bundles_that_cannot_be_judged_in_time_are_kept_and_said() -> None:
    found = examination.unjudged([Path("runs/x/node0-a.tar.gz")], TimeoutError("no verdict in 120 s"))
    assert found.title == "the bundles of 1 node could not be judged: no verdict in 120 s" and found.remedy == "ncclcheck triage runs/x"

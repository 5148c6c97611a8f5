"""Ranks and agents that are killed or stopped from outside, unannounced, in the middle of real work: named in seconds, nothing left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, Job, children, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="signals into emulated nodes need root")]

MIDDLES = {"bandwidth": "all_reduce", "collectives": "all_gather", "vllm_engine": "vllm generate"}
WITHIN = 30.0  # seconds from the kill to the report: three times what is promised of a machine that does nothing else
CAUSES = {signal.SIGKILL: "rank-killed", signal.SIGSTOP: "process-stopped"}


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    """The probe that a test asks for; else a training, which lasts until something happens to it."""
    probe = [request.param] if hasattr(request, "param") else ["training", "--budget", "50s"]
    running = Job(tmp_path, "probe", *probe, "--emulate", "2x1", "--format", "json")
    yield running
    running.kill()


@pytest.mark.parametrize("number", CAUSES, ids=lambda number: number.name)
@pytest.mark.parametrize("job", MIDDLES, indirect=True)
def test_a_rank_hit_in_the_middle_of_a_probe_is_named_in_seconds_and_nothing_is_left(
    job: Job, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    probe = request.node.callspec.params["job"]
    pid = until(lambda: job.ranks().get(1), SOON, "rank 1")
    until(lambda: job.announced(1, MIDDLES[probe]), 120, f"{probe} at work")
    os.kill(pid, number)
    assert job.wait(WITHIN) == 1
    (finding,) = job.report["findings"]
    assert finding["cause"] == CAUSES[number]
    assert finding["culprit"]["ranks"] == [1] and finding["culprit"]["hosts"] == ["node1"]
    assert finding["evidence"] and finding["remedy"]
    assert job.report["probes"][0]["status"] == "fail"
    assert "rank 1 (node1" in job.report["summary"]
    assert "Traceback" not in job.err
    assert job.left() == []


@pytest.mark.parametrize("number", CAUSES, ids=lambda number: number.name)
def test_torchrun_itself_killed_or_stopped_is_what_the_verdict_names(job: Job, number: signal.Signals) -> None:
    until(lambda: job.announced(1, "checkpoint"), SOON, "training at work")
    os.kill(job.launchers()[1], number)
    assert job.wait(SOON) == 1
    (finding,) = job.report["findings"]
    assert finding["cause"] == CAUSES[number] and finding["culprit"]["hosts"] == ["node1"]
    assert "torchrun of node1" in finding["title"]
    assert job.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_of_torchrun_that_was_asked_to_end_it_is_said_so_and_no_rank_is_taken_for_killed_by_others(job: Job, number: signal.Signals) -> None:
    until(lambda: job.announced(1, "checkpoint"), SOON, "training at work")
    os.kill(job.launchers()[1], number)
    assert job.wait(SOON) == 1
    (finding,) = job.report["findings"]
    assert finding["cause"] == "rank-killed" and finding["culprit"]["hosts"] == ["node1"]
    assert finding["title"].startswith(f"torchrun of node1 was asked to end by {number.name} (who sent it is not known), and ended rank 1 (node1")
    assert "SIGKILL" not in finding["title"] and "launcher.log" in finding["evidence"][0]["file"]
    assert job.left() == []


def test_a_rank_killed_before_it_could_say_a_word_is_named_in_seconds(job: Job) -> None:
    pid = until(lambda: job.ranks().get(1), SOON, "rank 1")
    os.kill(pid, signal.SIGKILL)
    assert job.wait(WITHIN) == 1
    (finding,) = job.report["findings"]
    assert finding["cause"] == "rank-killed" and finding["culprit"]["ranks"] == [1] and finding["culprit"]["hosts"] == ["node1"]
    assert job.left() == []


@pytest.mark.parametrize("lost", [1, 0])
def test_an_agent_that_is_killed_is_reported_by_the_other_and_its_ranks_go_with_it(job: Job, lost: int) -> None:
    until(lambda: job.announced(0, "checkpoint"), SOON, "training at work")
    os.kill(children(job.process.pid)[lost], signal.SIGKILL)
    assert job.wait(SOON) == 3
    report = job.report
    (finding,) = report["findings"]
    assert (report["status"], finding["cause"]) == ("unknown", "agent-lost")
    assert finding["culprit"]["hosts"] == [f"node{lost}"]
    assert f"node {lost}" in report["summary"]
    assert "Traceback" not in job.err
    assert job.left() == []


def test_the_parent_of_emulated_nodes_takes_everything_along_when_it_is_killed(job: Job) -> None:
    until(lambda: job.announced(1, "checkpoint"), SOON, "training at work")
    job.process.kill()
    until(lambda: not job.left(), SOON, "every process of both nodes gone")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupt_ends_everything_and_says_so_in_the_exit_code(job: Job, number: signal.Signals, code: int) -> None:
    until(lambda: job.announced(1, "checkpoint"), SOON, "training at work")
    job.process.send_signal(number)
    assert job.wait(SOON) == code
    assert "Traceback" not in job.err and job.left() == []

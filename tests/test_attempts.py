"""Errors that were survived, earlier attempts, and findings of other places do not outweigh what ended the job."""

from __future__ import annotations

import pytest
from drawing import read

from ncclcheck import triage
from ncclcheck.model import Finding, Run

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 7.00 GiB."
TIMEOUT = (
    "[PG ID 0 PG GUID 0(default_pg) Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=91, OpType=ALLREDUCE, "
    "NumelIn=8, NumelOut=8, Timeout(ms)=600000) ran for 600012 milliseconds before timing out."
)


def logs(**files: str) -> Run:
    """The run that these logs tell of."""
    return read("\n".join(f"log {name}.log: {line}" for name, text in files.items() for line in text.rstrip().split("\n")))[0]


def of(cause: str, found: list[Finding]) -> float:
    """The confidence in a cause, 0 where it is not named."""
    return max((finding.confidence for finding in found if finding.cause == cause), default=0.0)


def raised(rank: int, error: str) -> str:
    return f'[rank{rank}]: Traceback (most recent call last):\n[rank{rank}]:   File "/home/me/a.py", line 3, in step\n[rank{rank}]: {error}\n'


@pytest.mark.parametrize(
    "later",
    [
        "[rank2]: retrying with batch 32",
        "Training finished",
        f"[rank2]:[E1122 09:30:00.000000000 ProcessGroupNCCL.cpp:629] {TIMEOUT}",
    ],
)
def test_an_error_that_its_rank_survived_is_no_death(later: str) -> None:
    assert of("rank-died-oom", triage.findings(logs(a=raised(2, OOM)))) >= 0.9
    found = triage.findings(logs(a=raised(2, OOM) + later))
    assert of("rank-died-oom", found) < triage.LIKELY and of("rank-died-exception", found) < triage.LIKELY


def test_a_job_that_survived_an_error_and_finished_is_healthy() -> None:
    assert triage.findings(logs(a=raised(2, OOM) + "Training finished"))[0].cause == "no-problem-found"


def test_a_rank_that_makes_further_steps_did_not_die() -> None:
    died = {"rank0": "[rank0]: loss 2.1 at step 5", "rank1": raised(1, "ValueError: bad shard")}
    assert of("rank-died-exception", triage.findings(logs(**died))) >= 0.9
    assert of("rank-died-exception", triage.findings(logs(**{**died, "rank1": died["rank1"] + "[rank1]: step 6 loss 2.0"}))) == 0


def test_what_ended_an_earlier_attempt_is_a_guess() -> None:
    restart = "[default] Worker group FAILED. 2/3 attempts left; will restart worker group\n"
    run = logs(a=raised(1, "ValueError: bad shard") + restart + raised(0, "KeyError: 'labels'"))
    best, *others = triage.findings(run)
    assert best.culprit.ranks == [0] and best.confidence >= 0.9
    assert [finding.culprit.ranks for finding in others] == [[1]] and others[0].confidence < triage.LIKELY


def test_an_error_that_is_repeated_in_every_attempt_is_the_cause() -> None:
    failed = (
        "E0102 10:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1003] failed (exitcode: 1) local_rank: 1 (pid: %d) of binary: python\n"
    )
    restart = "[default] Worker group FAILED. 2/3 attempts left; will restart worker group\n"
    error = raised(1, "ValueError: bad shard")
    assert of("rank-died-exception", triage.findings(logs(a=error + failed % 70 + restart + error + failed % 90))) >= 0.9


def test_a_kill_of_somebody_elses_process_does_not_explain_a_crash() -> None:
    table = "  host      : gpu-1\n  rank      : 5 (local_rank: 1)\n  exitcode  : -11 (pid: 4883)\n"
    found = triage.findings(logs(a=table, dmesg="Out of memory: Killed process 311 (mysqld) total-vm:9kB"))
    assert found[0].cause == "rank-killed" and found[0].culprit.ranks == [5] and "before its first step" not in found[0].title
    assert "faulthandler" in found[0].remedy.lower() and of("host-oom-killed", found) < triage.LIKELY


def test_a_container_killed_for_memory_is_a_guess_where_a_rank_raised() -> None:
    pod = "      Reason:       OOMKilled"
    assert of("host-oom-killed", triage.findings(logs(pod=pod))) >= 0.9
    found = triage.findings(logs(pod=pod, rank1=raised(1, "ValueError: bad shard")))
    assert found[0].cause == "rank-died-exception" and of("host-oom-killed", found) < triage.LIKELY


def test_a_cause_does_not_explain_the_end_of_a_rank_elsewhere() -> None:
    found = triage.findings(logs(a=raised(1, OOM), b=raised(6, "ValueError: bad shard")))
    assert {tuple(finding.culprit.ranks or ()) for finding in found} >= {(1,), (6,)}

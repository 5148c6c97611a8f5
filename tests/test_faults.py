"""Every fault is planted in a real job, named as what it is, blamed on the right place, and leaves nothing: the drill, a fault at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from running import Job

from ncclcheck import registry

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="faults of networks and cgroups need root")]

NEED_GPU = {"duplicate_gpu", "gpu_error", "gpu_oom", "gpu_spin", "other_nccl"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", [name for name in registry.names("faults") if name not in NEED_GPU])
def test_a_fault_is_named_and_blamed_on_its_victim_and_a_healthy_job_runs_after_it(fault: str, tmp_path: Path) -> None:
    job = Job(tmp_path, "drill", fault, "--emulate", "2x2", "--format", "json")
    code = job.wait(590)
    rows = job.report["drill"]
    assert rows and all(row["status"] == "pass" for row in rows), "\n".join(f"{row['spec']}: {row['cause']}, {row['said']}" for row in rows)
    assert code == 0 and all(row["detected"] and row["cause_right"] and row["culprit_right"] and row["clean"] for row in rows)
    assert all(row["seconds"] < 30 for row in rows)
    assert job.left() == []


def test_a_call_that_differs_and_completes_is_found_in_a_job_that_soon_ends(tmp_path: Path) -> None:
    words = ("--budget", "1s", "--inject", "wrong_dtype@rank=3,after=36")  # in the sum of zeros by which the ranks agree to go on
    job = Job(tmp_path, "probe", "training", "--emulate", "2x2", *words, "--format", "json")
    assert job.wait(200) == 1, job.err
    (finding,) = job.report["findings"]
    assert (finding["cause"], finding["culprit"]["ranks"]) == ("collective-mismatch", [3])
    assert "#37" in finding["title"] and "int32" in finding["title"] and job.left() == []
    assert [probe["status"] for probe in job.report["probes"]] == ["fail"]


def test_a_fault_that_needs_a_gpu_is_skipped_with_the_reason_where_there_is_none(tmp_path: Path) -> None:
    job = Job(tmp_path, "drill", *sorted(NEED_GPU), "--emulate", "2x1", "--format", "json", env={"CUDA_VISIBLE_DEVICES": ""})
    assert job.wait(200) == 3
    assert {row["fault"]: row["status"] for row in job.report["drill"]} == dict.fromkeys(NEED_GPU, "skip")
    assert all(row["said"] for row in job.report["drill"]) and job.report["status"] == "unknown"

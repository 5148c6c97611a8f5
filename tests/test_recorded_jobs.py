"""Jobs of four ranks on two nodes that were broken on purpose on real GPUs (fixtures/record.py): each is triaged from what it left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ncclcheck import assemble, triage
from ncclcheck.evidence import heap

JOBS = Path(__file__).parent / "fixtures" / "jobs.tar.xz"
CAUSES = {
    "sleep": "rank-stuck-in-python",
    "lock": "rank-stuck-in-python",
    "exit0": "rank-exited-early",
    "exit3": "rank-exited-early",
    "sigkill": "rank-killed",
    "segv": "rank-killed",
    "sigstop": "process-stopped",
    "raise": "rank-died-exception",
    "oom": "rank-died-oom",
    "shape": "collective-mismatch",
    "op": "collective-mismatch",
    "skip": "collective-mismatch",
    "extra": "collective-mismatch",
    "dtype": "collective-mismatch",
    "order": "collective-mismatch",
    "recv": "p2p-mismatch",
    "absent": "missing-rank-at-rendezvous",
    "late": "missing-rank-at-rendezvous",
    "ifname": "wrong-interface",
}
NOBODY = {"healthy": "no-problem-found", "master": "wrong-master-addr", "port": "port-in-use"}  # whose rank is not to blame
OPEN = ("root", "spin")  # a broadcast's root is not recorded, and a kernel that never ends looks like its peers'


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(JOBS) as archive:
        archive.extractall(folder, filter="data")
    return folder / "jobs"


def best(*paths: Path) -> dict[str, Any]:
    """The first finding of `ncclcheck triage` on these paths."""
    command = [sys.executable, "-m", "ncclcheck", "triage", "--format", "json", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["findings"][0]
    return found


def told(folder: Path) -> tuple[int, str]:
    """The rank that was broken, and its host."""
    fault = json.loads((folder / "fault.json").read_text())
    node = fault["victim"] // (fault["world"] // fault["nodes"])
    return fault["victim"], f"gpu-{'ab'[node % 2]}{node}"


def report(folder: Path, into: Path) -> Path:
    """What a user would have of the job: all of it but the note on what was planted."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("fault.*"))
    return into


@pytest.mark.parametrize(("fault", "cause"), CAUSES.items())
def test_the_broken_rank_is_named_with_the_cause_and_true_quotes(fault: str, cause: str, jobs: Path, tmp_path: Path) -> None:
    rank, host = told(jobs / f"{fault}-2x2")
    found = best(folder := report(jobs / f"{fault}-2x2", tmp_path / "job"))
    assert (found["cause"], found["culprit"]["ranks"], found["culprit"]["hosts"]) == (cause, [rank], [host]), found
    assert found["remedy"] and found["evidence"]
    for quote in found["evidence"]:
        if not quote["file"].startswith("trace_"):  # a dump's line is a record
            assert quote["text"] == (folder / quote["file"]).read_text(errors="replace").split("\n")[quote["line"] - 1]


@pytest.mark.parametrize(("fault", "cause"), NOBODY.items())
def test_a_cause_that_is_nobodys_is_named(fault: str, cause: str, jobs: Path, tmp_path: Path) -> None:
    assert best(report(jobs / f"{fault}-2x2", tmp_path / "job"))["cause"] == cause


@pytest.mark.parametrize("fault", OPEN)
def test_what_the_evidence_does_not_carry_is_said_to_be_open(fault: str, jobs: Path, tmp_path: Path) -> None:
    found = best(report(jobs / f"{fault}-2x2", tmp_path / "job"))
    assert found["confidence"] < 0.5 and not found["culprit"]["ranks"]


@pytest.mark.parametrize("fault", CAUSES)
def test_no_file_is_so_important_that_without_it_a_wrong_rank_is_blamed(fault: str, jobs: Path, tmp_path: Path) -> None:
    rank, _ = told(jobs / f"{fault}-2x2")
    readings = list(heap.read([str(report(jobs / f"{fault}-2x2", tmp_path / "job"))]))
    assert len(readings) > 8
    for away in readings:
        found = triage.judge(assemble.run([reading for reading in readings if reading is not away])).findings[0]
        assert set(found.culprit.ranks or ()) <= {rank}, (away.name, found.cause, found.title)

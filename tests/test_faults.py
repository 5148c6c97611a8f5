"""Every fault, planted in one rank of a real job, is found as the cause that it names and blamed on its victim."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Job

from ncclcheck import registry

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", registry.names("faults"))
def test_a_planted_fault_is_found_and_blamed_on_its_victim_and_nothing_is_left(fault: str, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    words = ("--emulate", "2x1", "--inject", f"{fault}@rank=1,after=30", "--format", "json")
    job = Job(tmp_path, "probe", "bandwidth", *words, env={"TMPDIR": str(temporary)})
    assert job.wait(60) == 1, job.err
    best = job.report["findings"][0]
    assert best["cause"] == registry.describe("faults", fault).get("EXPECT")
    assert (best["culprit"]["ranks"], best["culprit"]["hosts"]) == ([1], ["node1"])
    assert job.left() == [] and list(temporary.iterdir()) == []

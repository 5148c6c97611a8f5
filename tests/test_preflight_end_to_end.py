"""Each condition that would stop or cripple a launch is named by `ncclcheck probe` on the right node before any rank starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import planting
import pytest
from running import environments
from test_inventory import weights

pytestmark = pytest.mark.slow
ROOT = Path(planting.__file__).parents[1]
PROBES = ("host", "parity", "reachability")
BETWEEN = ("firewall", "one-way", "black-hole", "another-version")  # of two, nobody can tell which one is wrong
CONDITIONS = {**planting.PLANTINGS, **planting.APART}


def probed(folder: Path, name: str, victim: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both nodes' reports of the probes that start no rank, and of one that starts some."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    weights(model / "model.safetensors", bytes(1024))
    mark = f"NCCLCHECK_TEST={folder}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, **dict([mark.split("=", 1)])}
    words = ["probe", *PROBES, "wiring", "--nproc-per-node", "2", "--model", str(model)]
    script = [sys.executable, planting.__file__, name, str(victim), *words]
    done = subprocess.run(script, cwd=folder, env=environ, capture_output=True, text=True, timeout=280)
    if "EmulationRefused" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    reports = [(folder / f"node{rank}.json").read_text() for rank in range(2)]
    said = done.stderr + "".join((folder / f"node{rank}.err").read_text() for rank in range(2))
    assert done.returncode == 0 and all(reports), said
    assert not [pid for pid, found in environments() if mark.encode() in found]
    first, other = (json.loads(report) for report in reports)
    return first, other


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_would_stop_or_cripple_a_launch_is_named_before_any_rank_starts(tmp_path: Path, name: str) -> None:
    planted, victim = CONDITIONS[name], len(name) % 2
    report, other = probed(tmp_path, name, victim)
    host = f"node{victim}"
    severity = {"fail": "stop", "degraded": "degradation"}[planted.kind if name != "shm-of-64-mib" else "fail"]  # of two ranks it is a stop
    finding = next((each for each in report["findings"] if each["cause"] == planted.cause), None)
    assert finding, [each["title"] for each in report["findings"]] or report["summary"]
    assert planted.said.format(host=host) in finding["title"] and finding["severity"] == severity
    assert finding["culprit"]["hosts"] == (["node0", "node1"] if name in BETWEEN else [host]), finding
    assert finding["remedy"] and finding["evidence"]
    strangers = [each for each in report["findings"] if not {host} & set(each["culprit"]["hosts"] or ())]
    assert strangers == []
    statuses = {probe["name"]: probe["status"] for probe in report["probes"]}
    assert list(statuses) == [*PROBES, "wiring"] and "crashed" not in statuses.values()
    if severity == "stop":
        assert report["status"] == "not-ready" and statuses["wiring"] == "skip" and report["ranks"] == []
    else:
        assert report["status"] == "degraded" and statuses["wiring"] == "pass"
    assert other["summary"] == report["summary"]


def test_two_healthy_nodes_give_no_finding_and_the_ranks_start(tmp_path: Path) -> None:
    report, _ = probed(tmp_path, "healthy", 0)
    assert (report["status"], report["findings"]) == ("ready", [])
    assert {probe["status"] for probe in report["probes"]} == {"pass"} and len(report["ranks"]) == 4

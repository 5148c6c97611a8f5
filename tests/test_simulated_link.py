"""A slow link between emulated nodes: by real packets between two network namespaces, and as `ncclcheck probe` sees it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import Job

from ncclcheck import link

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets and queues of emulated nodes need root")]
HERE = Path(__file__).parent


def times(text: str, nbytes: int) -> dict[str, dict[str, float]]:
    """What tests/slowed.py sees between two emulated nodes."""
    command = [sys.executable, "-m", "ncclcheck.emulate", "2", "--", sys.executable, str(HERE / "slowed.py"), text, str(nbytes)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environ)
    assert done.returncode == 0, done.stderr
    seen: dict[str, dict[str, float]] = json.loads(done.stdout)
    return seen


def test_a_delay_makes_every_round_trip_longer_by_it_and_is_gone_afterwards() -> None:
    seen = times("20ms", 64)
    assert seen["before"]["round_trip"] < 0.015 > seen["after"]["round_trip"]
    assert 0.020 <= seen["slow"]["round_trip"] < 0.040  # one way of the two is slow


def test_a_rate_limits_what_is_sent_and_is_gone_afterwards() -> None:
    seen = times("40Mbit", 2 * 2**20)
    assert 0.7 * 5e6 < seen["slow"]["rate"] < 1.15 * 5e6
    assert seen["before"]["rate"] > 20e6 < seen["after"]["rate"]


def test_the_probes_see_the_link_as_it_is_simulated_in_both_directions(tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "reachability", "--emulate", "2x1", "--simulate-link", "80Mbit,5ms", "--format", "json")
    assert job.wait(200) in (0, 1), job.out + job.err  # slow enough to be called degraded, or not
    assert job.report["run"]["simulated_link"] == "80Mbit,5ms" and job.report["emulated"]
    detail = job.report["probes"][0]["detail"]
    assert (told := re.search(r"round trip (\d+)", detail)) and 10 <= int(told[1]) < 40, detail
    assert job.left() == []


def test_a_link_stays_slow_from_one_launch_to_the_next(tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "hang", "bandwidth", "--emulate", "2x1", "--simulate-link", "5ms", "--max-bytes", "64", "--budget", "1s",
              "--format", "json")  # fmt: skip
    assert job.wait(250) == 0, job.out + job.err
    for probe in job.report["probes"]:  # hang has two launches: what ends all of a launch must not end the link
        assert min(sample["latency_min"] for sample in probe["samples"]) > 0.005, probe["name"]
    assert len(job.report["probes"]) == 2 and job.left() == []


def test_where_a_link_cannot_be_simulated_it_is_said_and_nothing_is_started() -> None:
    with pytest.raises(link.Refused, match="no interface nowhere"), link.kept(link.Link(1e6), "nowhere", ["10.0.0.2"]):
        raise AssertionError("the link was said to be slow")


def test_on_real_nodes_no_link_is_made_slow(tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "wiring", "--nnodes", "1", "--nproc-per-node", "1", "--simulate-link", "1Gbit")
    assert job.wait(60) == 2 and "a real network is left as it is" in job.err

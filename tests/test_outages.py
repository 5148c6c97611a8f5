"""An outage of seconds that a job survives is named, with host and interface; the verdict is degraded, not ready."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cards
import pytest
from running import SOON, Job, children, until

from ncclcheck import standstill
from ncclcheck.collect import infiniband
from ncclcheck.journal import Slot
from ncclcheck.pace import Pace

OUTAGE = 2.6  # seconds: longer than a collective of milliseconds may take; TCP tries again after 3, and after 6 a node counts as lost
CUT = """
import sys, time
from ncclcheck import namespaces
from ncclcheck.sieve import Sieve, taken
with taken("eth0", Sieve([namespaces.address(0)], incoming=True)):
    time.sleep(float(sys.argv[1]))
"""
DOWN = """
import sys, time
from pyroute2 import IPRoute
with IPRoute() as ip:
    (cable,) = ip.link_lookup(ifname="eth0")
    ip.link("set", index=cable, state="down")
    time.sleep(float(sys.argv[1]))
    ip.link("set", index=cable, state="up")
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Job]:
    if os.geteuid() != 0:
        pytest.skip("only root may enter another's network")
    job = Job(tmp_path, "probe", "training", "--budget", "25s", "--emulate", "2x1", "--format", "json", env={"CUDA_VISIBLE_DEVICES": ""})
    yield job
    job.kill()


def finding(job: Job, script: str) -> Mapping[str, Any]:
    """What is said of a job on whose node 1 the script ran, once all collectives had been issued many times."""
    until(lambda: job.announced(1, "checkpoint", times=20), SOON, "training at work")
    enter = ("nsenter", "--net", "--target", str(children(job.process.pid)[1]), "--", sys.executable, "-c", script, str(OUTAGE))
    subprocess.run(enter, check=True, timeout=SOON)
    assert job.wait(2 * SOON) == 1, job.out + job.err
    assert job.report["status"] == "degraded" and [probe["status"] for probe in job.report["probes"]] == ["degraded"]
    (found,) = job.report["findings"]
    assert found["cause"] == "link-interrupted" and found["title"] in job.report["summary"] and job.left() == []
    return dict(found)


@pytest.mark.slow
def test_a_link_that_was_down_for_seconds_is_named_with_its_host_and_interface(training: Job) -> None:
    found = finding(training, DOWN)
    assert (found["culprit"]["hosts"], found["culprit"]["interface"]) == (["node1"], "eth0")
    assert "eth0 of node1 once" in found["title"]


@pytest.mark.slow
def test_an_outage_further_away_is_named_by_the_standstill_and_the_hosts_that_waited_for_answers(training: Job) -> None:
    found = finding(training, CUT)
    assert set(found["culprit"]["hosts"]) <= {"node0", "node1"} and "the network carried nothing for about" in found["title"]


def slot(rank: int, *, local: bool = False) -> Slot:
    return Slot(100 + rank, rank, 7, 8, 1.0, None, 2.0, local, False, False, 0.0, 0.0, 7, 7, 1, "all_reduce", "world", "float32")


def readings(resumed: float, starved: float = 0.0) -> list[Pace]:
    return [
        Pace(10.0, 7, 1.0, 1.0, 1.0),
        Pace(12.0, 7, 1.0, 3.0, 1.0),
        Pace(resumed, 8, 1.0, 4.0, 1.0 + starved),
        Pace(resumed + 1, 50, 1.0, 4.0, 9.0),
    ]


def test_a_standstill_lasts_until_the_first_rank_moves_again_and_says_how_long_one_of_them_wanted_for_a_cpu() -> None:
    fact = standstill.fact({0: slot(0), 1: slot(1)}, {0: readings(13.5), 1: readings(13.0, starved=2.0)}, 10.0, 16.0)
    assert fact.kind == "stood-still"
    assert fact.fields == {"seconds": 3.0, "step": "all_reduce", "seq": 7, "network": True, "starved": 2.0}


def test_a_standstill_while_a_rank_is_at_work_of_its_own_is_not_the_networks() -> None:
    fact = standstill.fact({0: slot(0), 1: slot(1, local=True)}, {}, 10.0, 16.0)
    assert (fact.get("network"), fact.get("seconds"), fact.get("starved")) == (False, 6.0, 0.0)


def test_of_rdma_ports_it_is_counted_how_often_each_lost_its_link(tmp_path: Path) -> None:
    assert infiniband.link_losses(tmp_path) == {}
    cards.port(tmp_path, counters={"link_downed": 3})
    assert infiniband.link_losses(tmp_path) == {"mlx5_0:1": 3}

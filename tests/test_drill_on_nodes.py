"""A drill on two nodes is one command on each: both draw the same faults, keep in step by their roll calls, and mend what they broke."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lab import TwoHosts
from pyroute2 import IPRoute
from running import SOON, Job, until

pytestmark = pytest.mark.slow

CLUSTER = ("--nnodes", "2", "--master", "10.77.0.1")


def state(host_pid: int, interface: str) -> str:
    with IPRoute(netns=f"/proc/{host_pid}/ns/net") as ip:
        return str(ip.link("get", index=ip.link_lookup(ifname=interface)[0])[0].get_attr("IFLA_OPERSTATE"))


@pytest.mark.timeout(600)
def test_two_nodes_drill_the_same_faults_their_network_included(two_hosts: TwoHosts) -> None:
    words = ("drill", "kill", "link_down", *CLUSTER, "--allow-network-faults", "--format", "json")
    jobs = [two_hosts.start(host, *words) for host in (two_hosts.a, two_hosts.b)]
    codes = [job.wait(290) for job in jobs]
    first = jobs[0].report
    rows = [row for row in first["drill"] if row["probe"] == "training"]
    assert {row["fault"]: row["status"] for row in rows} == {"kill": "pass", "link_down": "pass"}, jobs[0].err + jobs[1].err
    assert not first["emulated"] and codes[0] == 0
    assert [state(host.pid, host.interface) for host in (two_hosts.a, two_hosts.b)] == ["UP", "UP"]


def test_a_fault_of_a_real_nodes_network_needs_permission(two_hosts: TwoHosts, tmp_path: Path) -> None:
    job = Job(
        tmp_path,
        "probe",
        "training",
        "--nnodes",
        "1",
        "--nproc-per-node",
        "2",
        "--inject",
        "link_down@rank=0,after=5",
        env={"GLOO_SOCKET_IFNAME": "lo"},
    )
    assert job.wait(SOON) == 2 and "--allow-network-faults" in job.err


@pytest.mark.skipif(os.geteuid() != 0, reason="it breaks a network")
def test_a_network_that_was_broken_is_mended_even_if_who_broke_it_is_killed(two_hosts: TwoHosts) -> None:
    words = ("probe", "training", *CLUSTER, "--allow-network-faults", "--inject", "link_down@rank=1,after=20", "--budget", "20s")
    _, victim = (two_hosts.start(host, *words) for host in (two_hosts.a, two_hosts.b))
    until(lambda: state(two_hosts.b.pid, two_hosts.b.interface) == "DOWN", SOON, "the link down")
    victim.process.kill()
    until(lambda: state(two_hosts.b.pid, two_hosts.b.interface) == "UP", SOON, "the link up again")

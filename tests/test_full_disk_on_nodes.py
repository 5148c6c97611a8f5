"""A disk that is full on one node is one verdict on all of them: it names that node, whenever the disk fills up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import TwoHosts
from running import free_port

pytestmark = pytest.mark.slow
END = 180.0  # seconds in which both nodes have ended


@pytest.fixture
def disk(two_hosts: TwoHosts, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small disk of node-b's alone."""
    subprocess.run([*two_hosts.b.enter, "mount", "-t", "tmpfs", "-o", f"mode=700,{request.param}", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run([*two_hosts.b.enter, "umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "disk",
    [
        pytest.param("size=4k,nr_inodes=1", id="before the run"),
        pytest.param("size=1m,nr_inodes=2", id="as the run's folder is made"),
        pytest.param("size=1m,nr_inodes=5", id="as a launch begins"),
        pytest.param("size=32k", id="as the ranks' maps are made"),
    ],
    indirect=True,
)
def test_both_nodes_say_that_the_disk_of_the_one_is_full_and_exit_alike(disk: Path, two_hosts: TwoHosts) -> None:
    words = ("probe", "wiring", "--nnodes", "2", "--master", f"{two_hosts.a.address}:{free_port()}", "--format", "json")
    jobs = [two_hosts.start(two_hosts.a, *words), two_hosts.start(two_hosts.b, *words, "--run-dir", str(disk))]
    codes = [job.wait(END) for job in jobs]
    reports = [job.report for job in jobs]
    assert codes == [1, 1], [job.err for job in jobs]
    assert [report["status"] for report in reports] == ["not-ready"] * 2
    firsts = [report["findings"][0] for report in reports]
    assert [(first["cause"], first["culprit"]["hosts"]) for first in firsts] == [("disk-full", ["node-b"])] * 2
    assert firsts[0]["title"] == firsts[1]["title"]


@pytest.mark.parametrize("disk", ["size=1m,nr_inodes=5"], indirect=True)
def test_node_0s_own_full_disk_is_said_by_the_other_too(disk: Path, two_hosts: TwoHosts) -> None:
    """Here node-b, whose disk it is, is node 0."""
    words = ("probe", "wiring", "--nnodes", "2", "--master", f"{two_hosts.b.address}:{free_port()}", "--format", "json")
    jobs = [two_hosts.start(two_hosts.a, *words), two_hosts.start(two_hosts.b, *words, "--run-dir", str(disk))]
    assert [job.wait(END) for job in jobs] == [1, 1], [job.err for job in jobs]
    firsts = [job.report["findings"][0] for job in jobs]
    assert [(first["cause"], first["culprit"]["hosts"]) for first in firsts] == [("disk-full", ["node-b"])] * 2

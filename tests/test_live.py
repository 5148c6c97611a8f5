"""`ncclcheck triage --live` looks at a job that hangs now, on one node or on all of them, and touches nothing of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import TwoHosts
from running import SOON, until

HUNG = """
import os, sys

if "RANK" not in os.environ:  # as a launcher would start it: with its place in the environment that others can see
    os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29533"}
    os.execv(sys.executable, sys.orig_argv)

import torch, torch.distributed as dist

def waits_for_a_lock():
    import threading
    with (lock := threading.Lock()):
        lock.acquire()

print("up", flush=True)
dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
open(sys.argv[2], "w").close()
if dist.get_rank() == 1:
    waits_for_a_lock()
dist.all_reduce(ones)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    try:
        hosts = TwoHosts(tmp_path_factory.mktemp("hosts"))
    except OSError as error:
        pytest.skip(f"this user may not make hosts: {error}")
    yield hosts
    hosts.close()
    until(lambda: not hosts.left(), SOON, "the end of what was started on the two hosts")


@pytest.fixture(scope="module")
def hung(hosts: TwoHosts, tmp_path_factory: pytest.TempPathFactory) -> list[subprocess.Popen[bytes]]:
    """Rank 0 on node-a waits in a collective, rank 1 on node-b for a lock."""
    folder = tmp_path_factory.mktemp("hung")
    env = "import os; os.environ['GLOO_SOCKET_IFNAME'] = {!r}\n"
    script = HUNG
    ranks = [
        hosts.python(host, env.format(host.interface) + script, str(rank), str(folder / f"in-{rank}")) for rank, host in enumerate((hosts.a, hosts.b))
    ]
    until(lambda: len(list(folder.iterdir())) == 2, SOON, "both ranks after their first collective")
    return ranks


@pytest.mark.slow
def test_a_hang_over_two_nodes_is_named_alike_on_both(hosts: TwoHosts, hung: list[subprocess.Popen[bytes]]) -> None:
    words = ("triage", "--live", "--nnodes", "2", "--master", "10.77.0.1", "--format", "json")
    nodes = [hosts.start(host, *words, "--pid", str(rank.pid)) for host, rank in zip((hosts.a, hosts.b), hung, strict=True)]
    assert [node.wait(120) for node in nodes] == [1, 1], [node.err for node in nodes]
    first, second = (node.report for node in nodes)
    assert first["findings"][0]["cause"] == "rank-stuck-in-python", first
    assert first["findings"][0]["culprit"]["ranks"] == [1]
    assert first["findings"][0]["culprit"]["hosts"] == ["node-b"]
    assert "waits_for_a_lock" in first["summary"] and first["summary"] == second["summary"]
    assert [entry["host"] for entry in first["nodes"]] == ["node-a", "node-b"]
    assert all(rank.poll() is None for rank in hung)


@pytest.mark.slow
def test_what_is_quoted_of_a_live_job_stands_in_the_bundle_that_is_kept(hosts: TwoHosts, hung: list[subprocess.Popen[bytes]]) -> None:
    node = hosts.start(hosts.b, "triage", "--live", "--pid", str(hung[1].pid), "--format", "json")
    assert node.wait(120) == 3, node.out + node.err  # one rank alone cannot be blamed
    folder = Path(node.report["run"]["directory"])
    quotes = [quote for finding in node.report["findings"] for quote in finding["evidence"]]
    assert quotes
    for quote in quotes:
        assert quote["text"] in (node.folder / folder / quote["file"]).read_text().split("\n")[quote["line"] - 1]


@pytest.mark.slow
def test_without_a_node_that_does_not_come_the_others_are_judged_and_it_is_named(hosts: TwoHosts, hung: list[subprocess.Popen[bytes]]) -> None:
    words = ("triage", "--live", "--nnodes", "2", "--master", "10.77.0.1", "--roll-call-timeout", "2s", "--format", "json")
    node = hosts.start(hosts.a, *words, "--pid", str(hung[0].pid))
    assert node.wait(120) == 3, node.out + node.err  # one rank that waits does not say for whom
    *found, last = node.report["findings"]
    assert any(finding["cause"] == "insufficient-evidence" and finding["evidence"] for finding in found)
    assert last["cause"] == "agent-lost" and last["title"].startswith("nothing is known of node 1: ")
    assert "ncclcheck triage --live" in last["remedy"] and "ncclcheck probe" not in node.out
    assert [rank["rank"] for rank in node.report["ranks"]] == [0]


@pytest.mark.slow
def test_what_came_before_a_node_was_lost_is_judged(hosts: TwoHosts, hung: list[subprocess.Popen[bytes]]) -> None:
    words = ("triage", "--live", "--nnodes", "2", "--master", "10.77.0.1", "--format", "json")
    lost = hosts.start(hosts.b, *words, "--pid", str(hung[1].pid))
    stays = hosts.start(hosts.a, *words, "--pid", str(hung[0].pid))
    until(lambda: "looking at the jobs on every node" in stays.err, SOON, "the roll call's end")
    lost.kill()
    assert stays.wait(120) in (1, 3), stays.out + stays.err  # its bundle may have come before
    assert [entry["host"] for entry in stays.report["nodes"]] == ["node-a", "node-b"]
    assert 0 in [rank["rank"] for rank in stays.report["ranks"]]
    assert stays.report["run"]["directory"] and all(rank.poll() is None for rank in hung)


@pytest.mark.parametrize("words", ["--live somewhere", "--pid 1 somewhere", "--nnodes 2 somewhere", ""])
def test_options_that_do_not_belong_together_are_refused_in_one_line(hosts: TwoHosts, words: str) -> None:
    node = hosts.start(hosts.a, "triage", *words.split())
    assert node.wait(SOON) == 2
    assert node.err.count("\n") == 1 and node.out == ""

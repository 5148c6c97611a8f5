"""Whoever crowds at node 0's port, and however, the run goes on, its verdict is the same, and it ends when it is told to."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import TwoHosts
from running import SOON, Job, free_port, until

from ncclcheck import echo, handshake

CROWD = """
import itertools, os, random, socket, sys, threading, time
how, port = sys.argv[1], int(sys.argv[2])
os.setgid(65534), os.setuid(65534)  # nobody
LINE = b"ncclcheck %04d\\n" % int(sys.argv[3])
def come():
    held = []
    while True:
        sock = socket.socket()
        sock.settimeout(1)
        try:
            sock.connect(("10.77.0.1", port))
            if how == "random bytes":
                sock.send(random.randbytes(random.randrange(1, 200)))
            elif how == "forged hellos":
                sock.send(LINE + random.randbytes(48) + random.randbytes(random.randrange(80)))
            elif how == "slow senders":
                for other in held[-5:]:
                    other.send(LINE[:1])
            sock.setblocking(False)
        except OSError:
            sock.close()
            time.sleep(0.001)
            continue
        held.append(sock)
        if len(held) > (400 if how != "gone at once" else 0):
            held.pop(0).close()
print("comes", flush=True)
for _ in range(2):
    threading.Thread(target=come).start()
"""
HOW = ("half-open connections", "random bytes", "forged hellos", "slow senders", "gone at once")


@pytest.fixture
def crowd(two_hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A crowd from the second host, of an unprivileged user, until the test is over; how it comes, and to which port."""
    port = free_port()
    process = two_hosts.python(two_hosts.b, CROWD, request.param, str(port), handshake.LINE.split()[1].decode())
    yield request.param, port
    process.kill()
    process.wait()


def first(two_hosts: TwoHosts, port: int, *words: str) -> Job:
    """Node 0, with few descriptors."""
    common = ("--nnodes", "2", "--master", f"10.77.0.1:{port}", "--token", "ours-and-nobody-else-s", "--format", "json", "--nproc-per-node", "1")
    job = two_hosts.start(two_hosts.a, "probe", *words, *common, "--node-rank", "0")
    resource.prlimit(job.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    return job


@pytest.mark.slow
@pytest.mark.parametrize("crowd", HOW, indirect=True)
def test_two_nodes_are_ready_whoever_crowds_at_the_door_and_the_crowd_is_named(two_hosts: TwoHosts, crowd: tuple[str, int]) -> None:
    _, port = crowd
    one = first(two_hosts, port, "wiring")
    until(lambda: "roll call: " in one.err, SOON, "the roll call")
    words = ("--nnodes", "2", "--master", f"10.77.0.1:{port}", "--token", "ours-and-nobody-else-s", "--format", "json", "--nproc-per-node", "1")
    other = two_hosts.start(two_hosts.b, "probe", "wiring", *words, "--node-rank", "1")
    for job in (one, other):
        assert job.wait(3 * SOON) == 0, job.out + job.err
        assert job.report["status"] == "ready" and job.report["findings"] == []
        assert "Traceback" not in job.err
    strangers = one.report["run"]["strangers"]
    assert strangers["connections"] > 1000 and list(strangers["addresses"]) == ["10.77.0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("crowd", ["half-open connections", "random bytes"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_node_0_ends_in_a_crowd_when_it_is_told_to(two_hosts: TwoHosts, crowd: tuple[str, int], number: signal.Signals) -> None:
    _, port = crowd
    job = first(two_hosts, port, "wiring", "--roll-call-timeout", "300s")
    until(lambda: "roll call: " in job.err, SOON, "the roll call")
    until(lambda: _queue(two_hosts, port) or job.process.poll() is not None, SOON, "the crowd")
    job.process.send_signal(number)
    assert job.wait(SOON) == 128 + number
    assert job.left() == [] and "Traceback" not in job.err


@pytest.mark.slow
@pytest.mark.parametrize("crowd", ["half-open connections"], indirect=True)
def test_a_node_that_does_not_come_is_missing_whoever_else_does(two_hosts: TwoHosts, crowd: tuple[str, int]) -> None:
    job = first(two_hosts, crowd[1], "wiring", "--roll-call-timeout", "6s")
    assert job.wait(SOON) == 1, job.out + job.err
    assert [finding["cause"] for finding in job.report["findings"]] == ["missing-rank-at-rendezvous"]


def _queue(two_hosts: TwoHosts, port: int) -> bool:
    """Whether somebody is connected to node 0's port."""
    listing = Path(f"/proc/{two_hosts.a.pid}/net/tcp").read_text()
    return f":{port:04X} " in "".join(line for line in listing.splitlines() if " 01 " in line)


# -- descriptors -----------------------------------------------------------------------------------------------------

RAISED = """
import resource, subprocess, sys
from ncclcheck import open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
print(open_files.room(100) >= 100, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(open_files.room(10000) > 350, resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
child = "import resource; from ncclcheck import open_files; open_files.as_given(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_what_the_agent_raises_for_itself_its_ranks_do_not_get() -> None:
    done = subprocess.run([sys.executable, "-c", RAISED], stdout=subprocess.PIPE, text=True, check=True, timeout=SOON, env={**os.environ})
    assert done.stdout.splitlines() == ["True 200", "True 400", "(200, 400)"]


def test_an_answer_to_a_datagram_is_never_more_than_half_of_it() -> None:
    assert 2 * echo.TOLD.size <= echo.SHORTEST and echo.ASK.size <= echo.SHORTEST

"""What an agent sees of the network around it, and what the verdict makes of a network that breaks in the middle of a probe."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import Host, TwoHosts
from pyroute2 import IPRoute
from running import SOON, Job, children, until

from ncclcheck import echo, paths, ticket, triage
from ncclcheck.model import Fact, Run
from ncclcheck.wire import Peer

WITHIN = 36.0  # seconds from the fault to both reports: three times what it takes on a machine that does nothing else
LONG = 120.0  # seconds for what a healthy way does in a moment


def in_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """A coroutine as a test."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


async def tried(echoing: echo.Echo) -> Fact:
    return await paths.try_path("a", peer(echoing))


def peer(echoing: echo.Echo, secret: bytes | None = None) -> Peer:
    """Where an echo listens."""
    return Peer(1, "b", echoing.address, echoing.port, echoing._checker.secret if secret is None else secret)


@contextlib.asynccontextmanager
async def listening() -> Any:
    echoing = echo.Echo(ticket.Checker())
    await echoing.open("127.0.0.1")
    try:
        yield echoing
    finally:
        echoing.close()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers is waited for, though this machine stands still for a while."""
    for name in ("CONNECT", "SMALL", "LARGE", "WHOLE"):
        monkeypatch.setattr(paths, name, LONG)
    monkeypatch.setattr(echo, "LIVES", LONG)


@in_a_loop
async def test_a_way_that_is_well_carries_large_messages_both_ways(unhurried: None) -> None:
    async with listening() as echoing:
        ways = [await tried(echoing) for _ in range(3)]
    assert {(fact.kind, fact.host, fact.get("peer"), fact.get("answer")) for fact in ways} == {("path", "a", "b", "ok")}
    assert 0 < min(fact.get("rtt_ms") for fact in ways) < 15  # at best: what the way takes, not the machine
    assert all(max(fact.get(name) for fact in ways) > 8e6 for name in ("out_bytes_per_s", "in_bytes_per_s"))


@in_a_loop
async def test_a_port_that_nobody_holds_is_refused(unhurried: None) -> None:
    async with listening() as echoing:
        pass
    assert (await tried(echoing)).get("answer") == "refused"


@in_a_loop
async def test_a_process_that_answers_nobody_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "WHOLE", LONG)
    async with listening() as echoing:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        echoing.port, port = server.sockets[0].getsockname()[1], echoing.port
        assert (await tried(echoing)).get("answer") == "silent"
        server.close()
        echoing.port = port


@in_a_loop
async def test_what_is_no_address_is_no_evidence() -> None:
    fact = await paths.try_path("a", Peer(1, "b", "127.0.0.1", 2**20))
    assert fact.get("answer") == "unsure"


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", echo.HEAD.pack(echo.MAGIC, 0, 2**31), b"\0" * 4096], ids=len)
@in_a_loop
async def test_a_stranger_gets_nothing_from_an_echo(said: bytes, unhurried: None) -> None:
    async with listening() as echoing:
        reader, writer = await asyncio.open_connection(echoing.address, echoing.port)
        writer.write(said)
        writer.write_eof()
        async with asyncio.timeout(SOON):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        assert (await tried(echoing)).get("answer") == "ok"


@pytest.mark.parametrize("count", [64, 500])
@in_a_loop
async def test_strangers_who_hold_connections_to_an_echo_do_not_keep_a_way_from_being_judged(unhurried: None, count: int) -> None:
    async with listening() as echoing:
        held = [await asyncio.open_connection(echoing.address, echoing.port) for _ in range(count)]
        assert (await tried(echoing)).get("answer") == "ok"
        for _, writer in held:
            writer.close()


@in_a_loop
async def test_strangers_who_hold_connections_to_an_echo_go_after_a_while(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "LIVES", 0.5)
    async with listening() as echoing:
        held = [await asyncio.open_connection(echoing.address, echoing.port) for _ in range(echo.MOST)]
        async with asyncio.timeout(SOON):
            for reader, _ in held:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        for _, writer in held:
            writer.close()


@in_a_loop
async def test_nodes_who_hold_every_place_of_an_echo_leave_the_way_unjudged(unhurried: None) -> None:
    async with listening() as echoing:
        head, held = echo.HEAD.pack(echo.MAGIC, 1, 0), []
        for _ in range(echo.MOST):
            reader, writer = await asyncio.open_connection(echoing.address, echoing.port)
            writer.write(head + ticket.for_connection(echoing._checker.secret, head))
            assert await reader.readexactly(echo.HEAD.size) == head
            held.append(writer)
        assert (await tried(echoing)).get("answer") == "silent"
        for writer in held:
            writer.close()


@in_a_loop
async def test_who_repeats_what_a_node_said_or_has_another_nodes_secret_gets_nothing_from_an_echo(unhurried: None) -> None:
    async with listening() as echoing:
        head = echo.HEAD.pack(echo.MAGIC, 0, echo.LARGEST)
        said = head + ticket.for_connection(echoing._checker.secret, head)
        more = echo.HEAD.pack(echo.MAGIC, 0, echo.LARGEST - 1) + ticket.for_connection(echoing._checker.secret, head)
        foreign = head + ticket.for_connection(ticket.Checker().secret, head)
        for words, answer in ((said, head), (said, b""), (more, b""), (foreign, b"")):
            reader, writer = await asyncio.open_connection(echoing.address, echoing.port)
            writer.write(words)
            async with asyncio.timeout(SOON):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(len(head)) == answer
            writer.transport.abort()
        assert (await paths.try_path("a", peer(echoing, bytes(16)))).get("answer") == "silent"
        assert (await tried(echoing)).get("answer") == "ok"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_every_node_is_tried_by_others_and_nobody_tries_many(count: int) -> None:
    nodes = [Peer(number, f"n{number}", f"10.0.0.{number}", 7) for number in range(count)]
    near = paths.neighbourhoods(nodes)
    chosen = [near[number] for number in range(count)]
    assert all(nodes[number] not in peers and len(peers) <= 3 for number, peers in enumerate(chosen))
    assert {peer.node_rank for peers in chosen for peer in peers} == (set(range(count)) if count > 1 else set())


def test_of_agents_on_one_host_one_tries_the_way_to_others() -> None:
    nodes = [Peer(0, "a", "10.0.0.1", 7), Peer(1, "a", "10.0.0.1", 8), Peer(2, "b", "10.0.0.2", 7), Peer(3, "c", "", 0)]
    assert {node: [peer.node_rank for peer in near] for node, near in paths.neighbourhoods(nodes).items()} == {0: [2], 2: [0]}


# -- a network that breaks in the middle of a probe ------------------------------------------------------------------


@contextlib.contextmanager
def kernel(host: Host) -> Iterator[tuple[Any, int]]:
    """Netlink to a host's network, and the number of its interface there."""
    with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
        yield ip, ip.link_lookup(ifname=host.interface)[0]


@pytest.fixture
def hosts(two_hosts: TwoHosts) -> Iterator[TwoHosts]:
    """The two hosts; their cable is as new when the test is over."""
    yield two_hosts
    for host in two_hosts.hosts:
        with kernel(host) as (ip, cable):
            ip.flush_addr(index=cable)
            ip.link("set", index=cable, state="up", mtu=1500)
            ip.addr("add", index=cable, address=host.address, prefixlen=24)


@contextlib.contextmanager
def working(hosts: TwoHosts, step: str, *words: str) -> Iterator[tuple[Job, Job]]:
    """A probe on both hosts that has come to a step."""
    common = ("--nnodes", "2", "--master", "10.77.0.1", "--format", "json")
    first, second = (hosts.start(host, "probe", *words, *common, "--node-rank", str(rank)) for rank, host in enumerate(hosts.hosts))
    try:
        until(lambda: second.announced(1, step), SOON, f"{words[0]} at work")
        yield first, second
    finally:
        first.kill()
        second.kill()


@pytest.fixture
def jobs(hosts: TwoHosts) -> Iterator[tuple[Job, Job]]:
    """A training at work on both, which lasts until its network breaks."""
    with working(hosts, "checkpoint", "training", "--budget", "50s") as both:
        yield both


@pytest.fixture
def sieve(hosts: TwoHosts) -> Iterator[Callable[..., Callable[[], None]]]:
    """Get ready to drop packets on a host; what is returned does so at once, until the test is over."""
    running: list[subprocess.Popen[bytes]] = []

    def prepare(host: Host, *words: str) -> Callable[[], None]:
        command = [*host.enter, sys.executable, str(Path(__file__).with_name("sieve.py")), *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        return lambda: start(process)

    def start(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"drops\n"

    yield prepare
    for process in running:
        process.kill()
        process.communicate()


def findings(jobs: tuple[Job, Job], began: float) -> list[dict[str, Any]]:
    """The one finding of each node's report, after at most WITHIN seconds."""
    for job in jobs:
        assert job.wait(max(began + WITHIN - time.monotonic(), 0.1)) == 1, job.out + job.err
    assert [job.left() for job in jobs] == [[], []]
    assert not any("Traceback" in job.err for job in jobs), jobs[0].err + jobs[1].err
    assert {job.report["status"] for job in jobs} == {"not-ready"}
    return [finding for job in jobs for finding in job.report["findings"]]


def rendezvous_port(job: Job) -> str:
    """The port of the launch's rendezvous, as it stands in the command line of torchrun."""
    return re.findall(rb"--master-port=(\d+)", Path(f"/proc/{next(iter(job.launchers().values()))}/cmdline").read_bytes())[0].decode()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["node-a", "node-b"])
def test_a_link_that_goes_down_is_named_by_both_ends(hosts: TwoHosts, jobs: tuple[Job, Job], where: str) -> None:
    with kernel(next(host for host in hosts.hosts if host.name == where)) as (ip, cable):
        ip.link("set", index=cable, state="down")
    first, second = findings(jobs, time.monotonic())
    there, other = (first, second) if where == "node-a" else (second, first)
    assert first["cause"] == second["cause"] == "network-unreachable"
    assert (there["culprit"]["hosts"], there["culprit"]["interface"]) == ([where], f"{where}-eth")
    assert other["culprit"]["hosts"] == ["node-a", "node-b"] and other["culprit"]["link"] == "node-a-node-b"


@pytest.mark.slow
def test_an_address_that_is_gone_is_named_where_it_was(hosts: TwoHosts, jobs: tuple[Job, Job]) -> None:
    with kernel(hosts.b) as (ip, cable):
        ip.addr("del", index=cable, address="10.77.0.2", prefixlen=24)
        ip.addr("add", index=cable, address="10.77.0.77", prefixlen=24)
    first, second = findings(jobs, time.monotonic())
    assert first["cause"] == second["cause"] == "network-unreachable"
    assert first["culprit"]["link"] == "node-a-node-b"
    assert (second["culprit"]["hosts"], second["culprit"]["interface"]) == (["node-b"], "node-b-eth")
    assert "10.77.0.2 is gone from node-b-eth, 10.77.0.77 came" in second["title"]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_a_partition_is_a_network_that_carries_nothing_whichever_direction_is_lost(
    jobs: tuple[Job, Job], hosts: TwoHosts, sieve: Callable[..., Callable[[], None]], direction: str
) -> None:
    sieve(hosts.b, direction, "0")()
    for finding in findings(jobs, time.monotonic()):
        assert finding["cause"] == "network-unreachable" and finding["culprit"]["link"] == "node-a-node-b"


@pytest.mark.slow
def test_a_firewall_that_lets_only_the_agreed_ports_pass_blocks_ports(
    jobs: tuple[Job, Job], hosts: TwoHosts, sieve: Callable[..., Callable[[], None]]
) -> None:
    sieve(hosts.b, "in", "0", "29600", rendezvous_port(jobs[0]))()
    for finding in findings(jobs, time.monotonic()):
        assert finding["cause"] == "blocked-port" and "node-b" in finding["culprit"]["hosts"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["node-a", "node-b"])
def test_large_packets_that_vanish_are_an_mtu_mismatch(hosts: TwoHosts, sieve: Callable[..., Callable[[], None]], where: str) -> None:
    drop = sieve(next(host for host in hosts.hosts if host.name == where), "in", "1200")
    # of this probe agents tell each other in small packets: more would be lost with the large ones
    with working(hosts, "all_reduce", "bandwidth") as jobs:
        drop()
        for finding in findings(jobs, time.monotonic()):
            assert finding["cause"] == "mtu-mismatch" and where in finding["culprit"]["hosts"]


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 1, 2])
def test_of_three_nodes_the_one_that_is_cut_off_is_named_alone(tmp_path: Path, where: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may enter another's network")
    job = Job(tmp_path, "probe", "training", "--budget", "50s", "--emulate", "3x1", "--format", "json")
    try:
        until(lambda: job.announced(2, "checkpoint"), SOON, "training at work")
        with IPRoute(netns=f"/proc/{children(job.process.pid)[where]}/ns/net") as ip:
            ip.link("set", index=ip.link_lookup(ifname="eth0")[0], state="down")
        assert job.wait(WITHIN) == 1, job.out + job.err
        (finding,) = job.report["findings"]
        assert (finding["cause"], finding["culprit"]["hosts"]) == ("network-unreachable", [f"node{where}"])
        assert job.left() == []
    finally:
        job.kill()


@pytest.mark.slow
def test_an_agent_that_is_stopped_is_lost_and_the_network_is_not_blamed(jobs: tuple[Job, Job]) -> None:
    first, second = jobs
    second.process.send_signal(signal.SIGSTOP)
    try:
        assert first.wait(SOON) == 3
    finally:
        second.process.send_signal(signal.SIGCONT)
    assert second.wait(SOON) == 3
    for job in jobs:
        (finding,) = job.report["findings"]
        assert (finding["cause"], finding["culprit"]["hosts"]) == ("agent-lost", ["node-b"])
    assert [job.left() for job in jobs] == [[], []]


@pytest.mark.slow
def test_a_node_whose_mtu_was_lowered_is_named_with_its_interface(
    jobs: tuple[Job, Job], hosts: TwoHosts, sieve: Callable[..., Callable[[], None]]
) -> None:
    sieve(hosts.b, "in", "1280")()
    with kernel(hosts.b) as (ip, cable):
        ip.link("set", index=cable, mtu=1280)
    first, _ = findings(jobs, time.monotonic())
    assert first["cause"] == "mtu-mismatch"
    assert (first["culprit"]["hosts"], first["culprit"]["interface"]) == (["node-b"], "node-b-eth")


@pytest.mark.slow
def test_a_node_that_sends_at_a_crawl_is_blamed_by_what_both_ends_measure(hosts: TwoHosts) -> None:
    before = {host.name: measured(hosts, host, None) for host in hosts.hosts}
    with kernel(hosts.b) as (ip, cable):
        ip.tc("add", "tbf", cable, 0x10000, rate=2_000_000, burst=40_000, latency="200ms")
        try:
            now = [measured(hosts, host, before[host.name]) for host in hosts.hosts]
        finally:
            ip.tc("del", index=cable, handle=0x10000, parent=0xFFFFFFFF)
    assert triage.of_rule(Run(facts=list(before.values())), "slow_network") == []
    (finding,) = triage.of_rule(Run(facts=now), "slow_network")
    assert list(finding.culprit.hosts or ()) == ["node-b"]


SERVE = """
import asyncio, sys
from ncclcheck.echo import Echo
from ncclcheck.ticket import Checker
async def serve():
    checker = Checker()
    echo = Echo(checker)
    await echo.open(sys.argv[1])
    print(echo.port, checker.secret.hex(), flush=True)
    await asyncio.sleep(300)
asyncio.run(serve())
"""
TRY = """
import asyncio, json, sys
from ncclcheck import paths
from ncclcheck.wire import Peer
fact = asyncio.run(paths.try_path(sys.argv[1], Peer(0, sys.argv[2], sys.argv[3], int(sys.argv[4]), bytes.fromhex(sys.argv[5]))))
print(json.dumps(dict(fact.fields)), flush=True)
"""


def measured(hosts: TwoHosts, host: Host, before: Fact | None) -> Fact:
    """The way from one host to the other."""
    other = next(each for each in hosts.hosts if each is not host)
    serving = subprocess.Popen([*other.enter, sys.executable, "-c", SERVE, other.address], stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout
        words = (host.name, other.name, other.address, *serving.stdout.readline().split())
        fields = subprocess.run([*host.enter, sys.executable, "-c", TRY, *words], stdout=subprocess.PIPE, check=True, timeout=SOON).stdout
    finally:
        serving.kill()
        serving.communicate()
    fact = Fact("path", host.name, fields=json.loads(fields))
    names = ("rtt_ms", "out_bytes_per_s", "in_bytes_per_s")
    return replace(fact, fields={**fact.fields, **{f"{name}_before": before.get(name) for name in names}}) if before else fact

"""Networks that are broken for real, between hosts made of namespaces, are found and named by what their agents try."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lab import Host, TwoHosts
from pyroute2 import IPRoute
from running import children

from ncclcheck.model import Fact
from ncclcheck.probes import reachability
from ncclcheck.survey import Job, Node, Survey

pytestmark = pytest.mark.slow
AGENT = Path(__file__).with_name("agents.py")
PORT = 29600
WITHIN = 120.0  # seconds, on a busy machine
PORTS = itertools.count(29610)

# Takes packets out of the interface that has this address, until it is ended: python -c TAKES ADDRESS PEERS SIEVE
TAKES = """
import ast, signal, sys
from ncclcheck import sieve
from ncclcheck.collect import master
address, peers, options = sys.argv[1:]
with sieve.taken(master.interface_to(address), sieve.Sieve(peers.split(","), **ast.literal_eval(options))):
    print("takes", flush=True)
    signal.pause()
"""


class Meeting:
    """Agents that have met, and try the ways when they are told to."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], port: int, folder: Path) -> None:
        self.processes, self.port, self._folder = processes, port, folder

    def met(self) -> None:
        first = self.processes[0]
        assert first.stdout and first.stdout.readline() == b"met\n"

    def survey(self) -> Survey:
        """What they find now. Nobody has settings."""
        (self._folder / "go").touch()
        out, _ = self.processes[0].communicate(timeout=WITHIN)
        assert self.processes[0].returncode == 0
        for process in self.processes[1:]:
            process.wait(WITHIN)
        facts = msgspec.json.decode(out, type=list[Fact])
        doors = {int(fact.get("node_rank")): fact for fact in facts if fact.kind == "door" and fact.get("main")}
        nodes = [Node(number, str(door.host), str(door.get("address"))) for number, door in sorted(doors.items())]
        return Survey(Job(len(nodes), 1, nodes[0].address), nodes, facts)


def found(survey: Survey) -> list[Fact]:
    """What is judged to be wrong."""
    return [fact for fact in reachability.judge(survey) if fact.kind not in ("note", "seen", "pair")]


def told(fact: Fact) -> tuple[str, Any, Any, Any]:
    return fact.kind, fact.get("cause"), fact.get("hosts"), fact.get("link")


@pytest.fixture
def hosts(two_hosts: TwoHosts) -> Iterator[TwoHosts]:
    """The two hosts; their cables are as new when the test is over."""
    yield two_hosts
    for host in two_hosts.hosts:
        with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
            for rail in ip.link_lookup(ifname="rail1"):
                ip.link("del", index=rail)
            (cable,) = ip.link_lookup(ifname=host.interface)
            ip.link("set", index=cable, state="up", mtu=1500)


@pytest.fixture
def meet(hosts: TwoHosts, tmp_path: Path) -> Iterator[Callable[[], Meeting]]:
    """Starts an agent on each of the two hosts."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> Meeting:
        (tmp_path / "break").touch()
        port = next(PORTS)
        for number, host in enumerate(hosts.hosts):
            command = [*host.enter, sys.executable, str(AGENT), str(number), "2", hosts.a.address, str(port), str(tmp_path)]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        meeting = Meeting(running, port, tmp_path)
        meeting.met()
        return meeting

    yield start
    end(running)


def end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def takes() -> Iterator[Callable[..., None]]:
    """Takes packets on a host until the test is over."""
    running: list[subprocess.Popen[bytes]] = []

    def start(host: Host, *peers: str, **options: Any) -> None:
        command = [*host.enter, sys.executable, "-c", TAKES, host.address, ",".join(peers), repr(options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout and process.stdout.readline() == b"takes\n"

    yield start
    end(running)


def rails(hosts: TwoHosts, mtu: int = 1500) -> None:
    """A second cable between the two."""
    with IPRoute() as ip:
        peer = {"ifname": "rail1", "net_ns_pid": hosts.b.pid}
        ip.link("add", ifname="rail1", kind="veth", net_ns_pid=hosts.a.pid, peer=peer)
    for host, address in ((hosts.a, "10.78.0.1"), (hosts.b, "10.78.0.2")):
        with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
            (rail,) = ip.link_lookup(ifname="rail1")
            ip.addr("add", index=rail, address=address, prefixlen=24)
            ip.link("set", index=rail, state="up", mtu=mtu)


def test_two_hosts_that_are_well_are_told_what_to_export_and_nothing_else(hosts: TwoHosts, meet: Callable[[], Meeting]) -> None:
    rails(hosts)
    survey = meet().survey()
    ways = [fact for fact in survey.ways if fact.kind == "way"]
    assert len(ways) == 4 and {(fact.get("answer"), fact.get("path_mtu"), fact.get("heard")) for fact in ways} == {("ok", 1500, True)}
    facts = list(reachability.judge(survey))
    assert [fact.kind for fact in facts] == ["note", *["pair"] * 4, "seen"]
    assert "on node-a: export NCCL_SOCKET_IFNAME=node-a-eth GLOO_SOCKET_IFNAME=node-a-eth" in facts[0].get("title")
    (tried,) = [fact for fact in survey.ways if fact.kind == "tried"]
    assert (tried.get("tried"), tried.get("of")) == (2, 2) and tried.get("seconds") < 30


def test_a_firewall_that_passes_only_the_agents_port_blocks_ports(hosts: TwoHosts, meet: Callable[[], Meeting], takes: Callable[..., None]) -> None:
    meeting = meet()
    takes(hosts.b, hosts.a.address, outgoing=False, spare=[meeting.port])
    (fact,) = found(meeting.survey())
    assert told(fact)[:3] == ("fail", "blocked-port", ["node-a", "node-b"])
    assert "though the agents speak over their own port" in fact.get("title") and "iptables -I INPUT -s 10.77.0.0/24 -j ACCEPT" in fact.get("remedy")


def test_what_is_lost_in_one_direction_only_is_told_with_it(hosts: TwoHosts, meet: Callable[[], Meeting], takes: Callable[..., None]) -> None:
    meeting = meet()
    takes(hosts.a, hosts.b.address, outgoing=False, spare=[meeting.port])
    (fact,) = found(meeting.survey())
    assert told(fact) == ("fail", "blocked-port", ["node-a", "node-b"], "node-b -> node-a")
    assert fact.get("title").startswith("what node-b sends to node-a over 10.77.0.0/24 is lost, and what node-a sends arrives")


def test_jumbo_frames_that_a_switch_swallows_are_found_with_the_size_that_passes(
    hosts: TwoHosts, meet: Callable[[], Meeting], takes: Callable[..., None]
) -> None:
    for host in hosts.hosts:
        with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
            ip.link("set", index=ip.link_lookup(ifname=host.interface)[0], mtu=9000)
    meeting = meet()
    for host, other in (hosts.hosts, hosts.hosts[::-1]):
        takes(host, other.address, outgoing=False, larger=1500)
    (fact,) = found(meeting.survey())
    assert told(fact) == ("fail", "mtu-mismatch", ["node-a", "node-b"], "node-a - node-b")
    assert fact.get("title").startswith("packets of more than 1500 bytes vanish between node-a and node-b")
    assert "mtu 1500" in fact.get("remedy") and "ping -M do -s 8972" in fact.get("remedy")


def test_jumbo_frames_that_vanish_in_one_direction_are_told_with_it(hosts: TwoHosts, meet: Callable[[], Meeting], takes: Callable[..., None]) -> None:
    for host in hosts.hosts:
        with IPRoute(netns=f"/proc/{host.pid}/ns/net") as ip:
            ip.link("set", index=ip.link_lookup(ifname=host.interface)[0], mtu=9000)
    meeting = meet()
    takes(hosts.b, hosts.a.address, outgoing=False, larger=4321)
    (fact,) = found(meeting.survey())
    assert told(fact) == ("fail", "mtu-mismatch", ["node-a", "node-b"], "node-a -> node-b")
    assert "more than 4321 bytes vanish from node-a to node-b, and not from node-b to node-a" in fact.get("title")


@pytest.mark.parametrize("before", [True, False], ids=["before the agents meet", "after"])
def test_a_second_interface_that_is_down_is_named_with_its_node(hosts: TwoHosts, meet: Callable[[], Meeting], before: bool) -> None:
    rails(hosts)

    def take_down() -> None:
        with IPRoute(netns=f"/proc/{hosts.b.pid}/ns/net") as ip:
            ip.link("set", index=ip.link_lookup(ifname="rail1")[0], state="down")

    if before:
        take_down()
    meeting = meet()
    if not before:
        take_down()
    (fact,) = found(meeting.survey())
    assert told(fact)[:2] == ("degraded", "network-unreachable") and "node-b" in fact.get("hosts") and fact.get("interface") == "rail1"
    if before:
        assert (fact.get("hosts"), fact.get("title")) == (["node-b"], "rail1 on node-b is down, and has the address 10.78.0.2")


def test_a_name_that_leads_to_another_machine_is_told(hosts: TwoHosts, meet: Callable[[], Meeting], tmp_path: Path) -> None:
    before = subprocess.run([*hosts.a.enter, "cat", "/etc/hosts"], stdout=subprocess.PIPE, text=True, check=True).stdout

    def write(text: str) -> None:
        subprocess.run([*hosts.a.enter, "tee", "/etc/hosts"], input=text, text=True, stdout=subprocess.DEVNULL, check=True)

    write(before.replace("10.77.0.2 node-b", "10.66.0.2 node-b"))
    try:
        (fact,) = found(meet().survey())
    finally:
        write(before)
    assert told(fact) == ("degraded", "hostname-resolution", ["node-a"], None)
    assert fact.get("title") == "the name node-b leads to 10.66.0.2 on node-a, and node-b has 10.77.0.2"


# -- more than two ---------------------------------------------------------------------------------------------------


@pytest.fixture
def emulated(tmp_path: Path) -> Iterator[Callable[[int], tuple[Meeting, list[int]]]]:
    """Agents on so many emulated nodes, and their pids."""
    if os.geteuid() != 0:
        pytest.skip("only root may enter another's network")
    running: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> tuple[Meeting, list[int]]:
        (tmp_path / "break").touch()
        script = f'exec {sys.executable} {AGENT} "$NODE_RANK" "$NNODES" 10.201.0.1 {PORT} {tmp_path}'
        command = [sys.executable, "-m", "ncclcheck.emulate", str(count), "--", "sh", "-c", script]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        meeting = Meeting(running, PORT, tmp_path)
        meeting.met()
        return meeting, children(running[0].pid)

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=WITHIN)


def test_of_four_nodes_one_behind_a_firewall_is_blamed_alone(emulated: Callable[[int], tuple[Meeting, list[int]]]) -> None:
    meeting, pids = emulated(4)
    options = repr({"outgoing": False, "spare": [PORT]})
    peers = ",".join(f"10.201.0.{number}" for number in (1, 2, 4))
    command = ["nsenter", "--target", str(pids[2]), "--net", "--", sys.executable, "-c", TAKES, "10.201.0.3", peers, options]
    taking = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert taking.stdout and taking.stdout.readline() == b"takes\n"
        (fact,) = found(meeting.survey())
    finally:
        end([taking])
    assert told(fact) == ("fail", "blocked-port", ["node2"], None)
    assert fact.get("interface") == "eth0"


def test_eight_nodes_that_are_well_give_no_finding_and_no_link_is_called_slow(emulated: Callable[[int], tuple[Meeting, list[int]]]) -> None:
    meeting, _ = emulated(8)
    survey = meeting.survey()
    (tried,) = [fact for fact in survey.ways if fact.kind == "tried"]
    assert (tried.get("tried"), tried.get("of")) == (56, 56) and tried.get("seconds") < 30
    assert found(survey) == []
    assert len([fact for fact in survey.ways if fact.kind == "way" and fact.get("answer") == "ok"]) == 56


def test_a_node_that_sends_at_a_crawl_is_called_slow_after_three_looks(emulated: Callable[[int], tuple[Meeting, list[int]]]) -> None:
    meeting, pids = emulated(6)
    with IPRoute(netns=f"/proc/{pids[4]}/ns/net") as ip:
        ip.tc("add", "tbf", ip.link_lookup(ifname="eth0")[0], 0x10000, rate=2_000_000, burst=40_000, latency="200ms")
    (fact,) = found(meeting.survey())
    assert told(fact) == ("degraded", "slow-link", ["node4"], None)
    assert "in 3 looks" in fact.get("title") and "iperf3" in fact.get("remedy")

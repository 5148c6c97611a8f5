"""Each fault of a node's network breaks real connections between two hosts, and leaves nothing behind, whoever is killed."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab import Host, TwoHosts
from running import SOON, until

from ncclcheck import guard, registry

SIX = {"node-a": "fd00:77::1", "node-b": "fd00:77::2"}
ROOT = Path(guard.__file__).parents[1]
STALLED = 0.6  # seconds without an answer that took less than a millisecond before
NETWORK = [name for name in registry.names("faults") if registry.describe("faults", name).get("BLAMES") == "link"]

# On a host: waits for connections at two ports and sends back what it gets.
ECHO = """
import socket, sys, threading
def serve(peer):
    try:
        while data := peer.recv(1 << 20):
            peer.sendall(data)
    except OSError:
        pass
def accept(server):
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
for port in (5001, 5002):
    server = socket.create_server((sys.argv[1], port), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # BBR takes ten seconds to notice a longer way
    threading.Thread(target=accept, args=(server,)).start()
print("listens", flush=True)
"""


class Talk:
    """A connection from one host to the other, made of sockets that live in the hosts' networks."""

    def __init__(self, host: Host, address: str, port: int, seconds: float = SOON) -> None:
        self.socket = inside(host, lambda: socket.create_connection((address, port), seconds))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        self._owed = 0

    def answered(self, nbytes: int = 100, seconds: float = SOON) -> bool:
        """Send so much; whether all that was ever sent has come back, unharmed, by then."""
        sender = threading.Thread(target=self._send, args=(nbytes,), daemon=True)
        self._owed += nbytes
        sender.start()
        return self.caught_up(seconds)

    def stalls(self, nbytes: int = 100) -> bool:
        """Whether that is not answered any more."""
        return not self.answered(nbytes, STALLED)

    def caught_up(self, seconds: float = SOON) -> bool:
        """Whether what is still owed has come back by then."""
        ends = time.monotonic() + seconds
        while self._owed:
            self.socket.settimeout(max(0.001, ends - time.monotonic()))
            try:
                got = self.socket.recv(1 << 20)
            except TimeoutError:
                return False
            assert got and got == b"x" * len(got)
            self._owed -= len(got)
        return True

    def _send(self, nbytes: int) -> None:
        other = self.socket.dup()  # with a time-out of its own
        other.settimeout(60)
        with contextlib.suppress(OSError), other:
            other.sendall(b"x" * nbytes)


def inside(host: Host, deed: Callable[[], Any]) -> Any:
    """Do something in a thread that is in the host's network."""
    result: list[Any] = []

    def act() -> None:
        with open(f"/proc/{host.pid}/ns/net") as network:
            assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0x40000000) == 0
        try:
            result.append(deed())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


class Guard:
    """`python -m ncclcheck.guard` on a host. Its input is held by this process."""

    def __init__(self, host: Host, fault: str, *, peers: list[str], pid: int = 0, ports: tuple[int, ...] = (5002,)) -> None:
        place = {"interface": host.interface, "address": host.address, "peers": peers, "ports": ports, "pid": pid}
        command = [*host.enter, sys.executable, "-m", "ncclcheck.guard", fault]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(place).encode() + b"\n")
        self.process.stdin.flush()
        self.said = self.process.stdout.readline().decode().strip()

    def ends(self) -> str:
        """What it says, once, after its input has ended."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        said = self.process.stdout.read().decode().strip()
        assert self.process.wait(SOON) == 0
        return said


@pytest.fixture(scope="module")
def hosts(two_hosts: TwoHosts) -> TwoHosts:
    """Each host has an IPv6 address, too, and the victim a route that does not come back by itself."""
    from pyroute2 import IPRoute

    def configure(host: Host) -> None:
        with IPRoute() as ip:
            (index,) = ip.link_lookup(ifname=host.interface)
            ip.addr("add", index=index, address=SIX[host.name], prefixlen=64, flags=2)
            if host is two_hosts.b:
                ip.route("add", dst="default", gateway=two_hosts.a.address)

    for host in two_hosts.hosts:
        inside(host, partial(configure, host))
        for address in (host.address, SIX[host.name]):
            two_hosts.python(host, ECHO, address)
    return two_hosts


def state(host: Host) -> dict[str, Any]:
    """What a fault could leave behind: addresses, routes, link, queue, MTU, nftables."""
    from pyroute2 import IPRoute
    from pyroute2.nftables.main import NFTables

    def look() -> dict[str, Any]:
        with IPRoute() as ip, NFTables(nfgen_family=5) as nft:
            (index,) = ip.link_lookup(ifname=host.interface)
            link = ip.get_links(index)[0]
            return {
                "addresses": sorted(str((entry["prefixlen"], entry.get_attr("IFA_ADDRESS"))) for entry in ip.get_addr(index=index)),
                "routes": sorted(
                    str((entry["dst_len"], entry["type"], *(entry.get_attr(name) for name in ("RTA_DST", "RTA_GATEWAY", "RTA_PREFSRC", "RTA_OIF"))))
                    for family in (socket.AF_INET, socket.AF_INET6)
                    for entry in ip.get_routes(family=family)
                    if entry["table"] == 254  # the kernel's own come and go with the link
                ),
                "up": link["flags"] & 1,
                "mtu": link.get_attr("IFLA_MTU"),
                "queues": sorted(entry.get_attr("TCA_KIND") for entry in ip.get_qdiscs(index=index)),
                "tables": [table.get_attr("NFTA_TABLE_NAME") for table in nft.get_tables()],
            }

    found: dict[str, Any] = inside(host, look)
    return found


@pytest.fixture
def talks(hosts: TwoHosts) -> Iterator[dict[str, Talk]]:
    """Connections that were there before: from the victim, to it, and from it to a port that a firewall was opened for."""
    before = state(hosts.b)
    made = {"out": Talk(hosts.b, hosts.a.address, 5001), "in": Talk(hosts.a, hosts.b.address, 5001), "spared": Talk(hosts.b, hosts.a.address, 5002)}
    assert all(talk.answered() for talk in made.values())
    yield made
    for talk in made.values():
        talk.socket.close()
    assert state(hosts.b) == before


def strike(hosts: TwoHosts, fault: str) -> Guard:
    return Guard(hosts.b, fault, peers=[hosts.a.address, SIX["node-a"]])


@pytest.mark.parametrize("fault", ["link_down", "partition", "one_way_drop"])
def test_a_node_that_is_cut_off_is_so_in_ipv6_too(hosts: TwoHosts, talks: dict[str, Talk], fault: str) -> None:
    talk = Talk(hosts.a, SIX["node-b"], 5001)
    assert talk.answered()
    struck = strike(hosts, fault)
    assert talk.stalls()
    assert struck.ends() == "undone"
    assert talk.caught_up()


def test_a_queue_of_the_administrator_is_not_replaced(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    from pyroute2 import IPRoute

    def queue(command: str) -> None:
        with IPRoute() as ip:
            (index,) = ip.link_lookup(ifname=hosts.b.interface)
            ip.tc(command, "tbf", index, 0x70000, rate=10**9, burst=10**6, latency="200ms")

    inside(hosts.b, lambda: queue("add"))
    try:
        assert strike(hosts, "rate_limit").said == f"skip {hosts.b.interface} has a queue of its own: tbf 7:"
    finally:
        inside(hosts.b, lambda: queue("del"))


@pytest.mark.parametrize("fault", ["link_down", "partition", "one_way_drop", "address_change"])
def test_a_node_that_is_cut_off_answers_nobody_until_the_fault_is_undone(hosts: TwoHosts, talks: dict[str, Talk], fault: str) -> None:
    struck = strike(hosts, fault)
    assert struck.said == "struck"
    assert talks["in"].stalls() and talks["out"].stalls()
    with pytest.raises(OSError):
        Talk(hosts.a, hosts.b.address, 5001, STALLED)
    assert struck.ends() == "undone"
    assert talks["in"].caught_up() and talks["out"].caught_up()
    assert Talk(hosts.a, hosts.b.address, 5001).answered()


def test_what_is_lost_one_way_still_arrives_the_other_way(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    receiver = inside(hosts.b, lambda: bound(hosts.b.address))
    sender = inside(hosts.a, lambda: bound(hosts.a.address))
    struck = strike(hosts, "one_way_drop")
    sender.sendto(b"heard", receiver.getsockname())
    assert receiver.recv(10) == b"heard"
    receiver.sendto(b"lost", sender.getsockname())  # nobody refuses it
    assert struck.ends() == "undone"
    receiver.sendto(b"passes", sender.getsockname())
    assert sender.recv(10) == b"passes"


def bound(address: str) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 0))
    udp.settimeout(SOON)
    return udp


def test_a_firewall_spares_the_ports_that_it_was_opened_for(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    struck = strike(hosts, "blocked_ports")
    assert talks["in"].stalls() and talks["out"].stalls()
    assert talks["spared"].answered()
    assert Talk(hosts.b, hosts.a.address, 5002).answered() and Talk(hosts.a, hosts.b.address, 5002).answered()
    with pytest.raises(TimeoutError):
        Talk(hosts.b, hosts.a.address, 5001, STALLED)
    assert struck.ends() == "undone"
    assert talks["in"].caught_up() and talks["out"].caught_up()


def test_with_a_smaller_mtu_small_messages_pass_and_large_ones_stall(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    struck = strike(hosts, "mtu_reduced")
    assert state(hosts.b)["mtu"] == 1280
    assert talks["in"].answered() and talks["out"].answered()
    assert talks["in"].stalls(1_000_000)
    assert struck.ends() == "undone"
    assert talks["in"].caught_up()


def test_a_rate_limit_lets_2_mb_pass_in_a_second(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    def took() -> float:
        start = time.perf_counter()
        assert talks["out"].answered(2_000_000)
        return time.perf_counter() - start

    assert talks["out"].answered(2_000_000)
    struck = strike(hosts, "rate_limit")
    assert 0.7 < min(took() for _ in range(3)) < 3  # the fastest: what the wire takes, not the machine
    assert struck.ends() == "undone"
    assert talks["out"].answered(2_000_000)


def test_losses_make_conversations_slow_and_break_none(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    def retransmitted() -> int:
        info = talks["out"].socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return int.from_bytes(info[100:104], sys.byteorder)  # tcpi_total_retrans

    before = retransmitted()
    struck = strike(hosts, "loss")
    start = time.perf_counter()
    assert all(talks["out"].answered() for _ in range(300))  # that not one is lost has a chance of 1 in 4,000,000 and less
    assert retransmitted() > before and time.perf_counter() - start > 0.2  # as long as TCP waits for one answer
    assert struck.ends() == "undone"


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_delay_lengthens_each_round_trip_and_open_connections_live_on(hosts: TwoHosts, talks: dict[str, Talk], direction: str) -> None:
    def round_trip() -> float:
        """The fastest of ten: what the wire takes, not the machine."""
        times = []
        for _ in range(10):
            start = time.perf_counter()
            assert talks[direction].answered()
            times.append(time.perf_counter() - start)
        return min(times)

    def busy() -> None:  # while the delay begins and while it ends
        assert talks["spared"].answered(20_000_000)

    assert round_trip() < 0.02
    other = threading.Thread(target=busy)
    other.start()
    struck = strike(hosts, "delay")
    other.join()
    assert struck.said == "struck"
    assert 0.025 < round_trip() < 0.04
    other = threading.Thread(target=busy)
    other.start()
    assert struck.ends() == "undone"
    other.join()
    assert talks[direction].caught_up() and round_trip() < 0.02


@pytest.mark.parametrize("fault", NETWORK)
def test_a_fault_is_undone_when_the_process_that_holds_its_guard_is_killed(hosts: TwoHosts, talks: dict[str, Talk], fault: str) -> None:
    agent = "import subprocess, sys\nguard = subprocess.Popen(sys.argv[2:], stdin=-1)\n"
    agent += "guard.stdin.write(sys.argv[1].encode()); guard.stdin.flush(); guard.wait()"
    place = {"interface": hosts.b.interface, "address": hosts.b.address, "peers": [hosts.a.address], "ports": [5002]}
    command = [*hosts.b.enter, sys.executable, "-c", agent, json.dumps(place) + "\n", sys.executable, "-m", "ncclcheck.guard", fault]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"struck\n"
        before = state(hosts.b)
        holder.send_signal(signal.SIGKILL)
        assert holder.stdout.readline() == b"undone\n"
    assert state(hosts.b) != before
    assert all(talk.answered() for talk in talks.values())


@pytest.mark.parametrize("fault", ["partition", "delay"])
def test_what_nftables_does_ends_even_with_a_guard_that_is_killed(hosts: TwoHosts, talks: dict[str, Talk], fault: str) -> None:
    struck = strike(hosts, fault)
    assert state(hosts.b)["tables"]
    struck.process.kill()
    struck.process.communicate()
    assert talks["out"].answered()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_undoes_a_fault(hosts: TwoHosts, talks: dict[str, Talk], number: int) -> None:
    struck = strike(hosts, "partition")
    struck.process.send_signal(number)
    assert struck.process.wait(SOON) == 0
    assert talks["out"].answered()


def test_routes_to_nowhere_cut_a_node_off_where_nftables_cannot(hosts: TwoHosts, talks: dict[str, Talk]) -> None:
    script = "import sys; from ncclcheck.obstruct import no_way\nwith no_way(sys.argv[1:]): print('struck', flush=True); sys.stdin.read()"
    command = [*hosts.b.enter, sys.executable, "-c", script, hosts.a.address, "fd00::1"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"struck\n"
        assert talks["in"].stalls()
        process.communicate()
    assert talks["in"].caught_up()


def test_what_this_machine_cannot_do_is_skipped_with_the_reason(hosts: TwoHosts) -> None:
    assert Guard(hosts.b, "stop_outside", peers=[], pid=4_000_000).said == "skip the rank's process 4000000: No such process"
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    place = json.dumps({"interface": hosts.b.interface, "address": hosts.b.address, "peers": [hosts.a.address], "ports": []})
    for fault in NETWORK:
        command = [*hosts.b.enter, *bare, sys.executable, "-m", "ncclcheck.guard", fault]
        done = subprocess.run(command, input=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=SOON)
        assert done.stdout.startswith("skip ") and "Operation not permitted" in done.stdout and done.returncode == 0, done
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(("fault", "state_then", "ending"), [("stop_outside", "T", 0), ("kill_outside", None, -signal.SIGKILL)])
def test_a_rank_is_stopped_or_killed_from_outside_and_a_stopped_one_goes_on(hosts: TwoHosts, fault: str, state_then: str | None, ending: int) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as rank:
        struck = Guard(hosts.b, fault, peers=[], pid=rank.pid)
        assert struck.said == "struck"
        if state_then:
            until(lambda: process_state(rank.pid) == state_then, SOON, "the rank's stop")
        assert struck.ends() == "undone"
        assert rank.stdin
        rank.stdin.close()
        assert rank.wait(SOON) == ending


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

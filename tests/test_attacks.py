"""Nobody commands a node or ends a run but its user: strangers and hostile peers on another host get a verdict against them.

They are an unprivileged user there.

Every attack leaves no file outside the run's folder, no process and no traceback, never more than 200 MiB, and never exit 0.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attackers
import pytest
from lab import Host, TwoHosts
from running import SOON, Job, environments, until

from ncclcheck import report

pytestmark = pytest.mark.slow

PORTS = itertools.count(28100)
NOBODY = 65534
READ = "+dac_read_search"  # the interpreter may lie in root's home
LOWER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={READ}", f"--ambient-caps={READ}", "--no-new-privs")
MOST_MEMORY = 200 * 2**10  # KiB
UNDECIDED = ("invalid-message", "order-refused")


class Attacker:
    """A process of attackers.py, of a user without rights."""

    def __init__(self, hosts: TwoHosts, host: Host, kind: str, scene: str, port: int, *more: str, address: str = "10.77.0.1") -> None:
        mark, _, value = hosts.mark.partition("=")
        words = [sys.executable, str(Path(attackers.__file__)), kind, scene, address, str(port), *more]
        self.process = subprocess.Popen(
            [*host.enter, *LOWER, *words], env={**os.environ, mark: value}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )

    def says(self, word: str) -> None:
        """Wait until it says so."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip() == word.encode():
                return
        raise AssertionError(f"the attacker ended without {word!r}: {self.process.wait(SOON)}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def attack(two_hosts: TwoHosts) -> Iterator[Any]:
    """Starts attackers; at the test's end they are gone, and so is everything that was started on the hosts."""
    started: list[Attacker] = []

    def start(host: Host, kind: str, scene: str, port: int, *more: str) -> Attacker:
        started.append(Attacker(two_hosts, host, kind, scene, port, *more))
        return started[-1]

    yield start
    for each in started:
        each.end()
    two_hosts.end()
    until(lambda: not two_hosts.left(), SOON, "the end of everything that was started")


def words(port: int, rank: int, *probes: str, patience: str = "60s", form: str = "json", nnodes: int = 2) -> tuple[str, ...]:
    meet = ("--nnodes", str(nnodes), "--node-rank", str(rank), "--nproc-per-node", "1", "--master", f"10.77.0.1:{port}")
    return ("probe", *probes, *meet, "--roll-call-timeout", patience, "--format", form)


def peak(pid: int) -> int:
    """The most memory that a process has had, in KiB; 0 once it has ended."""
    try:
        found = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    except OSError:
        return 0
    return int(found[0].split()[1]) if found else 0


def ended(job: Job, seconds: float = 100.0) -> int:
    """The exit code of a job that had to do with an attacker, after what must hold of all of them was checked."""
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, peak(job.process.pid))
        return job.process.poll() is not None

    until(over, seconds, f"the end of the job\n{job.out[-2000:]}\n{job.err[-2000:]}")
    assert "Traceback" not in job.err + job.out and not list(job.folder.rglob("crash-*")), job.err
    assert most < MOST_MEMORY, f"{most >> 10} MiB"  # 0: it had ended at the first look
    assert not any(ord(sign) < 32 and sign not in "\n\r\t" for sign in job.out), job.out
    assert "\x9b" not in job.err and "\x1b]" not in job.err
    outside = [path for top in job.folder.parents[:2] for path in top.rglob("escaped*")] + [
        *job.folder.rglob("escaped*"),
        *job.folder.rglob("owned*"),
    ]
    assert not outside and not Path("/tmp/escaped").exists()
    return int(job.process.returncode)


def causes(job: Job) -> list[str]:
    return [finding["cause"] for finding in job.report["findings"]]


# -- without the token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["another token", "noise", "version", "echo", "hello"])
def test_a_stranger_in_node_0s_place_is_obeyed_in_nothing(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    attack(two_hosts.a, "stranger", scene, port).says("met")
    job = two_hosts.start(two_hosts.b, *words(port, 1, "bandwidth", patience="4s"))
    assert ended(job) in (1, 3)
    assert job.report["status"] in ("unknown", "not-ready") and f"10.77.0.1:{port}" in job.report["findings"][0]["title"]
    assert list(job.folder.glob("ncclcheck-runs/*")) == []


@pytest.mark.timeout(200)
def test_a_crowd_of_strangers_changes_nothing_but_is_named(two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    jobs = [two_hosts.start(host, *words(port, rank, "bandwidth"), "--budget", "25s") for rank, host in enumerate(two_hosts.hosts)]
    until(lambda: two_hosts.left() and "all 2 here" in jobs[0].err, SOON, "both nodes")
    until(lambda: jobs[0].announced(0, "all_reduce"), SOON, "a launch at work")
    before = sockets(jobs[0].process.pid)
    crowds = [attack(two_hosts.b, "crowd", "4", port) for _ in range(2)]
    for crowd in crowds:
        crowd.says("met")
    until(lambda: sockets(jobs[0].process.pid) > before + 8, SOON, "the crowd")
    for crowd in crowds:
        crowd.process.wait(SOON)
    until(lambda: sockets(jobs[0].process.pid) <= before or jobs[0].process.poll() is not None, SOON, "the crowd's sockets closed")
    assert jobs[0].process.poll() is None, "it ended before the crowd had left"
    assert [job.wait(150) for job in jobs] == [0, 0], jobs[0].out + jobs[0].err
    assert jobs[0].report["status"] == "ready" and jobs[0].report["run"]["strangers"]["addresses"]["10.77.0.2"] > 20


def sockets(pid: int) -> int:
    """How many a process has open."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return sockets(pid) if Path(f"/proc/{pid}/fd").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" else 0
    return sum(link.startswith("socket:") for link in links)


# -- node 0 is hostile, and has the token --------------------------------------------------------------------------------

PLAIN = [name for name in attackers.ORDERS if not name.startswith("way ") and name not in ("peers on loopback", "escapes", "environment")]


@pytest.mark.parametrize("scene", PLAIN)
def test_a_hostile_node_0_gets_no_more_than_a_refusal(scene: str, two_hosts: TwoHosts, attack: Any, tmp_path: Path) -> None:
    port = next(PORTS)
    attacker = attack(two_hosts.a, "node0", scene, port, str(tmp_path))
    attacker.says("listens")
    job = two_hosts.start(two_hosts.b, *words(port, 1, "bandwidth", "host"))
    attacker.says("met")
    assert ended(job) == 3, job.out
    assert job.report["status"] == "unknown" and {finding["cause"] for finding in job.report["findings"][:1]} <= set(UNDECIDED), job.out
    assert os.listdir(tmp_path) == [] and job.left() == []


@pytest.mark.parametrize("scene", ["way to loopback", "way from elsewhere", "way to a service", "peers on loopback"])
def test_a_hostile_node_0_has_nobody_else_connected_to(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    script = "import socket,sys; s=socket.create_server(('', int(sys.argv[1]))); print('up', flush=True); s.accept(); print('come', flush=True)"
    victims = [two_hosts.python(host, script, str(number)) for host in two_hosts.hosts for number in (port + 2000, 22)]
    attacker = attack(two_hosts.a, "node0", scene, port, str(port + 2000))  # no port that the system gives to whoever asks for any
    attacker.says("listens")
    job = two_hosts.start(two_hosts.b, *words(port, 1, "bandwidth"))
    attacker.says("met")
    assert ended(job) == 3 and causes(job)[0] == "order-refused", job.out
    for victim in victims:
        assert victim.poll() is None
        victim.kill()
        assert victim.communicate()[0] == b""


@pytest.mark.parametrize("form", report.formats())
def test_escapes_of_a_hostile_node_0_reach_no_terminal(form: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    attacker = attack(two_hosts.a, "node0", "escapes", port)
    attacker.says("listens")
    job = two_hosts.start(two_hosts.b, *words(port, 1, "bandwidth", form=form))
    assert ended(job) == 3 and job.out
    assert not set(job.out) & set("\x1b\x07\x9b\u202e")


def test_an_environment_that_a_hostile_node_0_orders_reaches_no_rank(two_hosts: TwoHosts, attack: Any, tmp_path: Path) -> None:
    port = next(PORTS)
    attacker = attack(two_hosts.a, "node0", "environment", port, str(tmp_path))
    attacker.says("listens")
    job = two_hosts.start(two_hosts.b, *words(port, 1, "bandwidth"))
    mark = f"NCCLCHECK_RUN={attackers.RUN}".encode()

    def launched() -> Any:
        found = (environ for _, environ in environments() if mark in environ and any(each.startswith(b"NCCLCHECK_DIR=") for each in environ))
        return next(found, None)

    environ = until(launched, SOON, "a launcher, whose environment its ranks get")
    assert not [each for each in environ if b"antigravity" in each or b"owned" in each]
    attacker.end()
    assert ended(job) == 3, job.out
    assert os.listdir(tmp_path) == [] and job.left() == []


# -- a node is hostile, and has the token --------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", attackers.HELLOS)
def test_a_hostile_hello_is_named_in_the_verdict(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    job = two_hosts.start(two_hosts.a, *words(port, 0, "wiring", patience="6s"))
    until(lambda: "roll call" in job.err or job.process.poll() is not None, SOON, "node 0")
    attack(two_hosts.b, "hello", scene, port).says("met")
    assert ended(job) == 3, job.out
    assert "invalid-message" in causes(job) and job.report["status"] == "unknown"
    told = next(finding for finding in job.report["findings"] if finding["cause"] == "invalid-message")
    assert "node-b" in told["title"] or "10.77.0.2" in told["title"]


@pytest.mark.parametrize("scene", attackers.REPORTS)
def test_a_hostile_report_ends_the_run_and_names_who_sent_it(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    job = two_hosts.start(two_hosts.a, *words(port, 0, "bandwidth"))
    attack(two_hosts.b, "node", scene, port).says("met")
    assert ended(job) == 3, job.out
    first = job.report["findings"][0]
    assert first["cause"] == "invalid-message" and "node 1 (node-b)" in first["title"] and first["culprit"]["hosts"] == ["node-b"], first
    assert job.left() == []


@pytest.mark.parametrize("scene", attackers.HARMLESS)
def test_what_a_hostile_node_says_of_others_is_not_heard(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    job = two_hosts.start(two_hosts.a, *words(port, 0, "bandwidth"))
    attack(two_hosts.b, "node", scene, port).says("met")
    assert ended(job) == 3, job.out
    first = job.report["findings"][0]
    assert first["cause"] == "agent-lost" and first["culprit"]["hosts"] == ["node-b"], first
    assert job.left() == []


@pytest.mark.parametrize("scene", ["bomb", "deep", "values", "other values"])
def test_a_hostile_inventory_leaves_the_verdict_open(scene: str, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    job = two_hosts.start(two_hosts.a, *words(port, 0, "host"))
    attack(two_hosts.b, "inventory", scene, port).says("met")
    assert ended(job) in (1, 3), job.out
    assert job.report["status"] in ("unknown", "not-ready", "degraded") and "node-b" in job.out


@pytest.mark.parametrize("late", [False, True])
def test_a_thousand_hellos_of_one_who_has_the_token_end_in_a_verdict(late: bool, two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    probes = ("bandwidth", "--budget", "4s")
    jobs = [two_hosts.start(two_hosts.a, *words(port, 0, *probes))]
    if late:
        jobs.append(two_hosts.start(two_hosts.b, *words(port, 1, *probes)))
        until(lambda: "all 2 here" in jobs[0].err, SOON, "both nodes")
    else:
        until(lambda: "roll call" in jobs[0].err, SOON, "node 0")
    attack(two_hosts.b, "crowd_of_hellos", "5", port).says("met")
    codes = [ended(job, 150) for job in jobs]
    if late:
        assert codes == [0, 0], jobs[0].out + jobs[1].out
    else:
        assert codes[0] != 0 and "evil-" in jobs[0].out


def test_parts_of_a_bundle_without_end_are_bounded_and_named(two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    cluster = ("--nnodes", "2", "--node-rank", "0", "--master", f"10.77.0.1:{port}", "--roll-call-timeout", "60s")
    job = two_hosts.start(two_hosts.a, "triage", "--live", *cluster, "--format", "json")
    attack(two_hosts.b, "bundles", "500", port).says("met")
    assert ended(job, 150) in (1, 3), job.out  # 1: where the kernel log of this machine tells of trouble of others
    assert "node-b" in job.out and sum(path.stat().st_size for path in job.folder.rglob("*.part")) == 0


# -- consent ---------------------------------------------------------------------------------------------------------------


def test_a_nodes_link_stays_up_where_only_node_0s_user_allowed_to_break_it(two_hosts: TwoHosts, attack: Any) -> None:
    port = next(PORTS)
    allowed = ("--allow-network-faults", "--inject", "link_down@rank=1,after=5")
    jobs = [two_hosts.start(host, *words(port, rank, "training"), *(() if rank else allowed)) for rank, host in enumerate(two_hosts.hosts)]
    before = two_hosts.b.carrier_changes()
    assert [ended(job) for job in jobs] == [3, 3]
    assert causes(jobs[0])[0] == "order-refused" and "--inject link_down" in jobs[0].out and "node-b" in jobs[0].out
    assert before == two_hosts.b.carrier_changes() and not [job.left() for job in jobs if job.left()]

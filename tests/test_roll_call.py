"""Whatever keeps nodes from meeting is named, on every node that can see it, within the time that the roll call has."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from lab import Host, TwoHosts
from running import SOON, Job, until

pytestmark = pytest.mark.slow

AT_ONCE = 4  # scenes played side by side
PORTS = itertools.count(29700)  # every scene has its own
GRACE = 15.0  # seconds after the roll call's time-out in which a node must have looked at node 0 and have said what it saw; 5 where nothing else runs
START = 30.0  # seconds for an interpreter to come and go on a busy machine
WAITS = "waiting for node 1"  # what node 0 says when it can be reached

LISTEN = """
import socket, sys, time
server = socket.create_server(("10.77.0.1", int(sys.argv[1])))
print("listening", flush=True)
kept = []
while True:
    client, _ = server.accept()
    kept.append(client)
    %s
"""
SILENT = LISTEN % "pass"
GARBAGE = LISTEN % "client.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')"
CLOSING = LISTEN % "client.close()"

DROP = """
import struct, sys
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables
from pyroute2.netlink.nfnetlink.nftsocket import Cmp, Regs

tcp_port = genex("payload", {"dreg": Regs.NFT_REG_1, "base": 2, "offset": 2, "len": 2})
is_ours = genex("cmp", {
    "sreg": Regs.NFT_REG_1, "op": Cmp.NFT_CMP_EQ, "data": {"attrs": [("NFTA_DATA_VALUE", struct.pack(">H", int(sys.argv[1])))]}
})
with NFTables(nfgen_family=2) as nft:
    nft.begin()
    nft.table("add", name="lab")
    nft.chain("add", table="lab", name="input", hook="input", type="filter", policy=1)
    nft.rule("add", table="lab", chain="input", expressions=([tcp_port], [is_ours], verdict(code=0)))
    nft.commit()
print("dropping", flush=True)
"""


@dataclass(frozen=True)
class Said:
    """What a node must find: one cause, whom it names, and words of the title (PORT and PID stand for the scene's)."""

    cause: str
    hosts: list[str] | None = None
    ranks: list[int] | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agent:
    """`ncclcheck probe wiring` on host `a` or `b`; `says` is None where the roll call must succeed.

    It is started once the first agent has said `after`, and, where it is `alone`, it has ended before the next one is started.
    """

    host: str
    words: str
    says: Said | None
    after: str = ""
    alone: bool = False


@dataclass(frozen=True)
class Scene:
    """Agents that are started one after the other, beside a script that runs on node-a and gets the port."""

    agents: tuple[Agent, ...]
    seconds: float = 4.0  # the roll call's time-out
    script: str = ""


@dataclass
class Played:
    """A scene that is over: its agents' processes and how long each ran."""

    port: int
    pid: int | None  # of the script
    jobs: list[Job] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)


M = "--master 10.77.0.1:PORT"
MISSING = "missing-rank-at-rendezvous"
ADDRESS_0 = "10.77.0.1"
NO_NODE_1 = Said(MISSING, None, [1], ("node 1 never came",))
NO_NODE_0 = Said(MISSING, [ADDRESS_0], None, ("node 0 never came", "nothing listens"))


def both(a: str, b: str, says: Said) -> tuple[Agent, ...]:
    """Two agents that hear the same verdict."""
    return Agent("a", a, says), Agent("b", b, says)


SCENES: dict[str, Scene] = {
    "node 1 is missing": Scene((Agent("a", f"--nnodes 2 --node-rank 0 {M}", NO_NODE_1),)),
    "node 1, whose host is known, is missing": Scene(
        (Agent("a", f"--nnodes 2 --node-rank 0 {M} --hosts node-a,node-b", Said(MISSING, ["node-b"], [1], ("node 1 (node-b) never came",))),)
    ),
    "node 0 is missing": Scene((Agent("b", f"--nnodes 2 --node-rank 1 {M}", NO_NODE_0),)),
    "node 1 has a master address that nobody has": Scene(
        (
            Agent("a", f"--nnodes 2 --node-rank 0 {M}", NO_NODE_1),
            Agent("b", "--nnodes 2 --node-rank 1 --master 10.77.0.9:PORT", Said("wrong-master-addr", ["node-b"], None, ("10.77.0.9:PORT",))),
        )
    ),
    "node 0 has a master address that is not its own": Scene(
        (
            Agent("a", "--nnodes 2 --node-rank 0 --master 10.77.0.9:PORT", Said("wrong-master-addr", ["node-a"], None, ("10.77.0.9", ADDRESS_0))),
            Agent("b", f"--nnodes 2 --node-rank 1 {M}", NO_NODE_0),
        )
    ),
    "a silent program has the port": Scene(
        (
            Agent("a", f"--nnodes 2 --node-rank 0 {M}", Said("port-in-use", ["node-a"], None, ("port PORT on node-a", "pid PID"))),
            Agent("b", f"--nnodes 2 --node-rank 1 {M}", Said("port-in-use", [ADDRESS_0], None, ("says nothing",))),
        ),
        script=SILENT,
    ),
    "a web server has the port": Scene(
        (Agent("b", f"--nnodes 2 --node-rank 1 {M}", Said("port-in-use", [ADDRESS_0], None, ("HTTP/1.1 400",))),), script=GARBAGE
    ),
    "a program that closes every connection has the port": Scene(
        (Agent("b", f"--nnodes 2 --node-rank 1 {M}", Said("port-in-use", [ADDRESS_0], None, ("accepts connections and",))),), script=CLOSING
    ),
    "two nodes are number 1 of 3": Scene(
        (
            *both(
                f"--nnodes 3 --node-rank 1 {M}", f"--nnodes 3 --node-rank 1 {M}", Said("duplicate-rank", ["node-a", "node-b"], None, ("node_rank 1",))
            ),
            Agent("a", f"--nnodes 3 --node-rank 0 {M}", Said("duplicate-rank", ["node-a", "node-b"], None, ("node_rank 1",))),
        ),
        seconds=20,
    ),
    "two nodes are number 0": Scene(
        both(f"--nnodes 2 --node-rank 0 {M}", f"--nnodes 2 --node-rank 0 {M}", Said("duplicate-rank", ["node-a", "node-b"], None, ("node_rank 0",))),
        seconds=20,
    ),
    "the nodes disagree on how many they are": Scene(
        both(
            f"--nnodes 2 --node-rank 0 {M}",
            f"--nnodes 3 --node-rank 1 {M}",
            Said("world-size-mismatch", ["node-a", "node-b"], None, ("node 0 (node-a) says 2", "node 1 (node-b) says 3")),
        ),
        seconds=20,
    ),
    "the nodes disagree on the number of ranks": Scene(
        both(
            f"--nnodes 2 --node-rank 0 {M} --nproc-per-node 2",
            f"--nnodes 2 --node-rank 1 {M} --nproc-per-node 1",
            Said("world-size-mismatch", ["node-a", "node-b"], None, ("nproc_per_node", "(node-a) says 2", "(node-b) says 1")),
        ),
        seconds=20,
    ),
    "on node 0 the master's name leads to node 0 alone": Scene(
        (
            Agent("a", "--nnodes 2 --node-rank 0 --master node-a:PORT", Said("hostname-resolution", ["node-a"], None, ("node-a", "127.0.1.1"))),
            Agent("b", "--nnodes 2 --node-rank 1 --master node-a:PORT", Said(MISSING, ["node-a"], None, ("node 0 never came",))),
        )
    ),
    "on every node the master's name leads to itself": Scene(
        (
            Agent("a", "--nnodes 2 --master this-machine:PORT", Said("hostname-resolution", ["node-a"], None, ("this-machine", "127.0.1.1"))),
            Agent("b", "--nnodes 2 --master this-machine:PORT", Said("hostname-resolution", ["node-b"], None, ("this-machine", "127.0.1.1"))),
        )
    ),
    "the master's name does not resolve": Scene(
        (
            Agent("a", "--nnodes 2 --node-rank 0 --master nowhere.invalid:PORT", Said("hostname-resolution", ["node-a"], None, ("nowhere.invalid",))),
            Agent("b", "--nnodes 2 --node-rank 1 --master nowhere.invalid:PORT", Said("hostname-resolution", ["node-b"], None, ("nowhere.invalid",))),
        )
    ),
    "node 1 has another token": Scene(
        (
            Agent(
                "a", f"--nnodes 2 --node-rank 0 {M} --token this-is-token-one", Said("token-mismatch", ["10.77.0.2"], None, ("node 1 is missing",))
            ),
            Agent(
                "b",
                f"--nnodes 2 --node-rank 1 {M} --token this-is-token-two --roll-call-timeout 4s",
                Said("token-mismatch", ["node-b"], None, (f"{ADDRESS_0}:PORT",)),
                after=WAITS,
            ),
        ),
        seconds=20,
    ),
    "a firewall drops what goes to the port": Scene(
        (
            Agent("a", f"--nnodes 2 --node-rank 0 {M}", NO_NODE_1),
            Agent("b", f"--nnodes 2 --node-rank 1 {M}", Said("blocked-port", ["node-b"], None, ("port PORT", "dropped"))),
        ),
        script=DROP,
    ),
    "a stranger knocks while two nodes meet": Scene(
        (
            Agent("a", f"--nnodes 2 --node-rank 0 {M} --token this-is-token-one --roll-call-timeout 60s", None),
            Agent("b", f"--nnodes 2 --node-rank 1 {M} --token this-is-token-two", Said("token-mismatch", ["node-b"]), after=WAITS, alone=True),
            Agent("b", f"--nnodes 2 --node-rank 1 {M} --token this-is-token-one --roll-call-timeout 60s", None),
        ),
        seconds=2,
    ),
    "nobody has a number and the master has a name": Scene(
        (Agent("a", "--nnodes 2 --master the-master:PORT", None), Agent("b", "--nnodes 2 --master the-master:PORT", None)), seconds=60
    ),
}


def play(scene: Scene, port: int, hosts: TwoHosts) -> Played:
    """Start a scene's agents and wait until the last has ended."""
    script = hosts.python(hosts.a, scene.script, str(port)) if scene.script else None
    played = Played(port, script.pid if script else None)
    place: dict[str, Host] = {"a": hosts.a, "b": hosts.b}
    started = time.monotonic()
    for agent in scene.agents:
        words = shlex.split(agent.words.replace("PORT", str(port)))
        until(lambda told=agent.after: not told or told in played.jobs[0].err, SOON, agent.after)
        options = ("--nproc-per-node", "1", "--roll-call-timeout", f"{scene.seconds}s", "--format", "json")
        played.jobs.append(hosts.start(place[agent.host], "probe", "wiring", *options, *words))
        if agent.alone:
            played.jobs[-1].wait(SOON)
    while len(played.seconds) < len(played.jobs) and time.monotonic() < started + 200:
        for index, job in enumerate(played.jobs):
            if index not in played.seconds and job.process.poll() is not None:
                played.seconds[index] = time.monotonic() - started
        time.sleep(0.02)
    return played


@pytest.fixture(scope="module")
def on_stage(two_hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Played]]:
    """Plays the scenes of the tests that were selected, several at once, since most of their time is waiting."""
    chosen = {item.callspec.params["scene"]: None for item in request.session.items if getattr(item, "module", None) is request.module}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[str, Future[Played]] = {name: pool.submit(play, SCENES[name], next(PORTS), two_hosts) for name in chosen}
        yield lambda name: futures[name].result()


@pytest.mark.parametrize("scene", SCENES)
def test_every_node_names_what_keeps_them_from_meeting(scene: str, on_stage: Callable[[str], Played]) -> None:
    played = on_stage(scene)
    for index, (agent, job) in enumerate(zip(SCENES[scene].agents, played.jobs, strict=True)):
        assert index in played.seconds, f"{agent} did not end: {job.err}"
        assert "Traceback" not in job.err
        report = job.report
        if agent.says is None:
            assert (job.process.returncode, report["status"], report["findings"]) == (0, "ready", []), report["summary"]
            assert list(report["run"].get("strangers", {}).get("addresses", ())) == (["10.77.0.2"] if "stranger" in scene else [])
            assert [node["host"] for node in report["nodes"]] == ["node-a", "node-b"]
            continue
        assert report["seconds"] < SCENES[scene].seconds + GRACE
        assert played.seconds[index] < SCENES[scene].seconds + GRACE + START
        assert (job.process.returncode, report["status"]) == (1, "not-ready"), report["summary"]
        (finding,) = report["findings"]
        assert (finding["cause"], finding["culprit"]["hosts"], finding["culprit"]["ranks"]) == (agent.says.cause, agent.says.hosts, agent.says.ranks)
        for word in agent.says.words:
            assert word.replace("PORT", str(played.port)).replace("PID", str(played.pid)) in finding["title"]
        assert finding["remedy"]
        assert finding["evidence"]

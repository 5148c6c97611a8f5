"""Whatever a peer with the token sends, each end answers with a verdict that can be printed: node 0 what a node says, and a node what node 0 says."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from ncclcheck import documents, outcome, permissions, received, registry, report, transport, triage, wire
from ncclcheck.cluster import Cluster
from ncclcheck.examination import Bundles
from ncclcheck.journal import Line, Slot
from ncclcheck.members import Members
from ncclcheck.message_limits import Invalid, plain
from ncclcheck.model import Evidence, Fact, Finding, Outcome, ProbeResult, Report
from ncclcheck.muster import Order
from ncclcheck.options import Options
from ncclcheck.rollcall import Roll
from ncclcheck.survey import Job, Node, Survey
from ncclcheck.surveying import judge
from ncclcheck.watch import Clock, View

PACKAGE = Path(outcome.__file__).parent
CLUSTER = Cluster(2, 0, "10.77.0.1", 29600, 1)
PROBES = ["host", "bandwidth"]
LAUNCH = "01-bandwidth"
RUN = "20260101-000000-abcdef"

# -- a valid message of each type, and of each kind of line -------------------------------------------------------------

DOOR = wire.Door("eth0", "10.77.0.2", 40000, 1500, 24, "up", 1000)
GPU: wire.Gpu = {
    "index": 0, "name": "H100", "uuid": "GPU-1", "pci_bus_id": "0000:01:00.0", "memory_total": 2**36, "memory_used": 2**20, "processes": [7],
}  # fmt: skip
TASK: wire.Task = {"rank": 1, "local_rank": 0, "node_rank": 1, "world_size": 2, "local_world_size": 1}
HELLO0 = wire.Hello(
    wire.PROTOCOL, "1", 2, 0, 1, "node-a", 7, "flags", {"eth0": ["10.77.0.1"]}, [], {"torch": "2.11.0"}, False, None, ("10.77.0.1", 40001),
    [msgspec.structs.replace(DOOR, address="10.77.0.1", port=40001)], bytes(16), wire.Permits(PROBES),
)  # fmt: skip
HELLO = msgspec.structs.replace(
    HELLO0, node_rank=1, host="node-b", addresses={"eth0": ["10.77.0.2"]}, gpus=[GPU], echo=("10.77.0.2", 40000), doors=[DOOR]
)
PEER = wire.Peer(1, "node-b", "10.77.0.2", 40000)
TARGET = wire.Target(PEER, "eth0", "eth0", "10.77.0.1", 1500, True, "10.77.0.0/24")
SLOT = Slot(7, 1, 50, 8, 1.0, None, 2.0, False, False, False, 3.0, 1.0, 1, 5, 9, "all_reduce", "world", "float32")
SAMPLE = {
    "name": "all_reduce", "nbytes": 8, "dtype": "float32", "ranks": 2, "bus_factor": 1.0, "correct": True, "seconds": [0.1, 0.2],
    "latency_min": 0.1, "latency_median": 0.1, "latency_p99": 0.2, "algbw": 80.0, "busbw": 80.0,
}  # fmt: skip
IDENTITY = {
    "rank": 1, "local_rank": 0, "node_rank": 1, "host": "node-b", "pid": 9,
    "device": {"index": None, "name": "CPU", "uuid": None, "pci_bus_id": None},
}  # fmt: skip
ENGINE = {
    "tensor_parallel": 2, "pipeline_parallel": 1, "startup_seconds": 3.0, "first_token_seconds": 0.1, "token_seconds": 0.01,
    "phase_seconds": {"weights": 1.0}, "tokens_equal": True, "backend": "gloo",
}  # fmt: skip
SERVED = {
    "nodes": 2, "tensor_parallel": 2, "pipeline_parallel": 1, "api_seconds": 1.0, "first_token_seconds": 1.0, "ttft_seconds": 1.0,
    "token_seconds": 1.0, "tokens_equal": True, "phase_seconds": {"weights": 1.0},
}  # fmt: skip
JUDGED = {"cause": "data-corruption", "title": "wrong", "ranks": [1], "hosts": ["node-b"], "remedy": "mend it", "evidence": ["a: b"]}
SAID = {
    "claim": {"host": "node-b", "pid": 9, "local_rank": 0, "environment": {"RANK": "1", "WORLD_SIZE": "2"}, "interfaces": ["lo", "eth0"]},
    "hello": {"identity": IDENTITY, "torch": "2.11.0", "nccl": [None, "2.27.5"], "vllm": None},
    "probe": {"name": "bandwidth"}, "local": {"step": "fill"}, "phase": {"phase": "weights"}, "leave": {"step": "fill"}, "sample": SAMPLE,
    "fact": {"fact": "engine", "fields": ENGINE}, "error": {"type": "RuntimeError", "message": "no", "where": "x.py:1"},
    "planted": {"struck": 3.0}, "probe-end": {"name": "bandwidth"},
}  # fmt: skip
LINES = [Line(1, kind, 1.0, 1, fields, "rank1.jsonl", number) for number, (kind, fields) in enumerate(SAID.items(), 1)]
FACTS = [
    Fact("gone", "node-b", 1, 9, {"code": -9}), Fact("fail", "node-b", 1, fields=JUDGED), Fact("engine", "node-b", 1, fields=ENGINE),
    Fact("served", "node-b", 1, fields=SERVED), Fact("environment", "node-b", fields={"added": {"A": "b"}}),
    Fact("note", "node-b", fields={"title": "so", "hosts": ["node-b"]}), Fact("checked", "node-b", 1, fields={"sums": 3}),
]  # fmt: skip
PROGRESS = wire.Progress(LAUNCH, [SLOT], LINES, {1: 5}, FACTS, True, 5.0, {1: [(32, 7)]}, {1: 0.5})
INVENTORY = {"host": {"cpus": 4}, "limits": {"error": "none"}, "memory": {"total": 2**36}}
SURVEYED = wire.Surveyed(b"")  # its document is made apart
FROM_NODE: Sequence[wire.Message] = (
    HELLO, msgspec.structs.replace(HELLO, task=TASK), PROGRESS, wire.Collected(LAUNCH, FACTS), wire.Stopped(LAUNCH, FACTS), SURVEYED,
    wire.Tried(1, FACTS, [("10.77.0.1", "10.77.0.2")]), wire.Examined(0, 1, b"part"), wire.Beat(), wire.Ack(), wire.Goodbye("it goes"),
)  # fmt: skip
FROM_NODE0: Sequence[wire.Message] = (
    wire.Roster(["node 0 (node-a)"], ["node 1"], 5.0), wire.Welcome(RUN, 1, [PEER], PEER), wire.Survey(["host"], ["10.77.0.1"]),
    wire.Launch(LAUNCH, ["bandwidth"], 29700, 2, 1, {"budget": 3.0}, bench=wire.Bench({"layout": 1}, [wire.Load(1, 1, 1, 1)])),
    wire.Collect(LAUNCH), wire.Stop(LAUNCH), wire.Strike(LAUNCH, ["10.77.0.1"], [29600]), wire.Try(1, [TARGET], 8, ["node-a"]),
    wire.Examine(), wire.Result(b""), wire.Beat(), wire.Goodbye("it goes"),
)  # fmt: skip
REPORT = Report(
    1, Outcome.UNKNOWN, "not proven", 3.0,
    [Finding("data-corruption", "wrong", evidence=[Evidence("node1-node-b/x", 3, "said")], remedy="mend it", collect=["py-spy"])],
    False, {"added": {"A": "b"}},
    [ProbeResult("bandwidth", "pass", "well", 1.0, [{"rank": 1, **SAMPLE}], FACTS)],  # type: ignore[arg-type]
    [{"node_rank": 1, "host": "node-b", "addresses": {"eth0": ["10.77.0.2"]}, "gpus": [GPU], "versions": {"torch": "2"}, "nproc_per_node": 1}],
    [], {"id": RUN, "folders": {"1": f"{RUN}/node1-node-b"}, "ncclcheck": "1", "not_asked": ["host"], "simulated_link": "1ms",
         "planted": {"fault": "kill", "rank": 1, "after": 3, "clock": "x", "seconds": 1.0, "refused": None}},
)  # fmt: skip

# -- what is put in place of any of its values ---------------------------------------------------------------------------

NASTY: Sequence[Any] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"),
    float("-inf"), "", "x", "\x1b[2J\x9b1m", "a\nb\r\0", "\u202e\ufeff", "../../..", "/etc/passwd", "x" * 70_000, "1", "nan", "-1", "10.77.0.9",
    b"", b"\xff\xfe", [], [None], [[[]]], [-1, "x"], [2**40] * 3, {}, {"": {}}, {"x": [1]}, {"1": 2}, {1: 2},
)  # fmt: skip
letters = st.text(max_size=12)


def json_says(value: Any) -> bool:
    """Whether a value passes the door in a fact."""
    try:
        return plain(value) is not None
    except Invalid:
        return False


leaves = st.sampled_from(NASTY) | st.integers(-(2**63), 2**64 - 1) | st.floats() | letters
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3), max_leaves=6)


sane = st.sampled_from([each for each in NASTY if json_says(each)]) | st.integers(-(2**63), 2**63 - 1) | letters
said = st.recursive(sane, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3), max_leaves=4)


@functools.cache
def vocabulary() -> tuple[list[str], list[str]]:
    """The kinds of facts that judging and printing read, and the names of their fields."""
    text = "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))
    kinds = {*re.findall(r'\bof\("([a-z-]+)"\)', text), *re.findall(r'\bFact\("([a-z-]+)"', text), *re.findall(r'kind == "([a-z-]+)"', text)}
    return sorted(kinds), sorted(set(re.findall(r'\bget\("([a-z_]+)"', text)))


@st.composite
def told(draw: st.DrawFn) -> dict[str, Any]:
    """A fact of a kind that something reads, with fields that something reads, of any value."""
    kinds, names = vocabulary()
    fields = draw(st.dictionaries(st.sampled_from(names), said, max_size=6))
    return {"kind": draw(st.sampled_from(kinds)), "host": "node-b", "rank": draw(st.sampled_from([None, 1, 1, 0])), "fields": fields}


def alike(value: Any) -> st.SearchStrategy[Any]:
    """Mostly a value of the same type, so that it comes further than the door."""
    same = [each for each in NASTY if type(each) is type(value)]
    return st.one_of(*[st.sampled_from(same)] * 3, anything) if same else anything


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in paths(item, (*here, key)))]


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there."""
    if not path:
        return value
    parent = functools.reduce(lambda at, key: at[key], path[:-1], document)
    parent[path[-1]] = value
    return document


@st.composite
def mutated(draw: st.DrawFn, valid: Any) -> Any:
    """A document with a few values exchanged, removed or repeated."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2, 3]))):
        places = [path for path in paths(document)[1:] if path != ("type",)]
        if not places:
            break
        path = draw(st.sampled_from(places))
        parent = functools.reduce(lambda at, key: at[key], path[:-1], document)
        how = draw(st.sampled_from(["put"] * 6 + ["take", "again", "add"]))
        if how == "take":
            del parent[path[-1]]
        elif how == "again" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif how == "add" and isinstance(parent, dict):
            parent[draw(letters)] = copy.deepcopy(draw(anything))
        else:
            put(document, path, copy.deepcopy(draw(alike(parent[path[-1]]))))  # a sampled value is everybody's
    return document


def builtins(message: Any) -> Any:
    """As lists and mappings, which can be changed."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), strict=False)


@st.composite
def packed(draw: st.DrawFn, valid: Any) -> bytes:
    """A compressed document of this kind, more or less."""
    value = draw(mutated(json.loads(msgspec.json.encode(valid))))
    data = documents.pack(msgspec.to_builtins(value, enc_hook=str))
    return draw(st.sampled_from([data] * 8 + [data[: len(data) // 2], b"", b"\x78\x9c\xff"]))


@st.composite
def message(draw: st.DrawFn, valid: Sequence[wire.Message]) -> bytes:
    """What a peer sends: a valid message that was changed, or bytes that are none."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=80))
    document = builtins(draw(st.sampled_from(list(valid))))
    if document["type"] == "Surveyed":
        document["inventory"] = draw(packed(INVENTORY))
    elif document["type"] == "Result":
        document["report"] = draw(packed(REPORT))
    if "facts" in document:
        document["facts"] += draw(st.lists(told(), max_size=3))
    if "lines" in document:
        more = draw(st.lists(told(), max_size=2))
        document["lines"] += [{**builtins(LINES[0]), "kind": "fact", "fields": {"fact": fact["kind"], "fields": fact["fields"]}} for fact in more]
    data: bytes = msgspec.msgpack.encode(draw(mutated(document)))
    for _ in range(draw(st.sampled_from([0] * 15 + [1, 3]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


from_node = st.lists(message(FROM_NODE), min_size=1, max_size=3)
from_node0 = message(FROM_NODE0)

# -- both ends ---------------------------------------------------------------------------------------------------------


def check_report(made: Report) -> None:
    """It can be printed in every format, and a terminal shows it and obeys nothing of it."""
    for form in report.formats():
        text = report.render(made, form)
        assert all(sign.isprintable() or sign == "\n" for sign in text) or form in ("json", "prometheus"), text
        assert not set(text) & set("\x1b\x00\r"), text
        text.encode()
    json.loads(report.render(made, "json"))


def hear(messages: Sequence[bytes], folder: Path) -> Report:
    """Node 0 hears what a node sends it, beside an honest one, and judges; everything that must hold of the report is checked."""
    return asyncio.run(_hear(messages, folder))


async def _hear(messages: Sequence[bytes], folder: Path) -> Report:
    server = transport.Server(bytes(32))
    roll = Roll(CLUSTER)
    members = Members(server, roll, lambda hello: outcome.pack(_report(members, View_(), Clock.LOST, [], hello=hello)))
    members.open()
    try:
        own, evil = server.local(), server.local()
        own.send(HELLO0)
        hellos = [data for data in messages if b"Hello" in data[:24]]
        for data in [*hellos, wire.encode(HELLO)][:2]:
            evil._hear(data)
        await _heard(server)
        if not roll.complete():
            return _checked(_report(members, View_(), Clock.LOST, []))
        members.settle(RUN)
        members.probes = PROBES
        view = members.view = View_()
        members.bundles = Bundles(folder / RUN)
        answers = asyncio.create_task(members.ask(wire.Collect(LAUNCH), wire.Collected, 0.02))
        for data in messages:
            evil._hear(data)
        await _heard(server)
        try:
            facts = await answers
        except Exception as error:
            assert type(error).__name__ == "AgentLost", error
            facts = members.drop_lost(*error.args)
        now = time.monotonic()
        for at in (now, now + 7, now + 120):
            view.clock(at)
            view.suspicious(at)
        _ = view.slowed, view.explained(), view.complete, view.reached(3)
        members.bundles.name({number: hello.host for number, hello in members.hellos().items()})
        nodes = [Node(number, hello.host, hello.echo[0], {}) for number, hello in members.hellos().items()]
        from ncclcheck.surveying import _sections

        names = sorted(INVENTORY)
        surveyed = [Node(each.node_rank, each.host, each.address, _sections(names, members._surveyed.get(each.node_rank))) for each in nodes]
        for name in ("host",):
            await judge(name, registry.load("probes", name), Survey(Job(2, 1, "10.77.0.1"), surveyed))  # type: ignore[arg-type]
        return _checked(_report(members, view, Clock.STALL, facts))
    finally:
        members.close()
        await server.close()


def View_() -> View:
    """The launch that is looked at."""
    order = Order(2, 1, "10.77.0.1", 29700)
    return View(LAUNCH, 2, 2, time.monotonic(), {"bandwidth": 60.0}, order, paced=True)


async def _heard(server: transport.Server) -> None:
    """Everything that was said has been taken in."""
    async with asyncio.timeout(20):
        while server._unheard or not server._inbox.empty():
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)


def _report(members: Members, view: View, clock: Clock, facts: list[Fact], hello: wire.Hello | None = None) -> Report:
    facts = [
        *facts,
        *members.invalid.values(),
        Fact("clock", fields={"which": clock.value, "bound": 3.0, "probe": view.current(), "name": clock.name}),
    ]
    run = view.run(facts)
    found = triage.placed(run, triage.findings(run))
    results = [outcome.of_probe(plugin, view, clock, 3.0, found) for plugin in map(functools.partial(registry.describe, "probes"), PROBES)]
    return outcome.of_run(
        Options(PROBES), run_id=RUN if members.settled else "", hellos=members.hellos(), results=results, findings=found, lacking=[],
        ranks=view.ranks, added={}, world_size=2, seconds=1.0,
    )  # fmt: skip


def _checked(made: Report) -> Report:
    assert made.findings and made.status not in (Outcome.READY, Outcome.HEALTHY)
    check_report(made)
    there = received.report(outcome.pack(made))
    check_report(there)
    return made


def obey(data: bytes) -> None:
    """A node hears what node 0 sends it: it refuses, or knows what to do; a verdict is one that can be printed."""
    asked = permissions.Permissions(Options(["host", "bandwidth"], inject="kill@rank=1", examine=True))
    with contextlib.suppress(Invalid, permissions.Refused):
        match wire.decode(data):
            case wire.Welcome() as order:
                asked.peers([*order.peers, *filter(None, [order.node0])], "10.77.0.1")
            case wire.Survey() as order:
                asked.survey(order)
            case wire.Launch() as order:
                added = asked.launch(order, 1, 2, 1)
                assert set(added) <= {"NCCLCHECK_OPTIONS", "NCCLCHECK_INJECT", *permissions.evidence(records=True, times=True)}, added
            case wire.Try() as order:
                asked.ways(order, lambda address: address == "10.77.0.1", "10.77.0.1")
                assert all(target.peer.port == 0 or target.peer.port >= 1024 for target in order.targets)
            case wire.Examine():
                asked.examine()
            case wire.Result(report=report):
                check_report(received.report(report))


def believe(data: bytes) -> None:
    """A node gets a verdict of node 0 that was changed: it is refused, or can be printed."""
    with contextlib.suppress(Invalid):
        told = received.report(data)
        check_report(told)
        with contextlib.suppress(Invalid):
            received.must_be_seen(told, RUN, PROBES, examined=False)


verdicts = packed(REPORT)

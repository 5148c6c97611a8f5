"""What is read of every node is judged before any rank starts: who differs is named, and what is not known is not called well."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from ncclcheck import gathered, registry, surveying, wire
from ncclcheck.cluster import Cluster
from ncclcheck.members import AgentLost
from ncclcheck.model import Fact, Finding, ProbeResult, Status
from ncclcheck.options import Options
from ncclcheck.probes import host, parity
from ncclcheck.survey import Job, Node, Survey, degrades, note, seen, stop, unread

VERSIONS: dict[str, Any] = {
    "installed": {"torch": "2.11.0", "vllm": "0.24.0", "ncclcheck": "0.1.0", "nccl": "2.28.9", "ray": None, "transformers": "5.0"},
    "torch": "2.11.0+cu130", "torch_cuda": "13.0", "nccl": "2.28.9", "driver": "570.1", "python": "3.11.7", "kernel": "6.8.0",
    "system": "Debian 12", "unread": {},
}  # fmt: skip
GPU = {"index": 0, "name": "NVIDIA H200"}
SECTIONS: dict[str, dict[str, Any]] = {
    "versions": VERSIONS,
    "settings": {"variables": {"NCCL_SOCKET_IFNAME": "eth0"}, "nccl": {"NCCL_SOCKET_IFNAME": {"value": "eth0", "from": "environment"}}},
    "devices": {"gpus": [GPU], "visible": [0]},
    "limits": {"shm": {"size": 2**36}, "memory": {"total": 2**40}, "rlimits": {"memlock": ["unlimited", "unlimited"], "nofile": [65536, 65536]}},
    "interfaces": {"interfaces": [{"name": "eth0", "mtu": 9000, "speed": 100000, "addresses": ["10.0.0.0"]}]},
    "infiniband": {"ports": [{"state": "active", "rate": 400.0, "link": "InfiniBand", "kind": "MT4129", "firmware": "28.40"}] * 8},
    "model": {"path": None},
}


def node(number: int, **changes: Mapping[str, Any]) -> Node:
    """A node with these sections changed."""
    changes = {"interfaces": interface(number), **changes}
    return Node(number, f"gpu-{number:02d}", f"10.0.0.{number}", {name: {**section, **changes.get(name, {})} for name, section in SECTIONS.items()})


def interface(number: int, **changes: Any) -> dict[str, Any]:
    lo = {"name": "lo", "mtu": 65536 + number, "speed": None, "addresses": ["127.0.0.1"]}
    return {"interfaces": [lo, {"name": "eth0", "mtu": 9000, "speed": 100000, "addresses": [f"10.0.0.{number}"]} | changes]}


def ports(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [port | changes for port in SECTIONS["infiniband"]["ports"][:count]]


def silent(number: int, why: str = "no answer in 20 s") -> Node:
    return Node(number, f"gpu-{number:02d}", f"10.0.0.{number}", {name: {"error": why} for name in SECTIONS})


def compared(*nodes: Node, model: str | None = None) -> tuple[ProbeResult, list[Finding]]:
    """How the probe ends."""
    return asyncio.run(surveying.judge("parity", parity, Survey(Job(len(nodes), 1, "10.0.0.0", model), nodes)))


def version(**changes: Any) -> dict[str, Any]:
    return {"versions": changes}


def setting(name: str, value: str, where: str = "environment") -> dict[str, Any]:
    variables = {"NCCL_SOCKET_IFNAME": "eth0"} | ({name: value} if where == "environment" else {})
    nccl = {name: {"value": value, "from": where}} if name.startswith("NCCL_") else {}
    return {"settings": {"variables": variables, "nccl": {**SECTIONS["settings"]["nccl"], **nccl}}}


def test_nodes_that_are_alike_pass_and_the_answer_says_in_what() -> None:
    result, found = compared(*(node(number) for number in range(32)))
    assert (result.status, found, result.facts) == (Status.PASS, [], [])
    assert result.detail.startswith("32 nodes alike: NCCL 2.28.9, torch 2.11.0+cu130, CUDA of torch 13.0, vLLM 0.24.0, Python 3.11")


def test_one_node_has_nothing_to_be_compared_with() -> None:
    result, found = compared(node(0))
    assert (result.status, found) == (Status.PASS, []) and "nothing to compare" in result.detail


def test_the_minority_is_named_and_the_majority_counted() -> None:
    result, (finding,) = compared(*(node(number) for number in range(31)), node(31, **version(nccl="2.28.3")))
    assert (result.status, finding.cause, finding.severity, finding.culprit.hosts) == (Status.FAIL, "nccl-version-mismatch", "stop", ["gpu-31"])
    assert finding.title.startswith("NCCL 2.28.9 on 31 nodes, 2.28.3 on gpu-31: ")
    assert "on gpu-31: pip install nvidia-nccl-cu13==2.28.9" in finding.remedy
    assert [line.text for line in finding.evidence] == ["gpu-00: NCCL 2.28.9", "gpu-31: NCCL 2.28.3"]


def test_of_two_nodes_that_differ_both_are_named() -> None:
    _, (finding,) = compared(node(0), node(1, **version(torch="2.12.0")))
    assert (finding.cause, finding.culprit.hosts) == ("version-mismatch", ["gpu-00", "gpu-01"])
    assert finding.title.startswith("torch 2.11.0+cu130 on gpu-00, 2.12.0 on gpu-01: ")


@pytest.mark.parametrize(
    ("changes", "status", "cause", "said"),
    [
        (version(nccl="2.27.0"), Status.FAIL, "nccl-version-mismatch", "NCCL"),
        (version(torch="2.12.0"), Status.FAIL, "version-mismatch", "torch"),
        (version(installed={**VERSIONS["installed"], "vllm": "0.25"}), Status.FAIL, "version-mismatch", "vLLM"),
        (version(installed={**VERSIONS["installed"], "vllm": None}), Status.DEGRADED, "version-mismatch", "none on gpu-02"),
        (version(driver="580.2"), Status.DEGRADED, "version-mismatch", "NVIDIA driver"),
        (version(python="3.12.1"), Status.DEGRADED, "version-mismatch", "Python 3.11 on gpu-00, gpu-01, 3.12 on gpu-02"),
        (version(installed={**VERSIONS["installed"], "ncclcheck": "0.2.0"}), Status.DEGRADED, "version-mismatch", "ncclcheck"),
        ({"devices": {"gpus": [{"index": 0, "name": "NVIDIA A100"}]}}, Status.DEGRADED, "slow-gpu", "1 x NVIDIA A100 on gpu-02"),
        ({"interfaces": interface(2, mtu=1500)}, Status.DEGRADED, "mtu-mismatch", "9000 on gpu-00, gpu-01, 1500 on gpu-02"),
        ({"interfaces": interface(2, speed=1000)}, Status.DEGRADED, "slow-link", "100000 on gpu-00, gpu-01, 1000 on gpu-02"),
        ({"infiniband": {"ports": ports(7)}}, Status.DEGRADED, "ib-link-error", "8 x 400 Gb/s InfiniBand on gpu-00, gpu-01, 7 x 400"),
        ({"infiniband": {"ports": ports(8, rate=200.0)}}, Status.DEGRADED, "ib-link-error", "8 x 200 Gb/s InfiniBand on gpu-02"),
        ({"infiniband": {"ports": []}}, Status.DEGRADED, "ib-link-error", "none on gpu-02"),
        (setting("NCCL_ALGO", "Tree"), Status.FAIL, "nccl-env-misconfig", "NCCL_ALGO is not set on gpu-00, gpu-01, Tree on gpu-02"),
        (setting("GLOO_DEVICE_TRANSPORT", "TCP_TLS"), Status.FAIL, "nccl-env-misconfig", "GLOO_DEVICE_TRANSPORT"),
        (setting("TORCH_NCCL_BLOCKING_WAIT", "1"), Status.FAIL, "nccl-env-misconfig", "TORCH_NCCL_BLOCKING_WAIT"),
        (setting("VLLM_DISABLE_PYNCCL", "1"), Status.DEGRADED, "nccl-env-misconfig", "VLLM_DISABLE_PYNCCL"),
    ],
)
def test_what_differs_on_one_of_three_nodes_is_found_as_grave_as_it_is(changes: dict[str, Any], status: Status, cause: str, said: str) -> None:
    result, (finding,) = compared(node(0), node(1), node(2, **changes))
    assert (result.status, finding.cause, finding.culprit.hosts) == (status, cause, ["gpu-02"])
    assert said in finding.title and "gpu-02" in finding.remedy and finding.evidence


@pytest.mark.parametrize(
    "changes",
    [
        setting("NCCL_SOCKET_IFNAME", "ib0"),
        setting("NCCL_DEBUG", "INFO"),
        setting("NCCL_TOPO_FILE", "/etc/topo.xml"),
        setting("VLLM_HOST_IP", "10.0.0.2"),
        setting("VLLM_LOGGING_LEVEL", "DEBUG"),
        setting("VLLM_CACHE_ROOT", "/scratch"),
        setting("HF_HOME", "/scratch"),
        version(python="3.11.9"),
    ],
)
def test_what_may_be_each_nodes_own_is_no_difference(changes: dict[str, Any]) -> None:
    result, found = compared(node(0), node(1), node(2, **changes))
    assert (result.status, found, result.facts) == (Status.PASS, [], [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (version(kernel="5.15.0"), "kernel 6.8.0 on gpu-00, gpu-01, 5.15.0 on gpu-02"),
        ({"limits": {**SECTIONS["limits"], "shm": {"size": 2**26}}}, "size of /dev/shm 64 GiB on gpu-00, gpu-01, 64 MiB on gpu-02"),
        ({"limits": {**SECTIONS["limits"], "memory": {"total": 2**39}}}, "memory differs: 512 GiB on gpu-02, and 1024 GiB elsewhere"),
    ],
)
def test_what_differs_and_does_no_harm_by_itself_is_noted(changes: dict[str, Any], said: str) -> None:
    result, found = compared(node(0), node(1), node(2, **changes))
    assert (result.status, found) == (Status.PASS, [])
    (fact,) = result.facts
    assert (fact.kind, fact.get("title"), fact.get("hosts")) == ("note", said, ["gpu-02"])


def test_a_setting_of_nccls_own_file_counts_as_one_of_the_environment() -> None:
    _, (finding,) = compared(node(0), node(1), node(2, **setting("NCCL_ALGO", "Ring", "/etc/nccl.conf")))
    assert finding.culprit.hosts == ["gpu-02"]
    assert [line.text for line in finding.evidence] == ["gpu-02: NCCL_ALGO=Ring (from /etc/nccl.conf)"]
    same = [node(0, **setting("NCCL_ALGO", "Ring")), node(1, **setting("NCCL_ALGO", "Ring", "/etc/nccl.conf"))]
    assert compared(*same)[1] == []


def test_many_settings_by_which_the_same_node_differs_are_one_finding() -> None:
    many = {f"NCCL_SETTING_{number}": {"value": "1", "from": "environment"} for number in range(10)}
    odd = node(2, settings={"variables": {}, "nccl": {**SECTIONS["settings"]["nccl"], **many}})
    _, (finding,) = compared(node(0), node(1), odd)
    assert "and 4 more settings" in finding.title and "NCCL_SETTING_9" in finding.remedy


def test_a_node_that_says_nothing_leaves_the_answer_open_and_the_others_are_compared() -> None:
    result, found = compared(node(0), node(1), silent(2))
    assert (result.status, found) == (Status.UNKNOWN, [])
    assert result.detail.startswith("gpu-02: ") and "no answer in 20 s" in result.detail
    result, (finding,) = compared(node(0), node(1, **version(torch="2.12.0")), silent(2))
    assert (result.status, finding.cause) == (Status.FAIL, "version-mismatch")


def test_a_section_that_one_node_could_not_read_is_not_taken_for_a_difference() -> None:
    result, found = compared(node(0), node(1), node(2, settings={"error": "OSError: no"}))
    assert (result.status, found) == (Status.UNKNOWN, []) and "settings: could not be read: OSError: no" in result.detail


# -- the model

MODEL = "/models/m"
FILES = {"config.json": {"size": 10, "digest": "aa"}, "model.safetensors": {"size": 1000, "digest": "bb"}, "README.md": {"size": 1, "digest": None}}


def holds(number: int, **changes: Any) -> Node:
    return node(number, model={"path": MODEL, "why": "", "files": FILES, "broken": {}, "weights": ["model.safetensors"], "missing": [], **changes})


def test_a_model_that_is_the_same_everywhere_is_no_finding() -> None:
    result, found = compared(holds(0), holds(1, files={**FILES, "README.md": {"size": 2, "digest": None}}), model=MODEL)
    assert (result.status, found) == (Status.PASS, [])


def test_the_node_without_the_model_is_named() -> None:
    result, (finding,) = compared(holds(0), holds(1), holds(2, why="No such file or directory", files={}), model=MODEL)
    assert (result.status, finding.cause, finding.culprit.hosts) == (Status.FAIL, "model-not-on-node", ["gpu-02"])
    assert finding.title == f"gpu-02 cannot use the model {MODEL}: No such file or directory; 2 other nodes have it"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {**FILES, name: {"size": 5, "digest": "ee"}}}
        for name in ("training_args.bin", "LICENSE.txt", "pytorch_model.bin", "pytorch_model.bin.index.json", "setup.py", "trainer_state.json")
    ] + [{"broken": {"LICENSE.txt": "No such file or directory"}}],
)  # fmt: skip
def test_a_file_that_no_engine_needs_may_be_on_one_node_only(changes: dict[str, Any]) -> None:
    result, found = compared(holds(0), holds(1), holds(2, **changes), model=MODEL)
    assert (result.status, found) == (Status.PASS, [])
    if "files" in changes:
        assert any(fact.kind == "note" and fact.get("files") == [next(iter(changes["files"].keys() - FILES))] for fact in result.facts)


@pytest.mark.parametrize(
    ("changes", "cause", "said"),
    [
        ({"broken": {"model.safetensors": "it has 7 bytes, expected 1000"}}, "model-not-on-node", "model.safetensors: it has 7 bytes"),
        ({"missing": ["model.safetensors"], "files": {"config.json": FILES["config.json"]}}, "model-not-on-node", "model.safetensors is missing"),
        ({"files": {"config.json": FILES["config.json"]}}, "model-not-on-node", "without model.safetensors, which other nodes have"),
        ({"files": {**FILES, "model.safetensors": {"size": 1000, "digest": "cc"}}}, "weights-differ", "gpu-02 as on the others: model.safetensors"),
        ({"files": {**FILES, "config.json": {"size": 11, "digest": "cc"}}}, "weights-differ", "config.json"),
    ],
)  # fmt: skip
def test_a_node_with_a_part_of_the_model_or_another_one_is_named_with_the_file(changes: dict[str, Any], cause: str, said: str) -> None:
    result, found = compared(holds(0), holds(1), holds(2, **changes), model=MODEL)
    assert result.status is Status.FAIL and all(finding.culprit.hosts == ["gpu-02"] for finding in found)
    assert found[0].cause == cause and said in found[0].title


def test_a_tokenizer_that_one_node_has_is_lacking_on_the_others() -> None:
    files = {**FILES, "tokenizer.json": {"size": 9, "digest": "ee"}}
    _, (finding,) = compared(holds(0, files=files), holds(1, files=files), holds(2), model=MODEL)
    assert (finding.cause, finding.culprit.hosts) == ("model-not-on-node", ["gpu-02"]) and "without tokenizer.json" in finding.title


# -- how a probe ends


class Says:
    """A probe that says what it is given."""

    READS = ()

    def __init__(self, *facts: Fact | Exception) -> None:
        self._facts = facts

    def judge(self, survey: Survey) -> Iterator[Fact]:
        for fact in self._facts:
            if isinstance(fact, Exception):
                raise fact
            yield fact


STOP, LESS = stop("shm-too-small", "it is full", ["a"], "df"), degrades("mtu-mismatch", "it is small", ["a"], "ip link")
OPEN = unread("the GPUs", "no answer", ["a"], needed=True)


@pytest.mark.parametrize(
    ("facts", "status", "detail", "causes"),
    [
        ([seen("3 things"), note("by the way", ["a"])], Status.PASS, "3 things", []),
        ([seen("3 things"), unread("the BIOS", "no right", ["a"])], Status.PASS, "3 things", []),
        ([LESS], Status.DEGRADED, "it is small", ["mtu-mismatch"]),
        ([LESS, OPEN], Status.UNKNOWN, "a: the GPUs: could not be read: no answer", ["mtu-mismatch"]),
        ([LESS, OPEN, STOP], Status.FAIL, "it is full", ["shm-too-small", "mtu-mismatch"]),
        ([STOP, stop("fd-limit", "too few", ["b"], "ulimit")], Status.FAIL, "it is full (and 1 more)", ["shm-too-small", "fd-limit"]),
        ([LESS, KeyError("gpus")], Status.CRASHED, "the probe says failed by itself: KeyError: 'gpus'", ["probe-crashed"]),
    ],
)
def test_a_probe_ends_as_its_gravest_fact_says(facts: list[Any], status: Status, detail: str, causes: list[str]) -> None:
    result, found = asyncio.run(surveying.judge("says", Says(*facts), Survey(Job(1, 1, ""), [])))
    assert (result.status, result.detail, [finding.cause for finding in found]) == (status, detail, causes)
    assert "seen" not in {fact.kind for fact in result.facts}


def test_a_failure_of_ours_while_ways_are_tried_costs_that_probe_and_a_lost_node_ends_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    members = SimpleNamespace(hellos=dict)
    surveyor = surveying.Surveyor(members, Cluster(1, 0, "10.0.0.0", 1, 1), Options([]))  # type: ignore[arg-type]

    async def nobody(_: object) -> list[Node]:
        return []

    def fails(error: Exception) -> None:
        async def try_all(*_: object) -> list[Fact]:
            raise error

        monkeypatch.setattr(surveying.ways, "try_all", try_all)

    monkeypatch.setattr(surveyor, "_ask", nobody)
    fails(TypeError("odd"))
    (result,), findings = asyncio.run(surveyor.judged([registry.describe("probes", "reachability")]))
    assert (result.status, [finding.cause for finding in findings]) == (Status.CRASHED, ["probe-crashed"])
    fails(AgentLost(1, "silent"))
    with pytest.raises(AgentLost):
        asyncio.run(surveyor.judged([registry.describe("probes", "reachability")]))


def test_gpus_in_use_are_worth_a_note_to_who_forces_it() -> None:
    busy = stop("gpu-busy", "pid 7 uses GPU 0", ["a"], "nvidia-smi")
    result, found = asyncio.run(surveying.judge("host", Says(busy), Survey(Job(1, 1, ""), []), forced=True))
    assert (result.status, found) == (Status.PASS, []) and result.facts[0].get("title") == "pid 7 uses GPU 0 (--force)"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "no answer in 20 s"),
        (wire.Surveyed(b"", "no answer in 15 s"), "no answer in 15 s"),
        (wire.Surveyed(b"nonsense"), "a document that cannot be unpacked: "),
    ],
)
def test_what_did_not_come_of_a_node_is_missing_in_each_section_with_the_reason(answer: wire.Surveyed | None, why: str) -> None:
    sections = surveying._sections(["limits", "versions"], answer)
    assert list(sections) == ["limits", "versions"] and all(str(section["error"]).startswith(why) for section in sections.values())


def test_of_many_agents_on_one_node_one_is_asked() -> None:
    def agent(rank: int, node_rank: int) -> wire.Hello:
        task = {"rank": rank, "local_rank": rank % 2, "node_rank": node_rank, "world_size": 4, "local_world_size": 2}
        return wire.Hello(wire.PROTOCOL, "1", 4, rank, 1, f"n{node_rank}", rank, "slurm", {}, [], {}, False, task)

    chosen = surveying._one_for_each({rank: agent(rank, rank // 2) for rank in range(4)})
    assert [(number, hello.host) for number, hello in chosen.items()] == [(0, "n0"), (2, "n1")]


# -- host


def test_an_area_that_fails_by_itself_costs_its_own_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        __name__ = "ncclcheck.preflight.broken"

        def judge(self, node: Node, job: Job) -> Iterator[Fact]:
            raise ValueError("odd")

    class Well:
        __name__ = "ncclcheck.preflight.well"

        def judge(self, node: Node, job: Job) -> Iterator[Fact]:
            yield degrades("fd-limit", f"{node.host} has few files", [node.host], "ulimit -n")

    monkeypatch.setattr(host, "_AREAS", (Broken(), Well()))
    nodes = [Node(number, f"n{number}", "", {name: {} for name in host.READS}) for number in range(2)]
    result, found = asyncio.run(surveying.judge("host", host, Survey(Job(2, 1, ""), nodes)))
    assert result.status is Status.CRASHED and {finding.cause for finding in found} == {"fd-limit", "probe-crashed"}
    assert next(finding.title for finding in found if finding.cause == "fd-limit") == "n0 has few files; the same on n1"


def test_a_section_that_nobody_speaks_of_is_said_to_be_unread_and_a_silent_node_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_AREAS", ())
    partly = Node(0, "n0", "", {**{name: {} for name in host.READS}, "kernel": {"error": "no answer in 6 s"}})
    with_silent = Survey(Job(2, 1, ""), [partly, Node(1, "n1", "", {name: {"error": "no answer in 20 s"} for name in host.READS})])
    said = [(fact.get("title"), fact.get("hosts")) for fact in host.judge(with_silent) if fact.kind == "unread" and fact.get("needed")]
    assert ("kernel: could not be read: no answer in 6 s", ["n0"]) in said
    assert [title for title, hosts in said if "n1" in hosts] == ["what this node is and has: could not be read: no answer in 20 s"]


# -- the same of many nodes


def test_what_is_said_of_many_nodes_in_the_same_words_is_said_once_with_their_names() -> None:
    facts = [stop("shm-too-small", f"/dev/shm of n{i} is full", [f"n{i}"], f"on n{i}: df", evidence=[f"n{i}: full"]) for i in range(20)]
    (fact,) = gathered.once(facts)
    assert fact.get("title") == "/dev/shm of n0 is full; the same on n1, n2, n3, n4, n5, n6, n7, n8 and 11 more"
    assert len(fact.get("hosts")) == 20 and fact.host is None and len(fact.get("evidence")) == gathered.QUOTED
    other = stop("shm-too-small", "/dev/shm of n0 is full", ["n0"], "on n0: rm")
    assert len(gathered.once([*facts, other, seen("all")])) == 3


@pytest.mark.parametrize(
    "name, differs",
    [
        *((name, False) for name in ("NCCL_VERSION", "NCCL_HOME", "NCCL_LIB_DIR", "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT")),
        *((name, True) for name in ("NCCL_ALGO", "NCCL_PROTO", "TORCH_NCCL_BLOCKING_WAIT")),
    ],
)
def test_what_images_name_like_a_setting_may_differ(name: str, differs: bool) -> None:
    settings = {"variables": {"NCCL_SOCKET_IFNAME": "eth0", name: "1"}}
    _, findings = compared(node(0), node(1), node(2, settings=settings))
    assert [finding.cause for finding in findings] == ["nccl-env-misconfig"] * differs

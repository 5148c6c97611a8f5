"""How the ranks of an engine share a model: which layouts there are, what crosses nodes in each, and real engines in each of them."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from cpus import environment, within_a_node
from running import Job, until

from ncclcheck import triage, vllm_answers, vllm_failures, vllm_layout, vllm_model, vllm_reference
from ncclcheck.model import Finding, Run, Step
from ncclcheck.rules import _reading as reading
from ncclcheck.vllm_layout import Layout
from ncclcheck.vllm_phases import Phases

T = TypeVar("T", bound=Callable[..., None])


@pytest.mark.parametrize(
    ("ranks", "tp", "pp", "found"),
    [
        (4, None, None, Layout(4, 1)),
        (4, 2, None, Layout(2, 2)),
        (4, None, 4, Layout(1, 4)),
        (16, 8, 2, Layout(8, 2)),
        (1, None, None, Layout(1, 1)),
    ],
)
def test_of_two_numbers_one_follows_from_the_other(ranks: int, tp: int | None, pp: int | None, found: Layout) -> None:
    assert vllm_layout.choose(ranks, tp, pp) == found


@pytest.mark.parametrize(("tp", "pp"), [(3, None), (None, 3), (8, None), (None, 8), (2, 3), (4, 4)])
def test_what_does_not_make_the_ranks_is_refused_with_the_layouts_that_do(tp: int | None, pp: int | None) -> None:
    with pytest.raises(ValueError, match=r"does not make 4 ranks; TP times PP must: --tp 1 --pp 4, --tp 2 --pp 2, --tp 4 --pp 1$"):
        vllm_layout.choose(4, tp, pp)


def test_ranks_of_a_stage_are_adjacent() -> None:
    assert [Layout(2, 2).place(rank) for rank in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]


WORK = vllm_layout.Work(hidden=128, layers=2, vocabulary=256, tokens=10, sampled=3)
STATE, LOGITS = 10 * 128 * 4, 3 * 256 * 4  # bytes


@pytest.mark.parametrize(
    ("layout", "nodes", "sent"),
    [
        (Layout(2), "ab", {"a": 5 * STATE, "b": 5 * STATE}),  # 2 all-reduces for each of 2 layers, and the embedding's
        (Layout(2), "aa", {"a": 0}),
        (Layout(1, 2), "ab", {"a": 2 * STATE, "b": LOGITS}),  # hidden state and residual down, logits up
        (Layout(1, 2), "aa", {"a": 0}),
        (Layout(2, 2), "aabb", {"a": 2 * STATE, "b": 2 * LOGITS}),  # halves of the states from two ranks; the logits from both
        (Layout(2, 2), "abab", {"a": 3 * STATE + 2 * STATE, "b": 3 * STATE + 2 * STATE}),  # both stages span the nodes, no boundary does
        (Layout(4), "aabb", {"a": 5 * STATE, "b": 5 * STATE}),
        (Layout(1, 4), "abba", {"a": 2 * STATE + LOGITS, "b": 2 * STATE}),
    ],
)
def test_what_must_leave_a_node_follows_from_which_pairs_cross_nodes(layout: Layout, nodes: str, sent: dict[str, int]) -> None:
    assert {node: layout.sent_bytes(nodes, node, WORK) for node in sent} == sent


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (1, 3), (3, 4), (8, 16)])
def test_every_stage_has_equally_many_layers(tp: int, pp: int) -> None:
    layers = vllm_model.config(tp, pp)["num_hidden_layers"]
    assert layers >= 2 and layers % pp == 0


def participant(rank: int, tp_rank: int, pp_rank: int) -> dict[str, object]:
    return {"rank": rank, "tp_rank": tp_rank, "pp_rank": pp_rank, "host": f"gpu-0{rank}", "pid": 100, "weights": "aaaa"}


def test_a_rank_in_the_place_of_another_is_noticed() -> None:
    assert vllm_failures.attendance([participant(0, 0, 0), participant(1, 0, 1)], Layout(1, 2)) == []
    (fact,) = vllm_failures.attendance([participant(0, 0, 1), participant(1, 0, 0)], Layout(1, 2))
    assert fact.get("cause") == "world-size-mismatch" and "rank 0 on gpu-00 (pid 100) is number 0 of stage 1" in fact.get("title")


class Engine:
    """What `Requests` needs of an engine: every step gives what it was told to."""

    def __init__(self, *steps: dict[str, list[int]]) -> None:
        self._steps = list(steps)

    def step(self) -> list[Any]:
        arrived = self._steps.pop(0) if self._steps else {}
        return [SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens)]) for name, tokens in arrived.items()]


def requests(*steps: dict[str, list[int]]) -> vllm_answers.Requests:
    found = vllm_answers.Requests(Engine(*steps))
    found.tokens = {"a": [], "b": []}
    return found


def test_tokens_that_arrive_one_by_one_are_in_order_also_where_steps_only_fill_the_pipeline() -> None:
    asked = requests({}, {"a": [7]}, {}, {"a": [7, 8], "b": [5]})
    asked.step()
    asked.step()
    assert (asked.answers, asked.odd) == ([[7, 8], [5]], [])


@pytest.mark.parametrize("second", [[7, 8, 9], [1, 8], [7]], ids=["two at once", "another one before", "none"])
def test_a_step_that_does_not_add_one_token_is_noticed(second: list[int]) -> None:
    asked = requests({"a": [7]}, {"a": second})
    asked.step()
    asked.step()
    assert len(asked.odd) == 1 and asked.odd[0].startswith("request a had 1 tokens")


def test_an_engine_that_gives_no_token_is_not_waited_for_for_ever() -> None:
    with pytest.raises(RuntimeError, match="64 steps without a token"):
        requests().step()


def test_a_phase_begins_with_the_line_that_says_so_and_a_start_never_goes_back() -> None:
    entered: list[str] = []
    log = logging.getLogger("vllm.test")
    log.setLevel(logging.INFO)
    factory = logging.getLogRecordFactory()
    with Phases(entered.append) as phases:
        log.info("world_size=%d rank=%d local_rank=%d distributed_init_method=%s", 2, 0, 0, "env://")
        logging.getLogger("other").warning("Starting to load model /m...")
        log.info("Starting to load model %s...", "/m")
        log.info("world_size=2 rank=0 local_rank=0 distributed_init_method=env://")
    log.info("Loading weights took 0.00 seconds")
    assert entered == ["configuration", "rendezvous", "weights"] == list(phases.seconds)
    assert phases.now == "weights" and logging.getLogRecordFactory() == factory


def test_words_of_an_engine_that_does_not_start_name_the_phase() -> None:
    line = "ValueError: To serve at least one request with the model's max seq len (2048), (1.5 GiB KV cache is needed, which is larger than the"
    (fact,) = vllm_failures.causes([line + " available KV cache memory (0.2 GiB)."], "kv-cache")
    assert fact.get("title").endswith("(vLLM's start was in the phase kv-cache)")


def test_an_operation_with_a_phase_is_said_with_it() -> None:
    assert reading.operation(Step(0, 1, "vllm engine start", phase="rendezvous")) == "vllm engine start, phase rendezvous (#1)"


def test_a_verdict_on_an_engine_that_does_not_come_up_says_how_far_each_rank_came() -> None:
    start = Step(0, 1, "vllm engine start", phase="rendezvous")
    steps = [start, replace(start, rank=1), replace(start, rank=2, phase="weights")]
    found = [Finding("network-unreachable", "no data passes between a and b"), Finding("slow-link", "another")]
    first, second = triage.placed(Run(3, steps=steps), found)
    assert first.title == "no data passes between a and b; vllm engine start was in its phase rendezvous on 2 ranks, weights on rank 2"
    assert second == found[1]
    left = [replace(step, left=2.0) for step in steps]
    assert triage.placed(Run(3, steps=left), found) == found
    named = [Finding("rank-killed", "rank 2 was killed, in vllm engine start, phase weights (#1)")]
    assert triage.placed(Run(3, steps=steps), named) == named
    assert triage.placed(Run(3, steps=steps), []) == []


HOLDS = """
import mmap, socket, subprocess, sys
from ncclcheck import vllm_left
vllm_left.BOUND = 0.3
before = vllm_left.Held.now()
server = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    shared = mmap.mmap(file.fileno(), 4096)
held = vllm_left.Held.now().beyond(before)
shared.close()
print(vllm_left.left(before, held))
print(vllm_left.lingering(before, held))
print([f"process {child.pid}", sys.argv[1], f"port {server.getsockname()[1]}"])
server.close()
child.kill()
child.wait()
open(sys.argv[1]).close()
import os
import re
os.unlink(sys.argv[1])
print(vllm_left.left(before, held) + vllm_left.lingering(before, held))
"""


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_a_process_a_port_and_a_segment_that_are_left_are_named_and_nothing_else(tmp_path: Path) -> None:
    segment = f"/dev/shm/ncclcheck-left-{os.getpid()}"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", HOLDS, segment], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    left, lingering, things, after = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert (len(left), len(lingering)) == (2, 1)
    assert all(found.startswith(thing) for found, thing in zip(left + lingering, things, strict=True))
    assert after == []


def test_a_model_that_is_too_large_for_one_rank_says_so(tmp_path: Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(3 * 2**20)
    assert "(3 MiB) do not fit into the 2 MiB" in vllm_reference.why_none(tmp_path, 2 * 2**20)
    assert "another order of summation" in vllm_reference.why_none(tmp_path, 2**30)


def real(seconds: int) -> Callable[[T], T]:
    """For a test that starts an engine on emulated nodes."""

    def marked(test: T) -> T:
        for mark in (
            pytest.mark.slow,
            pytest.mark.timeout(seconds),
            pytest.mark.skipif(os.geteuid() != 0, reason="it makes network namespaces"),
            pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
        ):
            test = mark(test)
        return test

    return marked


@real(seconds=290)
@pytest.mark.parametrize(
    ("shape", "words", "layout", "backend", "cpu"),
    [
        ("2x1", ("--pp", "2"), "TP=1 PP=2", "gloo", "this CPU"),
        ("2x2", ("--tp", "2"), "TP=2 PP=2", "{within a node} (TP), gloo (PP)", "this CPU"),
        ("2x2", ("--tp", "2"), "TP=2 PP=2", "{within a node} (TP), gloo (PP)", "without AVX-512"),
    ],
    ids=["PP", "TPxPP", "TPxPP without AVX-512"],
)
def test_stages_on_two_nodes_answer_as_one_rank_does_over_the_network(
    shape: str, words: tuple[str, ...], layout: str, backend: str, cpu: str, tmp_path: Path
) -> None:
    job = Job(tmp_path, "probe", "vllm_engine", *words, "--emulate", shape, "--format", "json", env=environment(cpu))
    assert job.wait(280) == 0, job.out + job.err
    report = job.report
    (probe,) = (each for each in report["probes"] if each["name"] == "vllm_engine")
    assert (report["status"], probe["status"], report["findings"]) == ("ready", "pass", [])
    facts = probe["facts"]
    engines = {fact["rank"]: fact["fields"] for fact in facts if fact["kind"] == "engine"}
    assert sorted(engines) == [rank["rank"] for rank in report["ranks"]]
    assert {str(Layout(engine["tensor_parallel"], engine["pipeline_parallel"])) for engine in engines.values()} == {layout}
    assert all(engine["tokens_equal"] and engine["streamed"] and engine["left"] == [] for engine in engines.values())
    backend = backend.replace("{within a node}", within_a_node(cpu))
    assert all(engine["backend"] == backend for engine in engines.values())
    assert f"TP=1 with {layout}" in engines[0]["compared"] and "each alone with joining a running batch" in engines[0]["compared"]
    assert {"spawn", "import", "configuration", "rendezvous", "weights", "kv-cache", "first-token"} <= engines[0]["phase_seconds"].keys()
    traffic = {fact["rank"]: fact["fields"] for fact in facts if fact["kind"] == "traffic"}
    assert len(traffic) == 2 and all(sent["expected_bytes"] > 0 for sent in traffic.values())
    assert all(sent["sent_bytes"] >= sent["expected_bytes"] for sent in traffic.values())
    assert any("pipeline stages after the first" in fact["fields"]["text"] for fact in facts if fact["kind"] == "note")
    assert job.left() == []


@real(seconds=200)
def test_a_single_rank_is_an_engine_too_and_what_its_processes_left_in_their_temporary_folder_is_gone(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    words = ("probe", "vllm_engine", "--emulate", "1x1", "--format", "json")
    job = Job(tmp_path, *words, env={"TMPDIR": str(scratch), "CUDA_VISIBLE_DEVICES": ""})
    try:
        until(lambda: job.announced(0, "vllm engine start"), 150, "the engine's start")
        (environ,) = (Path(f"/proc/{pid}/environ").read_text() for pid in job.ranks().values())
        (theirs,) = (Path(entry.removeprefix("TMPDIR=")) for entry in environ.split("\0") if entry.startswith("TMPDIR="))
        assert theirs.parent == scratch
        (theirs / "of-a-killed-process").mkdir()
        assert job.wait(190) == 0, job.out + job.err
    finally:
        job.kill()
    assert (job.report["status"], job.report["findings"]) == ("ready", [])
    assert list(scratch.iterdir()) == []
    assert job.left() == []


@real(seconds=600)
def test_of_an_engine_that_hangs_behind_a_firewall_while_it_starts_the_phase_is_named(tmp_path: Path) -> None:
    words = ("probe", "vllm_engine", "--pp", "2", "--emulate", "2x1", "--inject", "blocked_ports@rank=1,after=0", "--format", "json")
    for _ in range(3):  # the firewall closes while the ranks go on: now and then after the start has sent its last message
        job = Job(tmp_path, *words)
        assert job.wait(190) == 1, job.out + job.err
        finding = job.report["findings"][0]
        assert finding["cause"] == "blocked-port" and job.left() == []
        if "vllm engine start" in finding["title"]:
            break
    phase = "(rendezvous|groups|weights|kv-cache|compile)"
    assert (said := re.search(rf"was in its phase {phase} on (2 ranks|rank \d, {phase} on rank \d)", finding["title"])), finding["title"]
    assert said[0] in job.report["summary"]

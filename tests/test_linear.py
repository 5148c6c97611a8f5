"""What reading and judging cost grows with what there is to read, not with its square: work is counted, not timed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from drawing import drawings

from ncclcheck import attempts, insufficient, registry
from ncclcheck.evidence import ncclras_json, text
from ncclcheck.evidence._reads import Block, Line
from ncclcheck.model import Evidence, Fact, RankId, Run

LINES = 500  # more than any reader looks ahead by its own bound
STEEPEST = 3.0  # how much more twice as much may cost; of the square it is 4
SLIGHT = 4  # lines looked at for one line, below which nothing is to be said against a reader
BLOCKS = [
    name for name in registry.names("evidence") if any(isinstance(read, Block) for read in getattr(registry.load("evidence", name), "READS", ()))
]


def drawn(name: str) -> list[list[str]]:
    """The texts that a reader's docstring draws, each as its lines."""
    found = (re.findall(r"^log \S+: ?(.*)$", drawing, re.MULTILINE) for drawing in drawings(registry.describe("evidence", name).doc, "Reads"))
    return [lines for lines in found if lines]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Counts the lines that all blocks look ahead at, in a text of these lines."""
    count = 0

    def counting(block: Block) -> Block:
        def read(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
            def counted() -> Iterator[Line]:
                nonlocal count
                for each in following:
                    count += 1
                    yield each

            return block.read(line, counted())

        return Block(block.pattern, read, block.mixed)

    known = text.everything()
    reads = tuple((name, counting(read) if isinstance(read, Block) else read) for name, read in known.reads)
    monkeypatch.setattr(text, "everything", lambda: type(known)(known.automaton, known.owners, reads))

    def of(lines: list[str]) -> int:
        nonlocal count
        count = 0
        facts = list(text.read(io.BytesIO("\n".join(lines).encode()), "a.log"))
        assert not [fact for fact in facts if fact.kind == text.FAILED]
        return count

    return of


@pytest.mark.parametrize("name", BLOCKS)
def test_a_reader_looks_ahead_twice_as_often_in_twice_as_many_of_its_lines(name: str, looked: Callable[[list[str]], int]) -> None:
    for lines in {tuple(piece) for drawing in drawn(name) for piece in (drawing, *([line] for line in drawing))}:
        costs = [looked([*lines] * (size // len(lines))) for size in (LINES, 2 * LINES, 4 * LINES)]
        assert costs[0] <= SLIGHT * LINES or max(costs[1] / costs[0], costs[2] / costs[1]) < STEEPEST, (lines, costs)


def test_a_reader_that_looks_ahead_without_end_gives_up_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
        yield line.fact("seen", {"ahead": sum(1 for _ in following)})

    known = text.everything()
    index = next(number for number, (_, read) in enumerate(known.reads) if "Duplicate GPU" in read.pattern)
    reads = list(known.reads)
    reads[index] = ("greedy", Block(reads[index][1].pattern, greedy, mixed=True))
    monkeypatch.setattr(text, "everything", lambda: type(known)(known.automaton, known.owners, tuple(reads)))
    monkeypatch.setattr(text, "LOOKS", 10_000)
    line = "gpu-04:811:900 [0] misc/x.cc:1 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
    data = "\n".join([*[line] * 1000, "gpu-04:811:900 [0] NCCL INFO NCCL version 2.27.3+cuda12.9"])
    facts = list(text.read(io.BytesIO(data.encode()), "a.log"))
    assert [fact.get("gave_up") for fact in facts if fact.kind == text.FAILED] == ["it had looked ahead too often"]
    assert [fact.source.line for fact in facts if fact.kind == "nccl-version" and fact.source] == [1001]


def steps(work: Callable[[], object]) -> int:
    """Lines of Python that are executed: a number that no load of the machine changes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def communicators(count: int) -> bytes:
    rank = {"rank": 0, "host": "gpu-1", "pid": 7, "cuda_dev": 0, "nvml_dev": 0, "status": {}, "collective_counts": {}}
    each = [{"hash": f"0x{number:016x}", "size": 2, "ranks": [rank], "missing_ranks": []} for number in range(count)]
    return json.dumps({"nccl_version": "2.28.3", "communicators": each}, indent=1).encode()


def test_a_document_of_twice_as_many_communicators_costs_twice_as_much() -> None:
    assert len(list(ncclras_json.document(communicators(50), "ras.json"))) > 50
    costs = [steps(lambda size=size: list(ncclras_json.document(communicators(size), "ras.json"))) for size in (50, 100, 200)]
    assert max(costs[1] / costs[0], costs[2] / costs[1]) < STEEPEST, costs


def fields(at: int) -> dict[str, Any]:
    """What any kind of fact may tell; other things for each number."""
    return {
        "address": f"10.{at >> 16 & 255}.{at >> 8 & 255}.{at & 255}", "addresses": [f"10.0.0.{at % 250}"],
        "answer": "timeout", "busId": f"{at:x}", "by": "NCCL", "changed": ["x"], "code": -9, "completed": at,
        "counts": {at: [at]}, "cudaDev": at % 8, "device": f"mlx5_{at}", "enqueued": at + 1, "errno": 111,
        "expected": 4096, "fields": [], "file": "x", "frames": ["f (a.py:1)"], "gpus": 1, "group": f"g{at}",
        "index": at % 8, "interface": "eth0", "me": at, "message": f"m {at}", "missing": f"[{at}]",
        "mtu": 1500 + at % 2, "name": f"n{at}", "node_rank": at, "nodes": {}, "nproc": 8, "nproc_per_node": 8,
        "nranks": 4096, "numbers": {at: 1}, "op": "ALLREDUCE", "own": f"f{at} (a.py:1)", "peer": at + 1,
        "phase": "COMPLETE", "pids": {}, "port": at, "problem": "mismatch", "ranks": [at],
        "reason": "Connection refused", "seconds": float(at), "seq": at, "size": 4096, "state": "down",
        "there": 5, "thread": "MainThread", "tp": 3, "transport": "NET/IB", "type": f"E{at}Error",
        "value": f"v{at}", "version": f"2.{at}", "visible": "0,1", "where": "", "whole": at,
    }  # fmt: skip


def told(kind: str, count: int) -> Run:
    """A run of 64 ranks of which this many facts of one kind, or of several in turn, are known, no two of them alike, in a file for each rank."""
    facts = [
        Fact(
            kind,
            f"h{at % 64}",
            at % 64,
            at,
            fields(at),
            Evidence(f"h{at % 64}.log", at // 64 + 1, f"line {at}"),
            float(at),
        )
        for at in range(count)
    ]
    return Run(64, {rank: RankId(rank, rank % 8, rank // 8, f"h{rank}", rank) for rank in range(64)}, facts=facts, sources=("h0.log",))


def kinds(source: str) -> list[str]:
    """The kinds of facts that a module speaks of."""
    return sorted(set(re.findall(r'"([a-z][a-z-]{2,30})"', source)))


@pytest.mark.parametrize("rule", [name for name in registry.names("rules") if hasattr(registry.load("rules", name), "check")])
def test_a_rule_costs_twice_as_much_for_twice_as_many_facts_of_one_kind(rule: str) -> None:
    module = registry.load("rules", rule)
    assert module.__file__
    with open(module.__file__, encoding="utf-8") as file:
        spoken = kinds(file.read())
    for kind in (*spoken, *({"no_problem_found": ["reset ended", "joined joined-all", "store-lost ended"]}.get(rule, ()))):
        costs = [steps(lambda count=count, kind=kind: tried(module.check, told_once(kind, count))) for count in (150, 300, 600)]
        assert max(costs[1] / costs[0], costs[2] / costs[1]) < STEEPEST, (kind, costs)


def tried(check: Callable[[Run], object], run: Run) -> None:
    """What a rule costs, though it may fail on facts of a shape that nobody yields (triage reports that as a finding)."""
    with contextlib.suppress(TypeError, ValueError):
        check(run)


@pytest.mark.parametrize("work", [attempts.newest, insufficient.finding])
@pytest.mark.parametrize("kind", ["error", "timeout", "ended", "exit", "retried", "reset", "says"])
def test_what_counts_of_a_run_is_worked_out_once_for_each_fact(work: Callable[[Run], object], kind: str) -> None:
    costs = [steps(lambda count=count: work(told_once(kind, count))) for count in (150, 300, 600)]
    assert max(costs[1] / costs[0], costs[2] / costs[1]) < STEEPEST, costs


RUNS: dict[tuple[str, int], Run] = {}


def told_once(kind: str, count: int) -> Run:
    """The same, made once for all that look at it; what was worked out of it is not kept."""
    made = RUNS.get((kind, count))
    if made is None:
        made = RUNS[kind, count] = told(kind, count)
    return Run(made.world_size, made.ranks, facts=made.facts, sources=made.sources)

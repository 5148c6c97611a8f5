"""What reading and judging cost grows with what there is to read, not with its square: work is counted, not timed."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
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


FIELDS: dict[str, Callable[[int], Any]] = {
    "address": lambda at: f"10.{at >> 16 & 255}.{at >> 8 & 255}.{at & 255}",
    "busId": lambda at: f"{at:x}",
    "by": lambda at: "NCCL",
    "code": lambda at: -9,
    "completed": lambda at: at,
    "counts": lambda at: {at: [at]},
    "cudaDev": lambda at: at % 8,
    "device": lambda at: f"mlx5_{at}",
    "enqueued": lambda at: at + 1,
    "errno": lambda at: 111,
    "expected": lambda at: 4096,
    "file": lambda at: "x",
    "frames": lambda at: ["f (a.py:1)"],
    "group": lambda at: f"g{at}",
    "index": lambda at: at % 8,
    "interface": lambda at: "eth0",
    "me": lambda at: at,
    "message": lambda at: f"m {at}",
    "missing": lambda at: f"[{at}]",
    "mtu": lambda at: 1500 + at % 2,
    "name": lambda at: f"n{at}",
    "nodes": lambda at: {},
    "nranks": lambda at: 4096,
    "numbers": lambda at: {at: 1},
    "op": lambda at: "ALLREDUCE",
    "own": lambda at: f"f{at} (a.py:1)",
    "peer": lambda at: at + 1,
    "phase": lambda at: "COMPLETE",
    "pids": lambda at: {},
    "port": lambda at: at,
    "problem": lambda at: "mismatch",
    "ranks": lambda at: [at],
    "reason": lambda at: "Connection refused",
    "seconds": lambda at: float(at),
    "seq": lambda at: at,
    "size": lambda at: 4096,
    "state": lambda at: "down",
    "there": lambda at: 5,
    "thread": lambda at: "MainThread",
    "transport": lambda at: "NET/IB",
    "type": lambda at: f"E{at}Error",
    "value": lambda at: f"v{at}",
    "version": lambda at: f"2.{at}",
    "where": lambda at: "",
}


def told(kind: str, count: int) -> Run:
    """A run of 64 ranks of which this many facts of one kind are known, no two of them alike, in a file for each rank."""
    facts = [
        Fact(
            kind,
            f"h{at % 64}",
            at % 64,
            at,
            {name: of(at) for name, of in FIELDS.items()},
            Evidence(f"h{at % 64}.log", at // 64 + 1, f"line {at}"),
            float(at),
        )
        for at in range(count)
    ]
    return Run(64, {rank: RankId(rank, rank % 8, rank // 8, f"h{rank}", rank) for rank in range(64)}, facts=facts, sources=("h0.log",))


def kinds(source: str) -> list[str]:
    """The kinds of facts that a module speaks of."""
    return sorted(set(re.findall(r'"([a-z][a-z-]{2,30})"', source)))


def _check(module: Any, kind: str, count: int) -> None:
    module.check(told_once(kind, count))


@pytest.mark.parametrize("rule", [name for name in registry.names("rules") if hasattr(registry.load("rules", name), "check")])
def test_a_rule_costs_twice_as_much_for_twice_as_many_facts_of_one_kind(rule: str) -> None:
    module = registry.load("rules", rule)
    assert module.__file__
    with open(module.__file__, encoding="utf-8") as file:
        spoken = kinds(file.read())
    for kind in spoken:
        try:
            costs = [steps(partial(_check, module, kind, count)) for count in (150, 300, 600)]
        except (TypeError, ValueError):  # these fields are none of such a fact's: it is said as the rule's own failure
            continue
        assert costs[0] < 150 * 30 or max(costs[1] / costs[0], costs[2] / costs[1]) < STEEPEST, (kind, costs)


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

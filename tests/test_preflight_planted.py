"""What is planted on one of two real nodes is named with its cause, on that node and on no other; and healthy nodes are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import planting
import pytest

from ncclcheck.causes import CAUSES
from ncclcheck.model import Fact
from ncclcheck.preflight import interfaces, limits, settings
from ncclcheck.survey import Job, Node

ROOT = Path(planting.__file__).parents[1]
REFUSED = 3
BOUND = 150  # seconds for two nodes to be made and read


@cache
def read(name: str, victim: int) -> list[dict[str, Any]]:
    """What is read of both nodes, node 0 first."""
    script = (
        "import sys, planting\n"
        "from ncclcheck.emulate import EmulationRefused\n"
        "try:\n    sys.exit(planting.main(sys.argv[1], int(sys.argv[2])))\n"
        f"except EmulationRefused as error:\n    print(error, file=sys.stderr)\n    sys.exit({REFUSED})\n"
    )
    search = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(victim)], capture_output=True, text=True, timeout=BOUND, env={**os.environ, "PYTHONPATH": search}
    )
    if done.returncode == REFUSED:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda line: int(line["node_rank"]))


def judged(name: str, victim: int, nproc_per_node: int = 1, model: str | None = None) -> list[list[Fact]]:
    """What is said of each node."""
    job = Job(2, nproc_per_node, "10.201.0.1", model, emulated=True)
    nodes = [Node(**line) for line in read(name, victim)]
    return [[fact for judge in (limits, interfaces, settings) for fact in judge.judge(node, job)] for node in nodes]


def faults(facts: list[Fact]) -> list[Fact]:
    """What is wrong, and what could not be read."""
    return [fact for fact in facts if fact.kind != "note"]


def test_of_two_healthy_nodes_nothing_is_said_but_what_is_worth_knowing() -> None:
    assert [faults(facts) for facts in judged("healthy", 0)] == [[], []]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("name", [*planting.PLANTINGS, *planting.CUT_OFF])
def test_what_is_planted_is_named_on_its_node_alone(name: str, victim: int) -> None:
    planted = {**planting.PLANTINGS, **planting.CUT_OFF}[name]
    said = [faults(facts) for facts in judged(name, victim)]
    assert said[1 - victim] == []
    host = f"node{victim}"
    assert {fact.get("cause") for fact in said[victim]} == {planted.cause}
    for fact in said[victim]:
        assert (fact.host, fact.get("hosts")) == (host, [host])
        assert fact.get("cause") in CAUSES and fact.get("evidence") and fact.get("remedy")
    (fact, *_) = said[victim]
    assert fact.kind == planted.kind
    assert planted.said.format(host=host) in fact.get("title")


@pytest.mark.parametrize(("ranks", "model", "kind"), [(1, None, "degraded"), (2, None, "fail"), (8, None, "fail"), (1, "/models/x", "fail")])
def test_64_mib_of_shared_memory_stop_ranks_that_share_it_and_engines(ranks: int, model: str | None, kind: str) -> None:
    (fact,) = faults(judged("shm-of-64-mib", 1, ranks, model)[1])
    assert (fact.kind, fact.get("cause")) == (kind, "shm-too-small")

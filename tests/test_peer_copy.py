"""Copies between GPUs: what arrives changed, late or not at all is named. CUDA's library is stood in for by one whose GPUs are host memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from machines import faults, node, said, titles

from ncclcheck.collect import host, peer_copy
from ncclcheck.model import Fact
from ncclcheck.preflight.peer_copy import judge
from ncclcheck.survey import Question

SOURCE = Path(__file__).parent / "fixtures" / "cuda_of_memory.c"


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("cuda")
    subprocess.run([compiler, "-shared", "-fPIC", "-Werror", "-Wall", "-o", str(folder / "libcuda.so.1"), str(SOURCE)], check=True)
    return folder


def copied(cuda: Path, goes: str = "", seconds: float = 60.0) -> dict[str, Any]:
    return peer_copy.copies([2, 5], {**os.environ, "LD_LIBRARY_PATH": str(cuda), "CUDA_GOES": goes}, seconds)


def judged(section: dict[str, Any]) -> list[Fact]:
    return said(judge, node(peer_copy=section))


def test_what_arrives_as_it_was_sent_is_no_news(cuda: Path) -> None:
    found = copied(cuda)
    assert found == {"copies": [{"gpus": [2, 5], "result": "ok"}, {"gpus": [5, 2], "result": "ok"}]}
    assert judged(found) == []


def test_one_bit_that_arrives_changed_stops_a_launch(cuda: Path) -> None:
    facts = judged(copied(cuda, "wrong"))
    assert faults(facts) == [("fail", "p2p-broken")] * 2
    assert titles(facts)[0] == "what GPU 2 of gpu-07 sends to GPU 5 by peer access arrives changed"
    assert facts[0].get("devices") == ["gpu-07:GPU 2", "gpu-07:GPU 5"]


def test_a_copy_that_does_not_end_is_named_by_its_gpus(cuda: Path) -> None:
    found = copied(cuda, "hang", seconds=12.0)
    assert found["copies"] == [] and found["hung"]["gpus"] == [2, 5] and peer_copy.LEAST <= found["hung"]["seconds"] <= 12.0
    (fact,) = judged(found)
    assert (fact.kind, fact.get("cause"), fact.get("confidence")) == ("fail", "p2p-broken", 0.7)


def test_a_copy_for_which_too_little_time_is_left_is_not_begun_and_not_called_hung(cuda: Path) -> None:
    env = {**os.environ, "LD_LIBRARY_PATH": str(cuda), "CUDA_GOES": "hang"}
    found = peer_copy.copies([2, 5], env, peer_copy.LEAST)
    assert "hung" not in found
    assert [fact.kind for fact in judged(found)] == ["unread"], found


def test_peer_access_that_is_announced_and_refused_is_named(cuda: Path) -> None:
    facts = judged(copied(cuda, "refused"))
    assert faults(facts) == [("degraded", "p2p-broken")] * 2
    assert "CUDA error 217 (peer access is not supported)" in titles(facts)[0]


def test_gpus_that_announce_no_peer_access_are_not_at_fault(cuda: Path) -> None:
    assert judged(copied(cuda, "apart")) == []


def test_a_cuda_that_does_not_start_leaves_it_unread(cuda: Path, tmp_path: Path) -> None:
    for found in (copied(cuda, "broken"), copied(tmp_path), peer_copy.copies([0, 1], {}, seconds=0.01)):
        assert [fact.kind for fact in judged(found)] == ["unread"], found


def test_neighbours_are_tried_first_and_every_direction_once() -> None:
    pairs = peer_copy._pairs(4)
    assert pairs[:2] == [(0, 1), (1, 0)] and len(pairs) == len(set(pairs)) == 12
    assert [abs(one - other) for one, other in pairs] == [1] * 6 + [2] * 4 + [3] * 2


@pytest.mark.skipif(host.nvidia_present(), reason="this machine has an NVIDIA device")
def test_without_gpus_nothing_is_copied_or_said() -> None:
    found = peer_copy.section(Question())
    assert found == {"copies": [], "skipped": "no GPU"}
    assert judged(found) == []

"""A rank that hangs is asked for its flight recorder through the pipe that torch's monitor thread reads."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import SOON

from ncclcheck import triage
from ncclcheck.collect import recorder
from ncclcheck.model import Fact, RankId, Run

# What torch's monitor thread does: it reads the pipe, and writes the dump when something came.
MONITOR = """
import os, sys
pipe, dump, data = sys.argv[1:]
os.mkfifo(pipe)
asked = os.open(pipe, os.O_RDWR)
print("ready", flush=True)
os.read(asked, 1)
open(dump, "wb").write(bytes.fromhex(data))
"""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dump is waited for, though this machine stands still for a while."""
    monkeypatch.setattr(recorder, "BOUND", SOON)


def entry(name: str, state: str, seq: int, record: int) -> dict[str, Any]:
    return {
        "record_id": record, "pg_id": 0, "process_group": ("0", "default_pg"), "collective_seq_id": seq, "p2p_seq_id": 1, "op_id": seq,
        "profiling_name": f"nccl:{name}", "input_sizes": [[8]], "output_sizes": [[8]], "input_dtypes": ["Float"], "output_dtypes": ["Float"],
        "state": state, "is_p2p": name.startswith(("send", "recv")), "retired": False, "frames": [],
    }  # fmt: skip


def dump(state: str) -> bytes:
    """Of a rank in its 41st collective, after a batch of messages, which torch never marks as completed."""
    entries = [entry("send 0->1", "scheduled", 39, 77), entry("recv 0<-1", "scheduled", 39, 78), entry("all_reduce", state, 41, 80)]
    groups = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    status = {"0": {"last_enqueued_collective": 41, "last_started_collective": 40, "last_completed_collective": 40}}
    return pickle.dumps({"version": "2.10", "pg_config": groups, "pg_status": status, "entries": entries}, protocol=2)


def ask(folder: Path, rank: int, state: str) -> list[Fact]:
    names = recorder.environment(folder)
    pipe = f"{names['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}{rank}.pipe"
    words = [sys.executable, "-c", MONITOR, pipe, f"{names['TORCH_FR_DUMP_TEMP_FILE']}{rank}", dump(state).hex()]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout and monitor.stdout.readline() == b"ready\n"
        found = asyncio.run(recorder.pending(rank, 100 + rank, folder))
        monitor.kill()
    return found


@pytest.mark.parametrize("state", ["scheduled", "started"])
def test_the_oldest_collective_is_told_with_its_state_and_messages_of_a_batch_are_left_out(state: str, tmp_path: Path) -> None:
    (fact,) = ask(tmp_path, 0, state)
    assert (fact.kind, fact.rank, fact.get("state"), fact.get("seq")) == ("recorded", 0, state, 41)
    assert fact.get("what").startswith("all_reduce") and fact.source


def test_the_gpu_on_which_the_collective_has_not_begun_is_the_one_that_is_held(tmp_path: Path) -> None:
    facts = [*ask(tmp_path, 0, "scheduled"), *ask(tmp_path, 1, "started")]
    ranks = {rank: RankId(rank, 0, rank, f"gpu-{rank}", 100 + rank) for rank in (0, 1)}
    best = triage.findings(Run(2, ranks, facts=facts))[0]
    assert (best.cause, best.culprit.ranks, best.culprit.hosts) == ("gpu-kernel-stuck", [0], ["gpu-0"])


def test_a_rank_without_a_recorder_is_not_waited_for(tmp_path: Path) -> None:
    assert asyncio.run(recorder.pending(0, 1, tmp_path)) == []

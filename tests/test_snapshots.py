"""Snapshots and dumps are read as their tools write them: own examples in the readers' docstrings, and real output of this machine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from drawing import drawings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import SOON, until

from ncclcheck import registry
from ncclcheck.collect import processes
from ncclcheck.evidence import _stacks, environment, ncclras_json, pyspy, text
from ncclcheck.evidence._reads import Line
from ncclcheck.model import Fact

READERS = (
    "docker",
    "environment",
    "faulthandler",
    "gdb",
    "infiniband",
    "kernel_log",
    "ncclras",
    "network",
    "nvidia_smi",
    "proc",
    "pyspy",
)
DRAWINGS = [
    pytest.param(drawing, id=f"{reader}-{index}")
    for reader in READERS
    for index, drawing in enumerate(drawings(registry.load("evidence", reader).__doc__ or "", "Reads"))
]
WAITER = """
import queue, sys, threading, time
def the_culprit(batches):
    open(sys.argv[1], "w").close()
    return batches.get()
def train():
    the_culprit(queue.Queue())
threading.Thread(target=lambda: time.sleep(600), daemon=True).start()
train()
"""


def facts(lines: str | list[str], name: str = "a.txt") -> list[Fact]:
    return list(text.lines(lines.splitlines() if isinstance(lines, str) else lines, name))


def said(fact: Fact, name: str) -> str:
    """A field as drawings write it: without blanks."""
    value = getattr(fact, name, None) if name in ("rank", "host", "pid") else None
    return str(fact.get(name) if value is None else value).replace(" ", "_")


@pytest.fixture
def waiter(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = tmp_path / "waiter.py"
    script.write_text(WAITER)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "ready")])
    until(lambda: (tmp_path / "ready").exists(), SOON, "the process at its place")
    until(lambda: (state := processes.read(process.pid)) and state.state == "S", SOON, "the process asleep")
    yield process
    process.kill()
    process.wait()


def py_spy(*arguments: str) -> str:
    program = Path(sys.executable).parent / "py-spy"
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=SOON, check=True).stdout


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_reader_reads_what_it_draws(drawing: str) -> None:
    logs: dict[str, list[str]] = {}
    for file, line in re.findall(r"^log (\S+): ?(.*)$", drawing, re.M):
        logs.setdefault(file, []).append(line)
    found = [fact for file, lines in logs.items() for fact in facts(lines, file)]
    for wanted in re.findall(r"^=> (.*)$", drawing, re.M):
        kind, *pairs = wanted.split()
        fields = dict(pair.split("=", 1) for pair in pairs)
        assert any(fact.kind == kind and all(said(fact, name) == value for name, value in fields.items()) for fact in found), (wanted, found)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_every_fact_quotes_the_line_it_was_read_from(drawing: str) -> None:
    lines = [line for _, line in re.findall(r"^log (\S+): ?(.*)$", drawing, re.M)]
    for fact in facts(lines):
        assert fact.source is not None and lines[fact.source.line - 1] == fact.source.text


@pytest.mark.parametrize("reader", READERS)
def test_every_pattern_of_a_reader_matches_in_one_of_its_drawings(reader: str) -> None:
    module = registry.load("evidence", reader)
    lines = re.findall(r"^    log \S+: ?(.*)$", module.__doc__ or "", re.M)
    assert [read.pattern for read in module.READS if not any(re.search(read.pattern, line) for line in lines)] == []


def test_the_stack_of_a_live_process_is_read_in_each_form_py_spy_writes(waiter: subprocess.Popen[bytes], tmp_path: Path) -> None:
    recording = tmp_path / "stacks.raw"
    py_spy("record", "--idle", "--threads", "--format", "raw", "--duration", "1", "--output", str(recording), "--pid", str(waiter.pid))
    forms = {
        "text": facts(py_spy("dump", "--pid", str(waiter.pid))),
        "locals": facts(py_spy("dump", "--locals", "--pid", str(waiter.pid))),
        "json": facts(py_spy("dump", "--json", "--pid", str(waiter.pid))),
        "one line": facts(json.dumps(json.loads(py_spy("dump", "--json", "--pid", str(waiter.pid))))),
        "recording": list(pyspy.document(recording.read_bytes(), "stacks.raw")),
    }
    assert pyspy.sniff(recording.read_bytes()[:4096], "stacks.raw")
    for form, found in forms.items():
        main = [fact for fact in found if fact.kind == "stack" and fact.get("thread") == "MainThread"]
        assert {fact.get("own").split(" ")[0] for fact in main} == {"the_culprit"}, form
        assert {fact.pid for fact in main} == ({None} if form == "recording" else {waiter.pid}), form
        assert [frame.split(" ")[0] for frame in main[0].get("frames")][-2:] == ["train", "<module>"], form


def test_a_stopped_process_is_seen_in_proc_and_in_ps(waiter: subprocess.Popen[bytes]) -> None:
    os.kill(waiter.pid, signal.SIGSTOP)
    until(lambda: (state := processes.read(waiter.pid)) and state.stopped, SOON, "state T")
    status = Path(f"/proc/{waiter.pid}/status").read_text()
    listing = subprocess.run(["ps", "auxww"], capture_output=True, text=True, timeout=SOON, check=True).stdout
    for shown in (status, listing):
        assert waiter.pid in {fact.pid for fact in facts(shown) if fact.kind == "stopped"}


def test_a_running_process_is_not_called_stopped(waiter: subprocess.Popen[bytes]) -> None:
    found = facts(Path(f"/proc/{waiter.pid}/status").read_text())
    assert [fact.get("state") for fact in found if fact.kind == "state"] == ["S (sleeping)"]
    assert "stopped" not in {fact.kind for fact in found}


def test_a_copied_environment_is_read_although_it_is_no_text() -> None:
    data = b"PATH=/bin\0NCCL_SOCKET_IFNAME=eth5\0WORLD_SIZE=4\0"
    assert environment.sniff(data, "environ") and not environment.sniff(b"\x80\x02}q\0", "dump")
    found = [(fact.kind, fact.get("name"), fact.get("value") or fact.get("size")) for fact in environment.document(data, "environ")]
    assert ("setting", "NCCL_SOCKET_IFNAME", "eth5") in found and ("world", None, 4) in found


@pytest.mark.parametrize(
    "advice",
    [
        "RuntimeError: NCCL communicator was aborted. Set NCCL_DEBUG=INFO for details",
        "[W123] you can run with TORCH_DISTRIBUTED_DEBUG=DETAIL to see more",
        "hint: NCCL_P2P_DISABLE=1 works around broken peer access",
        "node-a:1:2 [0] NCCL INFO NCCL_IB_TIMEOUT is not used",
    ],
)
def test_a_variable_that_a_message_recommends_is_not_taken_for_one_that_is_set(advice: str) -> None:
    assert [fact for fact in facts(advice) if fact.kind == "setting"] == []


def test_ras_json_says_the_same_as_its_text() -> None:
    def rank(number: int, count: int, error: int = 0) -> dict[str, object]:
        counts = {"Broadcast": 1, "AllReduce": count}
        where = {"rank": number, "host": "10.9.0.1", "pid": 500 + number, "cuda_dev": number, "nvml_dev": number}
        return {**where, "status": {"init_state": 0, "async_error": error}, "collective_counts": counts}

    missing = {"rank": 3, "host": "10.9.0.2", "pid": 503, "cuda_dev": 0, "nvml_dev": 0, "status": {"unresponsive": True, "considered_dead": False}}
    comm = {"hash": "0xabc", "size": 4, "ranks_count": 3, "ranks": [rank(0, 9), rank(1, 9), rank(2, 8, 6)], "missing_ranks": [missing]}
    data = json.dumps({"nccl_version": "2.28.9", "communicators_count": 1, "communicators": [comm]}, indent=2).encode()
    assert ncclras_json.sniff(data[:4096], "ras.json")
    found = {fact.get("problem") or fact.kind: fact for fact in ncclras_json.document(data, "ras.json")}
    assert found["mismatch"].get("counts") == {9: [0, 1], 8: [2]} and found["mismatch"].get("ranks") == [2]
    assert found["incomplete"].get("ranks") == [3] and found["ras-missing"].pid == 503
    assert found["error"].get("ranks") == [2] and found["error"].get("error") == "Remote process error"
    lines = data.decode().split("\n")
    assert all(fact.source and lines[fact.source.line - 1] == fact.source.text for fact in found.values())


@pytest.mark.parametrize(
    ("frame", "own"),
    [
        ("load_batch (data.py:88)", True),
        ("step (vllm/v1/engine/core.py:210)", True),
        ("wait (threading.py:359)", False),
        ("all_reduce (torch/distributed/distributed_c10d.py:3075)", False),
        ("step (/opt/venv/lib/python3.12/site-packages/torch/optim/adam.py:10)", False),
        ("get (/usr/lib/python3.12/multiprocessing/queues.py:117)", False),
        ("clock_nanosleep (libc.so.6)", False),
        ("_find_and_load (<frozen importlib._bootstrap>:1360)", False),
    ],
)
def test_a_frame_is_the_users_own_unless_a_library_has_it(frame: str, own: bool) -> None:
    assert _stacks.is_own(frame) is own


def test_a_stack_of_libraries_alone_still_names_a_frame() -> None:
    line = Line("a.txt", 1, "    wait (threading.py:359)", "    wait (threading.py:359)")
    assert _stacks.fact([_stacks.Frame("wait (threading.py:359)", line)], thread="MainThread", by="py-spy").get("own") == "wait (threading.py:359)"


SEEDS = [line for drawing in DRAWINGS for line in re.findall(r"^log \S+: ?(.*)$", str(drawing.values[0]), re.M)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(st.sampled_from(SEEDS), st.text(max_size=60), st.sampled_from(SEEDS).map(lambda seed: seed[: len(seed) // 2])), max_size=30)
)
def test_no_mixture_of_lines_makes_a_reader_fail(lines: list[str]) -> None:
    flat = [re.sub(r"[\r\n]", " ", line) for line in lines]
    for fact in text.read(io.BytesIO("\n".join(flat).encode("utf-8", "replace")), "a.txt"):
        assert fact.source is not None and 1 <= fact.source.line <= len(flat)


@pytest.mark.parametrize(
    "document", [b"[]", b"{", b'{"nccl_version": 1, "communicators": 7}', b'{"communicators": [3, {"ranks": 4, "hash": []}]}', b"\xff\0"]
)
def test_a_document_of_another_shape_gives_no_error(document: bytes) -> None:
    for reader in (ncclras_json, pyspy, environment):
        assert all(isinstance(fact, Fact) for fact in reader.document(document, "a"))


@pytest.mark.timeout(120)
def test_lines_made_to_be_slow_are_read_in_bounded_time() -> None:
    lines = [
        "py-spy " * 9000,
        "- " * 30000 + "rank",
        "#0  " + "a " * 30000,
        "| 0 " + " x" * 30000 + " Off |",
        "NCCL_X=" + "," * 60000,
        "x -x " * 12000 + "NCCL_",
    ]
    assert {fact.kind for fact in facts(lines)} <= {"setting", "last-line"}

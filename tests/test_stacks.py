"""A dump of stacks is read down to the frame that matters, whoever wrote it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck.collect import processes, stacks

WAITER = """
import faulthandler, signal, sys, threading
faulthandler.register(signal.SIGUSR2, file=open(sys.argv[1] + "/rank0.stack", "w"), all_threads=True)
def the_culprit():
    open(sys.argv[1] + "/ready", "w").close()
    threading.Event().wait()
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
the_culprit()
"""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is waited for, though this machine stands still for a while."""
    for bound in ("BOUND", "_ANSWER"):
        monkeypatch.setattr(stacks, bound, SOON)


@pytest.fixture
def waiter(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = tmp_path / "waiter.py"
    script.write_text(WAITER)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    until(lambda: (tmp_path / "ready").exists(), SOON, "the process at its place")
    yield process
    process.kill()
    process.wait()


def test_a_process_that_can_answer_is_asked_politely_and_its_own_frame_is_quoted(waiter: subprocess.Popen[bytes], tmp_path: Path) -> None:
    fact = asyncio.run(stacks.stack(0, waiter.pid, tmp_path, stopped=False))
    assert fact.kind == "stack" and fact.get("by") == "faulthandler"
    assert fact.get("own").startswith("the_culprit ")
    assert fact.source is not None
    assert (tmp_path / "rank0.stack").read_text().split("\n")[fact.source.line - 1].strip() == fact.source.text


def test_a_second_look_quotes_what_was_added(waiter: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asyncio.run(stacks.stack(0, waiter.pid, tmp_path, stopped=False))
    fact = asyncio.run(stacks.stack(0, waiter.pid, tmp_path, stopped=False))
    assert fact.source is not None and fact.source.line > 5
    assert (tmp_path / "rank0.stack").read_text().split("\n")[fact.source.line - 1].strip() == fact.source.text


def test_a_stopped_process_is_read_from_outside(waiter: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.kill(waiter.pid, signal.SIGSTOP)
    until(lambda: (state := processes.read(waiter.pid)) and state.stopped, SOON, "state T")
    fact = asyncio.run(stacks.stack(0, waiter.pid, tmp_path, stopped=True))
    assert fact.kind == "stack" and fact.get("by") == "py-spy"
    assert fact.get("own").startswith("the_culprit ")


def test_a_process_that_is_gone_gives_a_reason_instead_of_a_stack(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    fact = asyncio.run(stacks.stack(0, gone.pid, tmp_path, stopped=False))
    assert fact.kind == "no-stack" and fact.get("reason")


def test_how_a_killed_process_ended_can_be_read_before_its_parent_asks(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "100"])
    child.kill()
    zombie = until(lambda: (state := processes.read(child.pid)) and state.dead and state, SOON, "a zombie")
    assert zombie.exit_code == -9
    child.wait()


def test_a_rank_that_is_asked_for_its_stack_at_its_very_end_still_ends_in_order(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from ncclcheck import rank; rank._settle(Path(sys.argv[1]), 0)"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        until((tmp_path / "rank0.stack").exists, SOON, "a rank that can be asked")
        while process.poll() is None:
            process.send_signal(signal.SIGUSR2)
        assert process.returncode == 0
        (tmp_path / "rank0.stack").unlink()

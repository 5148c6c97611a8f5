"""`ncclcheck bench` with a real server: measured once, found again, and what cannot start is said."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import TwoHosts
from running import Job, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")]
CELLS = ("--emulate", "1x1", "--tp", "1", "--input-len", "32", "--output-len", "64", "--requests", "60")


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts `ncclcheck bench` in one folder; nothing of it outlives the test."""
    started = []
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:  # a short path: engines make sockets there

        def bench(*words: str) -> Job:
            environ = {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": temporary}
            started.append(Job(tmp_path, "bench", *CELLS, "--format", "json", *words, env=environ))
            return started[-1]

        yield bench
        for job in started:
            job.kill()
        assert os.listdir(temporary) == []


@pytest.mark.timeout(600)
def test_a_real_server_is_measured_cell_by_cell_and_what_was_measured_is_not_measured_again(jobs: Callable[..., Job], tmp_path: Path) -> None:
    job = jobs("--concurrency", "1,2")
    first_line = r"bench: 1/2 TP=1, concurrency 1, 32 in, 64 out: [\d.]+ tokens/s"
    until(lambda: re.search(first_line, job.err) or job.process.poll() is not None, 380, "the first cell")
    assert job.process.poll() is None, job.err
    job.process.send_signal(signal.SIGINT)  # in the middle of the second
    assert job.wait(150) == 130, job.err
    first, second = job.report["cells"]
    assert job.report["status"] == "unknown" and "interrupted" in job.report["summary"] and second["result"] is None
    measured: dict[str, Any] = first["result"]
    assert (measured["completed"], measured["failed"], measured["input_tokens"], measured["output_tokens"]) == (60, 0, 60 * 32, 60 * 64)
    assert 0 < measured["ttft"]["p50"] < measured["e2e"]["p50"] <= measured["e2e"]["p99"] <= measured["duration"]
    assert measured["tokens_per_second"] == pytest.approx(60 * 64 / measured["duration"]) and measured["startup"] > 0
    assert not first["kept"] and first["sent"]["at_least"] == 0.0 and first["bound"]["word"]
    assert job.left() == []

    before = sorted(tmp_path.glob("ncclcheck-runs/20*-*-*"))
    again = jobs("--concurrency", "1")
    assert again.wait(200) == 0, again.err
    assert sorted(tmp_path.glob("ncclcheck-runs/20*-*-*")) == before  # no server was started
    (kept,) = again.report["cells"]
    assert kept["kept"] and kept["result"] == measured and "1 of 1 cells were measured before" in again.err


@pytest.mark.timeout(400)
def test_a_server_that_does_not_start_is_a_row_with_the_reason_and_nothing_is_kept_of_it(jobs: Callable[..., Job], tmp_path: Path) -> None:
    job = jobs("--concurrency", "1", "--set", "kv-cache-memory-bytes=1024")
    assert job.wait(300) == 3, job.err
    assert all(cell["result"] is None and "KV cache" in cell["why"] for cell in job.report["cells"])
    assert list(tmp_path.glob("ncclcheck-runs/bench/cell-*")) == [] and job.left() == []


@pytest.mark.timeout(600)
def test_two_hosts_measure_together_and_each_knows_what_was_measured(two_hosts: TwoHosts) -> None:
    words = ["bench", "--tp", "2", "--concurrency", "1", "--input-len", "32", "--output-len", "8", "--requests", "8",
             "--nnodes", "2", "--nproc-per-node", "1", "--master", two_hosts.a.address]  # fmt: skip
    first, second = (
        two_hosts.start(host, *words, "--node-rank", str(rank), "--format", "json", env={"VLLM_HOST_IP": host.address})
        for rank, host in enumerate((two_hosts.a, two_hosts.b))
    )
    assert (first.wait(400), second.wait(60)) == (0, 0), first.err + second.err
    (cell,) = first.report["cells"]
    assert (cell["layout"]["nodes"], cell["result"]["completed"]) == (2, 8) and not first.report["emulated"]
    assert 0 < cell["sent"]["by_collectives"] <= 1  # of all-reduces that were timed between these two hosts
    assert second.out == "" and "bench: 1/1 TP=2, 2 nodes, concurrency 1" in second.err  # the other hears of it, and keeps it, too
    assert len(list(second.folder.glob("ncclcheck-runs/bench/cell-*"))) == 1

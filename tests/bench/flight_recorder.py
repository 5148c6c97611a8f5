"""What a comparison of flight recorders' dumps costs: `ncclcheck triage` against torchfrtrace on the same dumps, in turn, in one run.

python tests/bench/flight_recorder.py [--ranks 256] [--entries 2000] [--alone]      (--alone: without torchfrtrace)
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

STUCK = 5  # this rank is two collectives behind
OPERATIONS = ("all_reduce", "_all_gather_base", "_reduce_scatter_base")
SITES = (
    "/opt/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py",
    "/opt/lib/python3.11/site-packages/torch/distributed/c10d_logger.py",
)
NAMES = {operation: f"nccl:{operation}" for operation in OPERATIONS}
FRAMES = {  # one object for each place, as torch writes them: in the file they are written once and referred to
    operation: [
        {"name": name, "filename": file, "line": line}
        for name, file, line in (
            (operation, SITES[0], 3068),
            ("wrapper", SITES[1], 83),
            ("step", "/job/train.py", 60 + at),
            ("<module>", "/job/train.py", 90),
        )
    ]
    for at, operation in enumerate(OPERATIONS)
}


def dump(rank: int, ranks: int, entries: int) -> dict[str, Any]:
    """A dump as torch 2.9 writes it, of a job in which everybody waits for rank STUCK."""
    last = entries - 2 * (rank == STUCK)
    return {
        "version": "2.10",
        "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": str(list(range(ranks)))}},
        "comm_lib_version": "2.28.9",
        "pg_status": {"0": {"last_enqueued_collective": last, "last_started_collective": -1, "last_completed_collective": entries - 2}},
        "entries": [_entry(at, at < entries - 2) for at in range(last)],
    }


def _entry(at: int, completed: bool) -> dict[str, Any]:
    operation = OPERATIONS[at % len(OPERATIONS)]
    created = 1_795_000_000_000_000_000 + at * 1_000_000
    sizes = {"all_reduce": (4096, 4096), "_all_gather_base": (64, 64 * 4), "_reduce_scatter_base": (64 * 4, 64)}[operation]
    return {
        "frames": [*FRAMES[operation]],
        "record_id": at,
        "pg_id": 0,
        "process_group": ("0", "default_pg"),
        "thread_name": "python3",
        "thread_id": "140614498619712",
        "collective_seq_id": at + 1,
        "p2p_seq_id": 0,
        "op_id": at + 1,
        "profiling_name": NAMES[operation],
        "time_created_ns": created,
        "input_sizes": [[sizes[0]]],
        "input_dtypes": ["Float"],
        "output_sizes": [[sizes[1]]],
        "output_dtypes": ["Float"],
        "state": "completed" if completed else "scheduled",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": created + 500_000 if completed else None,
        "retired": completed,
        "timeout_ms": 600_000,
        "is_p2p": False,
    }


def timed(command: list[str], output: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU of all its processes. Its output goes to a file."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with output.open("wb") as out:
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def weighed(command: list[str]) -> int:
    """The peak in bytes of all its processes' memory, shared pages counted once. A run of its own: looking slows down what is looked at."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, sum(each.memory_full_info().pss for each in (root, *root.children(recursive=True))))
            except psutil.Error:
                continue  # one ended while it was looked at
            time.sleep(0.05)
    return peak


def main() -> None:
    """Print seconds, memory and their ratios, and check that the answer is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--alone", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder, "dumps")
        dumps.mkdir()
        for rank in range(asked.ranks):
            (dumps / f"nccl_trace_rank_{rank}").write_bytes(pickle.dumps(dump(rank, asked.ranks, asked.entries), protocol=2))
        output = Path(folder, "output")
        ours = [sys.executable, "-m", "ncclcheck", "triage", "--format", "json", str(dumps)]
        theirs = [str(Path(sys.executable).parent / "torchfrtrace"), str(dumps), "--prefix", "nccl_trace_rank_"]
        results = {}
        for name, command in (("ncclcheck", ours),) if asked.alone else (("ncclcheck", ours), ("torchfrtrace", theirs)):
            seconds, cpu = timed(command, output)
            results[name] = (seconds, memory := weighed(command))
            print(f"{name:13} {seconds:6.2f} s  {cpu:6.2f} s of CPU  {memory / 2**20:6.0f} MiB")
            if name == "ncclcheck":
                assert json.loads(output.read_bytes())["findings"][0]["culprit"]["ranks"] == [STUCK]
        if not asked.alone:
            (seconds, memory), (their_seconds, their_memory) = results.values()
            print(f"{their_seconds / seconds:.1f} times as fast, {memory / their_memory:.0%} of its memory")


if __name__ == "__main__":
    main()

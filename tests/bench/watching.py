"""What being watched costs: CPU and memory of the agents while a job runs as fast as it can, on two emulated nodes with two ranks each.

python tests/bench/watching.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SECONDS = 20.0


def main() -> None:
    """Print, for each agent, the share of a core and the memory that it took, and the same for a rank."""
    words = [sys.executable, "-m", "ncclcheck", "probe", "training", "--emulate", "2x2", "--budget", f"{SECONDS:g}s"]
    with tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(words, cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[2])}, stdout=subprocess.DEVNULL)
        agents = _await(lambda: [child for child in psutil.Process(job.pid).children() if child.children()], 2)
        ranks = _await(lambda: [child for agent in agents for child in agent.children(recursive=True) if "ncclcheck.rank" in child.cmdline()], 4)
        _await(lambda: ranks if any(b'"training"' in path.read_bytes() for path in Path(folder).rglob("rank0.jsonl")) else [], 4)
        before, began = {process: _cpu(process) for process in agents + ranks}, time.perf_counter()
        memory: dict[psutil.Process, int] = {}
        while time.perf_counter() - began < 0.8 * SECONDS:
            for process in agents:
                memory[process] = max(memory.get(process, 0), process.memory_info().rss)
            time.sleep(0.5)
        took = time.perf_counter() - began
        shares = {process: (_cpu(process) - before[process]) / took for process in agents + ranks}
        for process in agents:
            print(f"agent {process.pid}: {100 * shares[process]:.2f} % of a core, at most {memory[process] / 2**20:.0f} MiB resident")
        watching, working = sum(shares[process] for process in agents), sum(shares[process] for process in ranks)
        print(f"agents / ranks: {100 * watching / working:.2f} % of the CPU time")
        job.wait()


def _cpu(process: psutil.Process) -> float:
    return process.cpu_times().user + process.cpu_times().system


def _await(look, count: int) -> list[psutil.Process]:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 60
    while len(found := look()) < count and time.monotonic() < end:
        time.sleep(0.1)
    return found


if __name__ == "__main__":
    main()

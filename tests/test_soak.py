"""What happens rarely: many random faults, healthy runs on a machine that is busy with other work, and whatever a fuzzer can think of.

The tables go to examples/soak.md.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Job, until
from tabulate import tabulate

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="signals into emulated nodes need root")]

TABLE = Path(__file__).parents[1] / "examples" / "soak.md"
FAULTS = 24
HEALTHY = 30
FUZZED = int(os.environ.get("SOAK_FUZZ_SECONDS", "600"))  # seconds
SEED = int(os.environ.get("SOAK_SEED", "1"))


@pytest.fixture
def busy() -> Iterator[None]:
    """Every core is busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def keep(title: str, text: str) -> None:
    """Replace one section of the table file."""
    sections = dict(part.split("\n", 1) for part in TABLE.read_text().split("\n## ")[1:]) if TABLE.exists() else {}
    sections[title] = f"\n{text}\n"
    body = "".join(f"\n## {name}\n{content.rstrip()}\n" for name, content in sorted(sections.items()))
    TABLE.write_text(f"# Soak\nWritten by `make soak`: random faults and healthy runs, on emulated nodes with 2 cores in all.\n{body}")


def test_random_ranks_killed_and_stopped_at_random_moments_are_always_named(tmp_path: Path) -> None:
    choose = random.Random(SEED)
    rows = []
    for index in range(FAULTS):
        probe, number, victim = choose.choice(["collectives", "bandwidth"]), choose.choice([signal.SIGKILL, signal.SIGSTOP]), choose.randrange(4)
        job = Job(tmp_path / str(index), "probe", probe, "--emulate", "2x2", "--budget", "20s", "--format", "json")
        try:
            until(lambda job=job, victim=victim: job.announced(victim, "init_process_group") or job.announced(victim, "all_reduce"), 90, "work")
            time.sleep(choose.uniform(0.0, 1.5))  # the moment is what is drawn at random
            pid = job.ranks().get(victim)
            if pid is None:
                continue  # it had ended by then
            os.kill(pid, number)
            hit = time.monotonic()
            code = job.wait(30)
            took = time.monotonic() - hit
            best = job.report["findings"][0] if job.report["findings"] else {"cause": "none", "culprit": {"ranks": None}}
            right = best["culprit"]["ranks"] == [victim] and best["cause"] == {9: "rank-killed", 19: "process-stopped"}[number]
            rows.append([probe, number.name, victim, f"{took:.1f}", best["cause"], best["culprit"]["ranks"], right and code == 1, not job.left()])
        finally:
            job.kill()
    head = ["probe", "fault", "victim", "seconds to exit", "cause", "culprit", "right", "clean"]
    seconds = [float(row[3]) for row in rows]
    summary = (
        f"{len(rows)} faults: {sum(row[6] for row in rows)} right, {sum(row[7] for row in rows)} clean; median {statistics.median(seconds):.1f} s"
    )
    keep(
        "Random kills and stops, 2x2",
        f"{summary}, most {max(seconds):.1f} s from the signal to the exit (seed {SEED}).\n\n{tabulate(rows, head, 'github')}",
    )
    assert all(row[6] and row[7] for row in rows), tabulate(rows, head)


def test_healthy_runs_on_a_busy_machine_raise_no_alarm(tmp_path: Path, busy: None) -> None:
    verdicts = []
    for index in range(HEALTHY):
        job = Job(tmp_path / str(index), "probe", "wiring", "collectives", "bandwidth", "--emulate", "2x1", "--budget", "2s", "--format", "json")
        try:
            verdicts.append((job.wait(180), job.report["summary"]))
        finally:
            job.kill()
    alarms = [summary for code, summary in verdicts if code != 0]
    keep("Healthy runs beside a busy loop on every core, 2x1", f"{len(verdicts)} runs, {len(alarms)} false alarms.")
    assert alarms == []


def test_a_fuzzer_finds_no_file_that_breaks_triage(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install -e '.[fuzz]'")
    target = Path(__file__).parent / "fuzz" / "target.py"
    words = [sys.executable, str(target), "--seconds", str(FUZZED), "--keep", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=FUZZED + 300, check=False)
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert done.returncode == 0 and inputs, f"{[path.name for path in tmp_path.glob('found-*')]}\n{done.stderr[-4000:]}"
    keep("Fuzzed", f"{inputs[1]} inputs in {FUZZED} s, nothing found.")

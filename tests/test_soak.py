"""What happens rarely: every fault at random moments, healthy runs on a machine that is busy with other work, and whatever a fuzzer can think of.

The tables go to examples/soak.md.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Job
from tabulate import tabulate

from ncclcheck import registry

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="signals into emulated nodes need root")]

TABLE = Path(__file__).parents[1] / "examples" / "soak.md"
REPEAT = int(os.environ.get("SOAK_REPEAT", "3"))  # times that each fault is planted
HEALTHY = 30
FUZZED = int(os.environ.get("SOAK_FUZZ_SECONDS", "600"))  # seconds
SEED = int(os.environ.get("SOAK_SEED", "1"))
FAULTS, BUSY, FUZZ = "Every fault, 2x2, random victims and moments", "Healthy runs beside a busy loop on every core, 2x2", "Fuzzed"  # sections


@pytest.fixture
def busy() -> Iterator[None]:
    """Every core is busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def keep(title: str, text: str) -> None:
    """Replace one section of the table file; what no test writes any more goes."""
    kept = dict(part.split("\n", 1) for part in TABLE.read_text().split("\n## ")[1:]) if TABLE.exists() else {}
    sections = {name: content for name, content in kept.items() if name in (FAULTS, BUSY, FUZZ)}
    sections[title] = f"\n{text}\n"
    body = "".join(f"\n## {name}\n{content.rstrip()}\n" for name, content in sorted(sections.items()))
    TABLE.write_text(f"# Soak\nWritten by `make soak`: random faults and healthy runs, on emulated nodes with 2 cores in all.\n{body}")


@pytest.mark.timeout(3 * 3600)
def test_every_fault_is_named_wherever_and_whenever_it_strikes(tmp_path: Path) -> None:
    words = ("--emulate", "2x2", "--repeat", str(REPEAT), "--seed", str(SEED), "--format", "json")
    job = Job(tmp_path, "drill", *words)
    try:
        job.wait(3 * 3600)
        report = job.report
    finally:
        job.kill()
    rows = [row for row in report["drill"] if row["status"] != "skip"]
    skipped = sorted({row["fault"] for row in report["drill"] if row["status"] == "skip"})
    network = {name for name in registry.names("faults") if registry.describe("faults", name).get("BLAMES") == "link"}
    seconds = {True: [], False: []}
    for row in rows:
        seconds[row["fault"] in network].append(row["seconds"] if row["seconds"] is not None else float("inf"))
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    right = sum(row["cause_right"] and row["culprit_right"] for row in rows)
    head = ["fault", "victim", "seconds", "cause", "cause right", "culprit right", "clean"]
    table = tabulate([[row[name.replace(" ", "_")] for name in head] for row in rows], head, "github")
    summary = (
        f"{report['summary']} (seed {SEED}, {REPEAT} times each).\nMedian seconds to a named culprit: {medians[False]:.1f}, "
        f"of network faults {medians[True]:.1f}. Skipped: {', '.join(skipped)}."
    )
    keep(FAULTS, f"{summary}\n\n{table}")
    assert all(row["detected"] and row["clean"] for row in rows), table
    assert right >= 0.95 * len(rows) and report["run"]["false_alarms"] == 0, table
    assert medians[False] <= 5 and medians[True] <= 10


def test_healthy_runs_on_a_busy_machine_raise_no_alarm(tmp_path: Path, busy: None) -> None:
    verdicts = []
    for index in range(HEALTHY):
        job = Job(tmp_path / str(index), "probe", "wiring", "collectives", "training", "--emulate", "2x2", "--budget", "3s", "--format", "json")
        try:
            verdicts.append((job.wait(180), job.report["summary"]))
        finally:
            job.kill()
    alarms = [summary for code, summary in verdicts if code != 0]
    keep(BUSY, f"{len(verdicts)} runs, {len(alarms)} false alarms.")
    assert alarms == []


def test_a_fuzzer_finds_no_file_that_breaks_triage(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install -e '.[fuzz]'")
    target = Path(__file__).parent / "fuzz" / "target.py"
    words = [sys.executable, str(target), "--seconds", str(FUZZED), "--keep", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=FUZZED + 300, check=False)
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert done.returncode == 0 and inputs, f"{[path.name for path in tmp_path.glob('found-*')]}\n{done.stderr[-4000:]}"
    keep(FUZZ, f"{inputs[1]} inputs in {FUZZED} s, nothing found.")

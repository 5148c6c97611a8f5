"""Reading ends when its time is up: what was left unread is said, makes the verdict weaker, and costs nothing that was read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import SOON

from ncclcheck import assemble, triage
from ncclcheck.evidence import _bounds, heap, source, text, workers
from ncclcheck.evidence._bounds import Bounds
from ncclcheck.evidence._reads import Block, Line
from ncclcheck.evidence.source import Reading
from ncclcheck.model import Fact, Outcome, Report

LINE = "gpu-04:811:900 [0] misc/x.cc:1 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000\n"
CANCELLED = "slurmstepd: error: *** STEP 99.0 ON gpu-{:04} CANCELLED AT 2026-01-02T10:00:00 ***\n"
OUT_OF_MEMORY = "[rank7]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB.\n"
WELL = "Training completed. Do not forget to share your model on huggingface.co/models =)\n"
ENDLESS = 1 << 35  # bytes of holes: minutes of reading


def endless(path: Path, head: str = "") -> None:
    """A file that takes far longer to read than any test waits."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(head)
        file.truncate(ENDLESS)


def read(folder: Path, bounds: Bounds) -> dict[str, Reading]:
    readings = list(heap.read([str(folder)], bounds=bounds))
    assert len({reading.name for reading in readings}) == len(readings)
    return {reading.name: reading for reading in readings}


def found(reading: Reading) -> bool:
    return any(fact.kind == "says" for fact in reading.facts)


def test_a_source_that_takes_too_long_keeps_what_was_read_of_it_and_costs_the_others_nothing(tmp_path: Path) -> None:
    endless(tmp_path / "a.log", LINE)
    Path(tmp_path, "b.log").write_text(LINE)
    readings = read(tmp_path, Bounds(source=8.0, end=time.monotonic() + SOON))
    assert found(readings["a.log"]) and readings["a.log"].unread and not readings["a.log"].unsafe
    assert "the time for one source was up (8 s); its first" in readings["a.log"].problem and "% of the file" in readings["a.log"].problem
    assert found(readings["b.log"]) and readings["b.log"].problem == ""


def test_a_packed_file_that_expands_without_end_is_read_until_its_time_is_up(tmp_path: Path) -> None:
    with open(tmp_path / "bomb.log.gz", "wb") as file, gzip.open(file, "wb") as packed:
        packed.write(LINE.encode())
        for _ in range(64):
            packed.write(b"step 1: fine\n" * (1 << 16))
    part = Path(tmp_path, "bomb.log.gz").read_bytes()
    Path(tmp_path, "bomb.log.gz").write_bytes(part * 300)  # 16 GB of text
    reading = read(tmp_path, Bounds(source=8.0, end=time.monotonic() + SOON))["bomb.log.gz"]
    assert found(reading) and reading.unread and "the time for one source was up" in reading.problem


def test_what_there_is_no_time_to_begin_is_named_and_makes_nothing_healthy(tmp_path: Path) -> None:
    for number in range(200):
        Path(tmp_path, f"{number:03}.log").write_text(WELL)
    readings = read(tmp_path, Bounds(end=time.monotonic(), total=10.0))
    assert len(readings) == 200 and all(reading.unread for reading in readings.values())
    assert all("the time for all sources was up" in reading.problem for reading in readings.values())
    whole = Reading("well.log", "text", 1, list(text.lines([WELL], "well.log")))
    assert triage.judge(assemble.run([whole])).status is Outcome.HEALTHY
    verdict = triage.judge(assemble.run([whole, *readings.values()]))
    assert verdict.status is Outcome.UNKNOWN and verdict.findings[0].cause == "evidence-unread" and "199 more" in verdict.summary


def test_a_cause_is_less_sure_where_evidence_was_left_unread() -> None:
    told = Reading("a.log", "text", 1, list(text.lines([LINE], "a.log")))
    sure = triage.judge(assemble.run([told])).findings[0]
    verdict = triage.judge(assemble.run([told, Reading("b.log", "not read", problem="the time was up", unread=True)]))
    assert verdict.status is Outcome.PROBLEM and verdict.findings[0].cause == sure.cause
    assert verdict.findings[0].confidence == triage.PARTLY < sure.confidence
    assert "evidence-unread" in {finding.cause for finding in verdict.findings}


def test_what_tells_most_is_read_first_and_of_that_the_newest(tmp_path: Path) -> None:
    for age, name in enumerate(("train.py", "rank1.log", "rank0.log", "data.csv")):
        Path(tmp_path, name).write_text("x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    order = sorted(heap._under([str(tmp_path)]), key=heap._telling)
    assert [each.name for each in order] == ["rank1.log", "rank0.log", "train.py", "data.csv"]


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Makes the reader of NCCL's version do something else."""

    def put(act: Callable[[], object]) -> None:
        def acting(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
            act()
            yield line.fact("acted")

        known = text.everything()
        reads = [("greedy", Block(read.pattern, acting)) if "CCL version" in read.pattern else (name, read) for name, read in known.reads]
        monkeypatch.setattr(text, "everything", lambda: type(known)(known.automaton, known.owners, tuple(reads)))

    return put


def forever() -> None:
    while True:
        pass


def gluttonous() -> None:
    bytearray(4 << 30)


@pytest.mark.parametrize(("act", "why"), [(forever, "it had used 500 ms of processor time"), (gluttonous, "it took too much memory")])
def test_a_reader_that_takes_too_much_loses_its_own_facts_and_not_the_file(
    tmp_path: Path, greedy: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], why: str
) -> None:
    greedy(act)
    monkeypatch.setattr(_bounds, "READER", 0.5)
    version = "gpu-04:811:900 [0] NCCL INFO NCCL version 2.27.3+cuda12.9\n"
    Path(tmp_path, "a.log").write_text(version + version.replace("811", "812") + LINE)
    reading = read(tmp_path, Bounds.of(SOON))["a.log"]
    assert found(reading) and reading.unread and not [fact for fact in reading.facts if fact.kind == "acted"]
    assert reading.problem == f"the reader greedy gave up on line 1, as {why}; the other readers went on"


def test_a_source_whose_reader_cannot_be_interrupted_costs_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = source.read

    def reads(stream: object, name: str, *more: object) -> Reading:
        if name == "a.log":
            forever()
        return real(stream, name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "read", reads)
    monkeypatch.setattr(workers, "GRACE", 0.5)
    for name in ("a.log", "b.log"):
        Path(tmp_path, name).write_text(LINE)
    readings = read(tmp_path, Bounds(source=8.0, end=time.monotonic() + SOON))
    assert "the time for one source was up" in readings["a.log"].problem and readings["a.log"].unread
    assert found(readings["b.log"])


def test_a_line_for_each_of_4096_nodes_hides_no_error_among_them(tmp_path: Path) -> None:
    lines = [CANCELLED.format(number) for number in range(4096)]
    Path(tmp_path, "slurm.out").write_text("".join([*lines[:2000], OUT_OF_MEMORY, *lines[2000:]]))
    report = triaged(tmp_path)
    assert report.status is Outcome.PROBLEM and report.findings[0].cause == "rank-died-oom"
    assert report.sources[0]["problem"] == ""


def test_a_heap_of_which_a_part_was_not_read_is_not_called_healthy(tmp_path: Path) -> None:
    Path(tmp_path, "a.log").write_text(WELL)
    assert triaged(tmp_path).status is Outcome.HEALTHY
    endless(tmp_path / "b.log")
    report = triaged(tmp_path, "--deadline", "3s")
    assert report.status is Outcome.UNKNOWN and report.findings[0].cause == "evidence-unread"
    assert "not wholly read: the time for" in report.summary


def triaged(folder: Path, *options: str) -> Report:
    import msgspec

    done = subprocess.run(
        [sys.executable, "-m", "ncclcheck", "triage", "--format", "json", *options, str(folder)], capture_output=True, timeout=SOON, check=False
    )
    assert done.stdout, done.stderr.decode()
    assert json.loads(done.stdout)
    return msgspec.json.decode(done.stdout, type=Report)

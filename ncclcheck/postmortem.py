"""From paths on the command line to a printed verdict on what lies there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncclcheck import __version__, assemble, ending, printing, report, safe_files
from ncclcheck import triage as rules
from ncclcheck.evidence import heap
from ncclcheck.evidence._archives import printable_name
from ncclcheck.evidence._bounds import Bounds
from ncclcheck.evidence.source import Reading
from ncclcheck.live import Live
from ncclcheck.model import EXIT_CODES, Outcome, Report
from ncclcheck.options import Options, run_id
from ncclcheck.printing import Usage
from ncclcheck.units import bytes_text

SHOWN = 100  # sources between two looks at how many there are
ABOUT_NODES = ("nnodes", "node_rank", "master", "hosts")  # options by which nodes find each other


def triage(paths: Sequence[str], given: Mapping[str, Any]) -> int:
    """Run `ncclcheck triage`; its exit code. `given` holds the command line's options by name. Raises Usage."""
    printing.check(given)
    if given["live"]:
        with _ending():
            return _live(paths, given)
    asked = [f"--{name.replace('_', '-')}" for name in (*ABOUT_NODES, "pid") if given[name] is not None]
    if asked:
        raise Usage(f"{' and '.join(asked)} belong{'s' * (len(asked) == 1)} to --live")
    if not paths:
        raise Usage("say what to read: files, folders, archives, or - for standard input; or --live for the jobs that run here")
    for path in paths:
        if path != "-" and not os.path.lexists(path):
            raise Usage(f"there is no {printable_name(path)!r}")
        if path != "-" and heap.is_pipe(path):
            waiting = f"waiting for what is written into it (at most {heap.WRITER_BOUND:g} s)"
            print(f"ncclcheck: {printable_name(path)!r} is a pipe: {waiting}", file=sys.stderr)
    with _ending():
        return _show(_report(paths, given["deadline"]), given)


def collect(pid: int | None, output: str) -> int:
    """Run `ncclcheck collect`; its exit code. Raises ValueError for a pid that is not there, OSError where nothing can be written."""
    from ncclcheck.collect import bundle  # here: what it needs would slow down reading a page

    live = Live(sys.stderr, enabled=True)
    try:
        with _ending():
            path = bundle.write(Path(output), pid, live.show)
    finally:
        live.close()
    if said := safe_files.exposed(path.parent):
        print(f"ncclcheck: {said}", file=sys.stderr)
    print(path, flush=True)
    return 0


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """While this lasts SIGTERM and SIGHUP end the program in order, with 143 and 129; whatever ends it, no command that was started is left."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ending.asking() if number != signal.SIGINT}  # which Python raises by itself
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if patient := sys.modules.get("ncclcheck.collect.patient"):
            patient.leave()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _live(paths: Sequence[str], given: Mapping[str, Any]) -> int:
    """Look at the jobs that run on this node, or, as one of several, on all of them."""
    if paths:
        raise Usage("--live looks at what runs now: give either it or paths")
    folder = printing.writable(Path(given["run_dir"]))
    if any(given[name] is not None for name in ABOUT_NODES):
        return _with_others(folder, given)
    from ncclcheck.collect import bundle

    live = Live(sys.stderr, enabled=True)
    into = safe_files.folder(folder, run_id(), new=True)
    try:
        bundle.gather(into, given["pid"], live.show)
    except ValueError as error:
        raise Usage(str(error)) from None
    finally:
        live.close()
    result = _report([str(into)], given["deadline"])
    result.run["directory"] = str(into)
    return _show(result, given)


def _with_others(folder: Path, given: Mapping[str, Any]) -> int:
    """The same on every node of a cluster, with one verdict for all."""
    from ncclcheck import session
    from ncclcheck.collect import patient

    options = Options(probes=(), roll_call_timeout=given["roll_call_timeout"], examine=True, examine_pid=given["pid"])
    try:
        return session.take_part(options, folder, {**given, "nproc_per_node": None, "allow_degraded": False}, os.environ)
    finally:
        patient.leave()  # where it was interrupted, this node's bundle was still being made


def _report(paths: Sequence[str], deadline: float) -> Report:
    start = time.perf_counter()
    live = Live(sys.stderr, enabled=True)
    readings: list[Reading] = []

    def progress(name: str, nbytes: int) -> None:
        at = f"; reading {name}, {bytes_text(nbytes)} so far" if name else ""
        live.show(f"read {len(readings)} source{'s' * (len(readings) != 1)}, {time.perf_counter() - start:.0f} s of {deadline:g} s{at}")

    progress("", 0)
    for reading in heap.read(paths, bounds=Bounds.of(deadline), progress=progress):
        readings.append(reading)
        if len(readings) % SHOWN == 0:
            progress("", 0)
    live.show(f"judging what {len(readings)} sources say")
    run = assemble.run(readings)
    verdict = rules.judge(run)
    live.close()
    sources = [{"name": r.name, "kind": r.kind, "bytes": r.nbytes, "problem": r.problem} for r in readings]
    result = Report(
        schema=1,
        status=verdict.status,
        summary=verdict.summary,
        seconds=time.perf_counter() - start,
        findings=verdict.findings,
        emulated=False,
        environment={},
        probes=(),
        nodes=(),
        ranks=list(run.ranks.values()),
        run={"version": __version__, "world_size": run.world_size},
        sources=sources,
    )
    return report.masked(result)


def _show(result: Report, given: Mapping[str, Any]) -> int:
    try:
        printing.show(result, given, sys.stdout)
    except OSError as error:  # a verdict that nobody can read is none
        print(f"ncclcheck: cannot write the result: {error.strerror}", file=sys.stderr)
        return EXIT_CODES[Outcome.UNKNOWN]
    return EXIT_CODES[result.status]

"""One server and its loads, in a run of its own: `python -m ncclcheck.bench.child` reads what to do, takes part as a node, and prints a report."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ncclcheck import ending, interpreter, link
from ncclcheck.model import Report
from ncclcheck.options import Options

MOST_BYTES = 2**20  # of what is asked
BOUND = 120.0  # seconds beyond the deadline of a run in which it must have ended
LOOK = 0.5  # seconds between two looks at what was measured meanwhile
SAID = 400  # last characters of standard error that are quoted


class Asked(msgspec.Struct, frozen=True):
    """What a run is told; `given` are the options of `ncclcheck probe`."""

    probes: list[str]
    probe_options: dict[str, Any]
    given: dict[str, Any]
    link: str = ""
    servers: list[dict[str, Any]] = []  # those that may be started on this node, of all runs


def run(asked: Asked, environ: Mapping[str, str], look: Callable[[], None]) -> tuple[Report | None, str]:
    """Its report; or None, and why there is none. `look` is called while it works. What it started is gone when this returns or raises."""
    with open(os.memfd_create("asked"), "w+b") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(msgspec.json.encode(asked))
        given.flush()  # a token is in it: on no disk, and neither in its arguments nor in its environment
        given.seek(0)
        process = subprocess.Popen(interpreter.module("ncclcheck.bench.child"), stdin=given, stdout=out, stderr=err, env=dict(environ))
        left = float(asked.given["deadline"]) + float(asked.given["roll_call_timeout"]) + BOUND
        try:
            while process.poll() is None and left > 0:
                left -= LOOK
                try:
                    process.wait(LOOK)
                except subprocess.TimeoutExpired:
                    look()
        finally:
            late = process.poll() is None
            if late:
                ending.end(process)
        look()
        out.seek(0)
        err.seek(0)
        text, said = out.read(), err.read().decode("utf-8", "replace").strip()
    if late:
        return None, "it did not end in time"
    try:
        return msgspec.json.decode(text, type=Report), ""
    except msgspec.MsgspecError:
        return None, f"no report, exit code {process.returncode}: {said[-SAID:]}"


def main() -> int:
    """The exit code of the run."""
    from ncclcheck import printing, session

    asked = msgspec.json.decode(sys.stdin.buffer.read(MOST_BYTES), type=Asked)
    given = asked.given
    options = Options(
        probes=asked.probes,
        roll_call_timeout=given["roll_call_timeout"],
        deadline=given["deadline"],
        force=given["force"],
        probe_options=asked.probe_options,
        also_permitted=["bandwidth"],  # node 0 has it run first where nobody has timed the ranks' all-reduces
        servers=asked.servers,
        link=link.parse(asked.link) if asked.link else None,
    )
    try:
        return session.carry_out(options, given, os.environ)
    except printing.Usage as error:
        print(f"ncclcheck: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

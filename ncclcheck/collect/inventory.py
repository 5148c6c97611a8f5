"""Reads what a node is and has, by the collectors that were asked for, each for a bounded time.

`python -m ncclcheck.collect.inventory` reads an `Asked` as JSON from standard input and prints {section: what it read} as one line of JSON.
It runs as a child of the agent: a driver or a file system that hangs holds up this process only.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ncclcheck import open_files, parent
from ncclcheck.collect import patient
from ncclcheck.plain import plain
from ncclcheck.survey import Question, Section

BOUND = 9.0  # seconds for all sections, which are read at the same time, but for those in AFTER
PACKAGE = "ncclcheck.collect"
AFTER = {"peer_copy": "devices"}  # who reads what another would change: copies hold the GPUs whose holders are looked for


@dataclass(frozen=True, slots=True)
class Asked:
    """The question, and the names of the collectors."""

    question: Question
    sections: Sequence[str]


def read(asked: Asked, seconds: float = BOUND, package: str = PACKAGE) -> dict[str, Section]:
    """Every section that was asked for; {"error": why} stands for one that could not be read, or not in time."""
    done: queue.SimpleQueue[tuple[str, Section]] = queue.SimpleQueue()
    ended = {name: threading.Event() for name in asked.sections}

    def work(name: str) -> None:
        if before := ended.get(AFTER.get(name, "")):
            before.wait()
        done.put((name, _section(package, name, asked.question)))
        ended[name].set()

    for name in asked.sections:
        threading.Thread(target=work, args=(name,), daemon=True).start()
    until = time.monotonic() + seconds
    found: dict[str, Section] = {}
    while len(found) < len(set(asked.sections)):
        try:
            name, section = done.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        found[name] = section
    return {name: found.get(name, {"error": f"no answer in {seconds:g} s"}) for name in asked.sections}


def _section(package: str, name: str, question: Question) -> Section:
    try:
        section: Mapping[str, Any] = importlib.import_module(f"{package}.{name}").section(question)
        told: dict[str, Any] = plain(section)
        msgspec.json.encode(told)
    except Exception as error:  # a collector meets drivers, libraries and files of every kind
        return {"error": plain(f"{type(error).__name__}: {error}")}
    return told


def main() -> None:
    """Never returns: threads that hang are left behind, and whatever commands they run are ended."""
    parent.follow()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no part of the answer
    line = msgspec.json.encode(read(msgspec.json.decode(sys.stdin.buffer.read(), type=Asked))) + b"\n"
    patient.leave()
    while line:
        line = line[os.write(answer, line) :]
    os._exit(0)


if __name__ == "__main__":
    open_files.as_given()
    main()

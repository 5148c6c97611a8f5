"""Reads what Python's faulthandler prints: the stacks of all threads, and the signal that a process dies of.

It prints the main thread last; `Fatal Python error: Bus error` and its like also give a fact of kind "exit".

Reads
    log a.log: Fatal Python error: Bus error
    log a.log:
    log a.log: Thread 0x00007fb4c8ff9700 (most recent call first):
    log a.log:   File "/usr/lib/python3.12/threading.py", line 359 in wait
    log a.log:
    log a.log: Current thread 0x00007fb4f0c14740 (most recent call first):
    log a.log:   File "/srv/job/data.py", line 88 in load_batch
    log a.log:   File "/srv/job/train.py", line 12 in <module>
    => exit code=-7
    => stack thread=MainThread own=load_batch_(job/data.py:88)
    => stack thread=0x00007fb4c8ff9700
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ncclcheck.evidence import _stacks
from ncclcheck.evidence._reads import Block, Line
from ncclcheck.evidence._stacks import MAIN, Frame
from ncclcheck.model import Fact

_THREAD = r"(?:Current thread|Thread) (?P<thread>0x[0-9a-fA-F]+)(?: \[(?P<name>[^\]]*)\])? \(most recent call first\):"
_FATAL = r"Fatal Python error: (?P<what>Segmentation fault|Bus error|Aborted|Illegal instruction|Floating(?: |-)point exception)"
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')
_SIGNALS = {"Segmentation fault": 11, "Bus error": 7, "Aborted": 6, "Illegal instruction": 4}


def _fatal(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_FATAL, line.text):
        yield line.fact("exit", {"code": -_SIGNALS.get(match["what"], 8), "what": match["what"]})


def _thread(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(_THREAD, line.text)
    frames: list[Frame] = []
    last = True
    for each in following:
        if re.search(_THREAD, each.text):
            last = False
            break
        if frame := _FRAME.match(each.body):
            frames.append(Frame(f"{frame['name']} ({'/'.join(PurePosixPath(frame['file']).parts[-_depth(frame['file']) :])}:{frame['line']})", each))
        elif frames and each.body.strip():
            break
    if match and frames:
        yield _stacks.fact(frames, thread=MAIN if last else match["name"] or match["thread"], by="faulthandler")


def _depth(file: str) -> int:
    """How much of a path is kept: two parts, or all below the folder of installed or standard modules, by which it is known."""
    parts = PurePosixPath(file).parts
    roots = [i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages") or re.fullmatch(r"python3\.\d+", part)]
    return min(len(parts) - roots[-1] - 1 if roots else 2, len(parts))


READS = (Block(_THREAD, _thread, mixed=True), Block(_FATAL, _fatal))

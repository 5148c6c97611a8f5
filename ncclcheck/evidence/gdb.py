"""Reads gdb's backtraces: `bt`, `thread apply all bt`, `py-bt`, gstack and pstack.

Each thread gives a fact of kind "stack"; the first is the main one, and its LWP is the process.

Reads
    log a.txt: Thread 2 (Thread 0x7f2b1e3fc640 (LWP 5120) "pt_nccl_watchdg"):
    log a.txt: #0  0x00007f2ba0e2ef3c in pthread_cond_timedwait () from /lib/x86_64-linux-gnu/libc.so.6
    log a.txt:
    log a.txt: Thread 1 (Thread 0x7f2ba1c4a740 (LWP 5110) "python"):
    log a.txt: #0  0x00007f2ba0eb5b4f in poll () from /lib/x86_64-linux-gnu/libc.so.6
    log a.txt: #1  0x00007f2b6f0a2b1d in ncclSocketConnect (sock=0x55) at misc/socket.cc:512
    => stack thread=pt_nccl_watchdg
    => stack pid=5110 thread=MainThread

Reads
    log a.txt: (gdb) bt
    log a.txt: #0  0x00007f2ba0eb5b4f in poll () from /lib/x86_64-linux-gnu/libc.so.6
    log a.txt: #1  Frame 0x55d1, for file /srv/job/data.py, line 88, in load_batch (self=<Loader at remote 0x7f>)
    => stack own=load_batch_(job/data.py:88)

Reads
    log a.txt: #0  0x00007f2ba0eb5b4f in poll () from /lib/x86_64-linux-gnu/libc.so.6
    log a.txt: #1  0x00007f2b6f0a2b1d in cuStreamSynchronize () from /lib/x86_64-linux-gnu/libcuda.so.1
    => stack by=gdb

Reads
    log a.txt: Traceback (most recent call first):
    log a.txt:   <built-in method acquire of _thread.lock object at remote 0x7f2b>
    log a.txt:   File "/srv/job/data.py", line 88, in load_batch
    => stack own=load_batch_(job/data.py:88)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePosixPath

from ncclcheck.evidence import _stacks
from ncclcheck.evidence._reads import Block, Line
from ncclcheck.evidence._stacks import MAIN, Frame
from ncclcheck.model import Fact

_THREAD = r"^\s*Thread (?P<number>\d+) \((?:Thread 0x[0-9a-f]+ )?\(?LWP (?P<lwp>\d+)\)?(?: \"(?P<name>[^\"]*)\")?"
_FIRST = r"^\s*#0  \S"
_ASKED = r"\(gdb\) (?:bt|where|backtrace)\b"
_PYTHON = r"Traceback \(most recent call first\):"  # py-bt
_FRAME = re.compile(r"^\s*#\d+\s+(?:0x[0-9a-f]+ in )?(?P<function>[\w:~<>.@?*, ]{1,200}?)\s*\([^)]*\).*?(?: (?:from|at) (?P<file>\S+))?$")
_PYTHON_FRAME = re.compile(
    r'(?:for file (?P<file>[^,]+), line (?P<line>\d+), in (?P<name>\S+)|^\s*File "(?P<file2>[^"]+)", line (?P<line2>\d+), in (?P<name2>\S+))'
)


def _thread(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    heading = re.search(_THREAD, line.body)
    frames = list(_frames(following))
    if heading and frames:
        main = heading["number"] == "1"
        pid = int(heading["lwp"]) if main else None
        yield _stacks.fact(frames, thread=MAIN if main else heading["name"] or heading["lwp"], by="gdb", pid=pid)


def _bare(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """A backtrace that stands alone, without a thread's heading above it."""
    frames = list(_frames(chain([line], following))) if line.number == 1 else []
    if frames:
        yield _stacks.fact(frames, thread="", by="gdb")


def _asked(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    frames = list(_frames(following))
    if frames:
        yield _stacks.fact(frames, thread="", by="gdb")


def _frames(lines: Iterator[Line]) -> Iterator[Frame]:
    """The frames up to the next thread; lines that continue one are passed over."""
    seen = False
    for line in lines:
        if re.search(_THREAD, line.body) or (seen and not line.body.strip()):
            return
        if python := _PYTHON_FRAME.search(line.body):
            file, number, name = (python["file"] or python["file2"], python["line"] or python["line2"], python["name"] or python["name2"])
            yield Frame(f"{name} ({'/'.join(PurePosixPath(file).parts[-2:])}:{number})", line)
            seen = True
        elif native := _FRAME.match(line.body):
            yield Frame(f"{native['function'].strip()} ({PurePosixPath(native['file'] or '??').name})", line)
            seen = True


READS = (Block(_THREAD, _thread), Block(_FIRST, _bare), Block(_ASKED, _asked), Block(_PYTHON, _asked))

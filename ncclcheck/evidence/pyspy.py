"""Reads py-spy's dumps: text of one or many processes, `--json`, and stacks under headings that people write above them.

Each thread gives a fact of kind "stack": frames innermost first as `function (file:line)`, `own` (the first frame that
is the user's), `thread`. The process is told by the `Process` line, or else by the main thread, whose number it is.
Of a recording (`py-spy record -f raw`) each thread's most sampled stack counts.

Reads
    log a.txt: Process 4211: python train.py
    log a.txt: Python v3.12.3 (/usr/bin/python3.12)
    log a.txt: Thread 4211 (idle): "MainThread"
    log a.txt:     wait (threading.py:327)
    log a.txt:     load_batch (data.py:88)
    log a.txt:         Arguments:
    log a.txt:             index: 7
    log a.txt:     <module> (train.py:12)
    => process pid=4211
    => stack pid=4211 thread=MainThread

Reads
    log a.txt: Thread 0x7F21AC0B5740 (active+gil): "MainThread"
    log a.txt:     load_batch (data.py:88)
    => stack thread=MainThread

Reads
    log a.txt: py-spy TP0, TP1:
    log a.txt:     broadcast (torch/distributed/distributed_c10d.py:2974)
    log a.txt:     step (loop.py:19)
    => stack rank=0
    => stack rank=1

Reads
    log a.txt: === rank 3 (node-b) ===
    log a.txt: Thread 977 (active): "MainThread"
    log a.txt:     step (loop.py:19)
    => stack rank=3 host=node-b pid=977

Reads
    log a.txt: $ ssh node-b py-spy dump --pid 4211
    log a.txt: Thread 4211 (active): "MainThread"
    log a.txt:     step (loop.py:19)
    => stack host=node-b pid=4211

Reads
    log a.txt: ==> stacks/node-b.rank3.txt <==
    log a.txt: Thread 4211 (active): "MainThread"
    log a.txt:     step (loop.py:19)
    => stack rank=3 host=node-b pid=4211

Reads
    log a.json:     "pid": 4211,
    log a.json:     "thread_id": 140179213941632,
    log a.json:     "thread_name": "MainThread",
    log a.json:     "os_thread_id": 4211,
    log a.json:     "frames": [
    log a.json:         "name": "step",
    log a.json:         "filename": "/srv/job/loop.py",
    log a.json:         "short_filename": "loop.py",
    log a.json:         "line": 19,
    => stack pid=4211 thread=MainThread
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

from ncclcheck.evidence import _stacks, places
from ncclcheck.evidence._reads import Block, Line, Place
from ncclcheck.evidence._stacks import MAIN, Frame
from ncclcheck.model import Fact

_PROCESS = r"^\s*Process (?P<pid>\d+): (?P<command>\S.*)"
_THREAD = r"Thread (?P<tid>(?:0x)?[0-9A-Fa-f]+)(?:/0x[0-9A-Fa-f]+)? \((?:idle|active)(?:\+gil)?\)(?:: \"(?P<name>[^\"]*)\")?"
_RANKS = r"(?:[Rr]ank|RANK|TP|DP|PP|EP|[Ww]orker)[ _#-]?(\d+)"
_HEADING = rf"py-spy\b[^:;(]{{0,40}}?\b{_RANKS}"
_RULED = r"^[\W_]*(?:= rank|= Rank|= RANK|= TP|# rank|# Rank|-- rank|-- Rank|\* rank|\* Rank) ?\d+\b[^\]:]{0,60}(?:[\W_]{2,}|[:)]|stack[^:]{0,20}:)?$"
_FILE = r"==> (?P<file>\S+) <=="  # as head and tail put it
_COMMAND = r"py-spy dump\b[^|;]{0,200}(?:-p|--pid)[ =]?(?P<pid>\d+)"
_FRAME = re.compile(r"^(?P<indent>\s*)(?P<frame>[^\s#|][^|]{0,300}? \([^()\s][^()]{0,300}?(?P<number>:\d+)?\))\s*$")
_LOCALS = re.compile(r"^\s+(?:Arguments|Locals):$|^\s{8,}\S+: ")
_HOST = re.compile(
    r"\bssh (?:-\S+ )*(?:\w+@)?(?P<ssh>[\w.-]+)|\bexec (?:-\S+ )*(?P<pod>[\w.-]+)"
    r"|\((?P<host>[A-Za-z][\w.-]*[\d-][\w.-]*)\)|\bon (?:host |node )?(?P<on>[\w.-]*\d[\w.-]*)"
)
_PAIR = re.compile(r'"(?P<key>\w+)"\s*:\s*(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<number>\d+))')
_SAMPLED = re.compile(rb"^(?:process \d+[^;\n]*;)?(?:thread \([^;\n]*;)?[^;\n]+ \([^;()\n]+:\d+\)(?:;[^;\n]+)* \d+\r?$", re.M)

READS_DOCUMENT = True


def sniff(head: bytes, name: str) -> bool:
    """Whether this begins as `py-spy record -f raw` writes."""
    first = head.partition(b"\n")[0]
    return b";" in first and _SAMPLED.match(first) is not None


def document(data: bytes, name: str) -> Iterator[Fact]:
    """The most sampled stack of each thread of a recording."""
    best: dict[tuple[int | None, str], tuple[int, Fact]] = {}
    for number, text in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        stack, _, samples = text.rstrip("\r").rpartition(" ")
        pieces = stack.split(";")
        pid, thread = None, ""
        while pieces and (match := re.match(r"(process|thread) \(?(\d+)\)?:? ?(.*)", pieces[0])):
            pieces.pop(0)
            if match[1] == "process":
                pid = int(match[2])
            else:
                thread = match[3]
        frames = [piece for piece in pieces if _FRAME.match(piece)]
        if not frames or not samples.isdigit() or len(samples) > 9:
            continue
        thread = thread or (MAIN if pieces[0].startswith("<module>") else "")
        line = Line(name, number, text, text, Place())
        found = _stacks.fact([Frame(frame, line) for frame in reversed(frames)], thread=thread, by="py-spy", pid=pid)
        if int(samples) > best.get((pid, thread), (0, None))[0]:
            best[pid, thread] = int(samples), found
    return iter([fact for _, fact in best.values()])


def _process(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(_PROCESS, line.body)
    if not match:
        return
    following = _until(following, _PROCESS)
    near = [each for _, each in zip(range(4), following, strict=False)]
    if not any(re.search(_THREAD, each.body) or each.body.startswith("Python v") for each in near):
        return
    yield line.fact("process", {"command": match["command"]}, pid=int(match["pid"]))
    yield from _threads(chain(near, following), pid=int(match["pid"]))


def _thread(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    yield from _threads(_until(chain([line], following), _PROCESS), only_first=True)


def _headed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """Stacks below a line that names ranks, a host or a pid."""
    ranks: list[int | None] = [int(word) for word in re.findall(_RANKS, line.body)] or [None]
    command = re.search(_COMMAND, line.body)
    host = next((value for match in _HOST.finditer(line.body) for value in match.groups() if value), None)
    if file := re.search(_FILE, line.body):
        named = places.of_name(file["file"])
        ranks, host = [named.rank], named.host
    below = list(_threads(_until(following, _HEADING, _RULED, _COMMAND, _FILE), pid=int(command["pid"]) if command else None, host=host))
    for rank in ranks:
        for fact in below:
            yield Fact(fact.kind, fact.host, rank if rank is not None else fact.rank, fact.pid, fact.fields, fact.source, fact.time)


def _threads(lines: Iterable[Line], pid: int | None = None, host: str | None = None, only_first: bool = False) -> Iterator[Fact]:
    """The stacks in consecutive lines; the first thread without a heading of its own is taken for the main one."""
    frames: list[Frame] = []
    name, tid, threads, indent = MAIN, "", 0, 0
    misses = 0
    for line in lines:
        if thread := re.search(_THREAD, line.body):
            if frames:
                yield _fact(frames, name, tid, pid, host)
            threads += 1
            if only_first and threads > 1:
                return
            frames, name, tid = [], thread["name"] if thread["name"] is not None else thread["tid"], thread["tid"]
        elif line.body.startswith("Python v"):
            continue
        elif process := re.search(_PROCESS, line.body):
            pid = int(process["pid"])
        elif (match := _FRAME.match(line.body)) and (match["number"] or threads) and (not frames or len(match["indent"]) <= indent):
            indent = len(match["indent"]) if not frames else indent
            frames.append(Frame(match["frame"], line))
        elif not line.body.strip() or _LOCALS.match(line.body) or (frames and line.body.startswith(" " * (indent + 4))):
            continue
        else:
            misses += 1
            if frames or misses > 2:
                break
    if frames:
        yield _fact(frames, name, tid, pid, host)


def _fact(frames: list[Frame], name: str, tid: str, pid: int | None, host: str | None) -> Fact:
    if pid is None and name == MAIN and tid.isdigit():
        pid = int(tid)
    return _stacks.fact(frames, thread=name, by="py-spy", pid=pid, host=host)


def _json(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """One thread of `--json`; pid is its first key. A document in one line holds many."""
    pid, name, frames, function, file = None, "", list[Frame](), "", ""
    first = True
    for each in chain([line], following):
        for match in _PAIR.finditer(each.text):
            key, text, number = match["key"], match["text"], match["number"]
            if key == "pid" and number:
                if frames and pid is not None:
                    yield _stacks.fact(frames, thread=name, by="py-spy", pid=pid)
                if pid is not None and each is not line:
                    return
                pid, name, frames, first = int(number), "", [], True
            elif first and key != "thread_id":
                return  # another document that has pids
            elif key == "thread_name":
                name = text or ""
            elif key == "name":
                function = text or ""
            elif key in ("short_filename", "filename"):
                file = text or ""
            elif key == "line" and number:
                frames.append(Frame(f"{function} ({file}:{number})", each))
            first = False if key != "pid" else first
    if frames and pid is not None:
        yield _stacks.fact(frames, thread=name, by="py-spy", pid=pid)


def _until(lines: Iterable[Line], *patterns: str) -> Iterator[Line]:
    return takewhile(lambda line: not any(re.search(pattern, line.body) for pattern in patterns), lines)


READS = (
    Block(_PROCESS, _process),
    Block(_THREAD, _thread),
    Block(_HEADING, _headed),
    Block(_RULED, _headed),
    Block(_COMMAND, _headed),
    Block(_FILE, _headed),
    Block(r'"pid"\s*:\s*\d', _json),
)

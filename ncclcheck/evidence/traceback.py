r"""Python tracebacks in a log, with or without prefixes, and C++ errors that ended a process: the error, and where it was raised.

Reads
    log a.log: [rank2]: Traceback (most recent call last):
    log a.log: [rank2]:   File "/home/me/train.py", line 45, in step
    log a.log: [rank2]:     raise ValueError("bad shard")
    log a.log: [rank2]: ValueError: bad shard
    => error type=ValueError message=bad shard where=step (train.py:45)

Reads
    log a.log: (Worker_TP1 pid=71) ERROR 01-02 10:00:00 [multiproc_executor.py:953] Traceback (most recent call last):
    log a.log: (Worker_TP1 pid=71) ERROR 01-02 10:00:00 [multiproc_executor.py:953]   File "/opt/vllm/v1/worker.py", line 7, in load
    log a.log: (Worker_TP1 pid=71) ERROR 01-02 10:00:00 [multiproc_executor.py:953] KeyError: 'q_proj'
    => error type=KeyError message='q_proj' where=load (worker.py:7)

Reads
    log a.log: terminate called after throwing an instance of 'c10::Error'
    log a.log:   what():  CUDA error: an illegal memory access was encountered
    => error type=c10::Error message=CUDA error: an illegal memory access was encountered

Reads
    log a.log: RuntimeError: Engine core initialization failed. See root cause above.
    log a.log: Fatal Python error: Segmentation fault
    => error-line type=RuntimeError message=Engine core initialization failed. See root cause above.
    => error type=Fatal Python error message=Segmentation fault
"""

import re
from collections.abc import Iterable, Iterator

from ncclcheck.evidence._reads import Block, Line
from ncclcheck.model import Evidence, Fact

_START = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*(?:\| )?File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$')
_NAME = (
    r"(?:\w{1,60}\.){0,12}[A-Z_]\w{0,80}?(?:Error|Exception|Interrupt|Exit|Warning|Timeout|Empty|Full|Failure|Fault|Closed)\w{0,40}(?:\(\w{1,80}\))?"
)
_ERROR = re.compile(rf"^\s{{0,8}}(?P<type>{_NAME}|(?:\w{{1,60}}\.){{1,12}}[A-Z]\w{{0,80}}): ?(?P<message>.*)$|^(?P<bare>{_NAME})$")
_SAID = re.compile(rf"(?:^|[\s\]:|])(?P<type>{_NAME}): (?P<message>\S.*)$")
_LOGGED = re.compile(r"^\[?[\w.]+\.py:\d+\]?:?\s|^\[[\w.]+\.py:\d+\]$")  # what a Python logger puts before each line
_HANDLED = re.compile(r"\b(?:WARNING|WARN|INFO|DEBUG)\b")
_MORE = ("During handling of", "The above exception was")
MOST_LINES = 400  # of one traceback


def read(lines: Iterable[str], file: str) -> Iterator[Fact]:
    """A fact of kind "traceback" (type, message, where) for each traceback of one process, quoting its last line."""
    where, inside = "", False
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\n")
        if line.startswith(_START):
            where, inside = "", True
        elif inside and (frame := _FRAME.match(line)):
            where = f"{frame['name']} ({frame['file']}:{frame['line']})"
        elif inside and (error := _ERROR.match(line)):
            inside = False
            kind = error["type"] or error["bare"]
            yield Fact("traceback", fields={"type": kind, "message": error["message"] or "", "where": where}, source=Evidence(file, number, line))


def _traceback(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """The error at the end of a traceback, told from the lines of other processes by their prefixes.

    A traceback logged as a warning was handled, and one that starts in `__del__` ended nothing.
    """
    if _HANDLED.search(line.text.partition(_START)[0]):
        return
    where, first = "", ""
    for _, other in zip(range(MOST_LINES), following, strict=False):
        if _another(line, other):
            continue
        body = _bare(other)
        if body.endswith(_START) or body.startswith(_MORE):
            return
        if frame := _FRAME.match(body):
            where = f"{frame['name']} ({frame['file'].rpartition('/')[2]}:{frame['line']})"
            first = first or frame["name"]
        elif error := _ERROR.match(body) or _ERROR.match(other.text):
            if first != "__del__":
                fields = {"type": error["type"] or error["bare"], "message": error["message"] or "", "where": where}
                yield other.fact("error", fields, rank=line.place.rank, host=line.place.host, pid=line.place.pid)
            return


def _another(line: Line, other: Line) -> bool:
    """Whether the other line is by another process, as far as the two say who speaks."""
    mine = (line.place.rank, line.place.pid, line.place.local)
    its = (other.place.rank, other.place.pid, other.place.local)
    if not any(name is not None for name in mine):
        return any(name is not None for name in its)
    return any(one is not None and two is not None and one != two for one, two in zip(mine, its, strict=True))


def _bare(line: Line) -> str:
    return _LOGGED.sub("", line.body, count=1)


def _alone(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """A line that ends a traceback, wherever it stands: all that a report shows of many errors."""
    body = _bare(line)
    error = _ERROR.match(body) or _ERROR.match(line.text)
    if error and error["message"] and not _HANDLED.search(line.text.partition(error["type"])[0]):
        yield line.fact("error-line", {"type": error["type"], "message": error["message"], "where": ""})
    elif not error and (said := _SAID.search(body)) and re.search(r"\b(?:ERROR|CRITICAL|FATAL|error)\b", line.text):
        yield line.fact("error-line", {"type": said["type"], "message": said["message"], "where": ""})


def _terminate(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    kind = line.text.rpartition("instance of ")[2].strip("'\" ")
    for _, other in zip(range(6), following, strict=False):
        if "what():" in other.text and not _another(line, other):
            yield other.fact("error", {"type": kind, "message": other.text.partition("what():")[2].strip(), "where": ""}, rank=line.place.rank)
            return


def _fatal(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    yield line.fact("error", {"type": "Fatal Python error", "message": line.text.partition("Fatal Python error: ")[2], "where": ""})


READS = (
    Block(r"Traceback \(most recent call last\):\s*$", _traceback, mixed=True),
    Block(r"terminate called after throwing an instance of ", _terminate, mixed=True),
    Block(r"Fatal Python error: ", _fatal),
    Block(r"Error: |Exception: ", _alone),
)

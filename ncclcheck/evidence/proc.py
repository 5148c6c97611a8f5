"""Reads what the kernel and its tools say of processes: /proc/PID/status, stack, wchan, and the lines of ps and top.

A fact of kind "state" (state, name) for each process of a job; "stopped" too where it is T or t, "zombie" where it is Z or X.
Of ps and top only the processes count that may belong to a job, and those in state D. "kernel-frame" is a line of
/proc/PID/stack, "wchan" the kernel function that a process waits in, "frozen" a cgroup whose freezer holds it.

Reads
    log a.txt: Name:	pt_main_thread
    log a.txt: State:	T (stopped)
    log a.txt: Pid:	5110
    log a.txt: TracerPid:	0
    => state pid=5110 state=T_(stopped)
    => stopped pid=5110

Reads
    log a.txt: /proc/5110/status:State:	t (tracing stop)
    => stopped pid=5110

Reads
    log a.txt: USER         PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND
    log a.txt: root           2  0.0  0.0      0     0 ?        S    10:01   0:00 [kthreadd]
    log a.txt: ubuntu      5110  0.0  0.1 918230 10212 ?        Tl   10:01   0:07 python train.py --seed 1
    log a.txt: ubuntu      5111  0.0  0.0      0     0 ?        Zl   10:01   0:00 [python] <defunct>
    => stopped pid=5110
    => zombie pid=5111

Reads
    log a.txt:     PID USER      PR  NI    VIRT    RES    SHR S  %CPU  %MEM     TIME+ COMMAND
    log a.txt:    5110 ubuntu    20   0   51.2g   9.1g   1.1g D   0.0   1.2   3:12.77 pt_main_thread
    => state pid=5110 state=D_(disk_sleep)

Reads
    log a.txt: [<0>] rpc_wait_bit_killable+0x24/0xb0
    log a.txt: wchan: futex_wait_queue
    log a.txt: freezer.state: FROZEN
    => kernel-frame function=rpc_wait_bit_killable
    => wchan wchan=futex_wait_queue
    => frozen
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_STATUS = r"(?:/proc/(?P<pid>\d+)/(?:task/\d+/)?status:\s*)?State:\s+(?P<state>[RSDTtZXxKWPI]) \((?P<words>[a-z -]+)\)"
_PS = r"^\s*(?:[A-Z%]+ +)*PID .*\b(?:STAT|S)\b.*(?:COMMAND|CMD)\b"
_WORDS = {"R": "running", "S": "sleeping", "D": "disk sleep", "T": "stopped", "t": "tracing stop", "Z": "zombie", "X": "dead", "I": "idle"}
_JOB = re.compile(r"python|pt_|torch|vllm|VLLM|sglang|ray::|raylet|deepspeed|accelerate|mpirun|orted|srun|nccl|megatron|train|trtllm|<defunct>")
_AFTER_STATE = 12  # lines of /proc/PID/status in which Pid and TracerPid follow


def _status(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(_STATUS, line.text)
    if not match:
        return
    pid = int(match["pid"]) if match["pid"] else None
    tracer = None
    for _, each in zip(range(_AFTER_STATE), following if pid is None else (), strict=False):
        word, _, value = each.body.strip().partition(":")
        if word == "Name" or word == "State":
            break
        if word == "Pid" and value.strip().isdigit():
            pid = int(value)
        elif word == "TracerPid" and value.strip().isdigit() and int(value):
            tracer = int(value)
    yield from _facts(line, match["state"], f"{match['state']} ({match['words']})", pid, {"tracer": tracer} if tracer else {})


def _ps(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    columns = line.body.split()
    state = next((columns.index(name) for name in ("STAT", "S") if name in columns), None)
    if state is None or "PID" not in columns:
        return
    pid = columns.index("PID")
    for each in following:
        cells = each.body.split(None, len(columns) - 1)
        if len(cells) < len(columns):
            cells += [""] * (len(columns) - len(cells))
        if not cells[pid].isdigit() or len(cells[pid]) > 9:
            return
        letter, command = cells[state][:1], cells[-1]
        if letter in _WORDS and (letter == "D" or _JOB.search(command)):
            wchan = {"wchan": cells[columns.index("WCHAN")]} if "WCHAN" in columns else {}
            yield from _facts(each, letter, f"{letter} ({_WORDS[letter]})", int(cells[pid]), {"name": command, **wchan})


def _facts(line: Line, letter: str, state: str, pid: int | None, fields: dict[str, object]) -> Iterator[Fact]:
    yield line.fact("state", {"state": state, **fields}, pid=pid)
    if letter in "Tt":
        yield line.fact("stopped", {"state": state, **fields}, pid=pid)
    elif letter in "ZXx":
        yield line.fact("zombie", {"state": state, **fields}, pid=pid)


READS = (
    Block(_STATUS, _status),
    Block(_PS, _ps),
    Clue("kernel-frame", r"^\s*(?:\[<0>\] |\[<ffffffff[0-9a-f]{8}>\] )(?P<function>[\w.]+)\+0x"),
    Clue("wchan", r"^\s*(?:/proc/(?P<pid>\d+)/)?(?:wchan|Wchan):?\s+(?P<wchan>[a-z_]\w{2,})"),
    Clue("frozen", r"freezer\.state\S{0,9}\s+FROZEN|\bfrozen 1$"),
)

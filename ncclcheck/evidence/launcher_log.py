"""Reads what launchers, schedulers and trainers say about processes: how each one ended, and that a job ended well.

A process that the launcher ended itself because another one had failed gives the kind "ended-by-launcher".

Reads
    log a.log:   time      : 2026-01-02_10:00:00
    log a.log:   host      : gpu-1
    log a.log:   rank      : 3 (local_rank: 1)
    log a.log:   exitcode  : -9 (pid: 4883)
    log a.log:   error_file: <N/A>
    => exit code=-9 local=1

Reads
    log a.log: Root Cause (first observed failure):
    log a.log: [0]:
    log a.log:   time      : 2026-01-02_10:00:00
    log a.log:   host      : gpu-1
    log a.log:   rank      : 3 (local_rank: 1)
    log a.log:   exitcode  : 1 (pid: 4883)
    => first-failure

Reads
    log a.log: E0102 10:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1003] failed (exitcode: -11) local_rank: 0 (pid: 4884) \
of binary: /usr/bin/python
    log a.log: W0102 10:00:00.1 77 torch/distributed/elastic/multiprocessing/api.py:1029] Sending process 4885 closing signal SIGTERM
    log a.log: torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated with signal SIGKILL
    log a.log: torch.multiprocessing.spawn.ProcessExitedException: process 2 terminated with exit code 3
    => exit code=-11 local=0
    => ended-by-launcher
    => exit code=-9 local=1
    => exit code=3 local=2

Reads
    log a.log: srun: error: gpu-2: task 3: Killed
    log a.log: srun: error: gpu-2: tasks 4-5: Exited with exit code 1
    log a.log: slurmstepd: error: gpu-2: task 6: Out Of Memory
    => exit code=-9 task=3
    => exit code=1 task=4
    => exit code=1 task=5
    => exit code=-9 task=6 memory=True

Reads
    log a.log: slurmstepd: error: *** STEP 99.0 ON gpu-2 CANCELLED AT 2026-01-02T10:00:00 ***
    log a.log: srun: error: gpu-2: tasks 0-1: Killed
    => ended-by-launcher task=0
    => ended-by-launcher task=1

Reads
    log a.log: mpirun noticed that process rank 2 with PID 812 on node gpu-3 exited on signal 9 (Killed).
    log a.log: =   RANK 1 PID 77 RUNNING AT gpu-4
    log a.log: =   KILLED BY SIGNAL: 11 (Segmentation fault)
    log a.log: Process 1 exit with status code 137.
    log a.log: [2024-01-01 10:00:00,000] [ERROR] [launch.py:321:sigkill_handler] ['/usr/bin/python3', '-u', 'train.py', '--local_rank=3'] \
exits with return code = -9
    => exit code=-9
    => exit code=-11
    => exit code=-9 local=1
    => exit code=-9 local=3

Reads
    log a.log: train.sh: line 12: 12345 Killed                  python train.py
    log a.log: train.sh: line 12: 12346 Segmentation fault      (core dumped) python train.py
    => exit code=-9
    => exit code=-11

Reads
    log a.log: [I] torch/distributed/elastic/agent/server/api.py:933] [default] worker group successfully finished. Waiting 300 seconds for \
other agents to finish.
    log a.log: `Trainer.fit` stopped: `max_epochs=3` reached.
    log a.log: Training completed. Do not forget to share your model on huggingface.co/models =)
    log a.log: {'train_runtime': 12.3, 'train_samples_per_second': 4.5}
    log a.log: Training finished
    log a.log: node gpu-1 rc=0
    log a.log: [exiting program at iteration 500] datetime: 2026-01-02 10:00:00
    log a.log: # Out of bounds values : 0 OK
    log a.log: [2026-01-02 10:00:00,000] [INFO] [launch.py:351:main] Process 71 exits successfully.
    => ended

Reads
    log a.log: slurmstepd: error: *** JOB 812 ON gpu-1 CANCELLED AT 2026-01-02T10:00:00 DUE TO TIME LIMIT ***
    log a.log: W0102 10:00:00.1 77 torch/distributed/elastic/agent/server/api.py:753] Received 15 death signal, shutting down workers
    log a.log: torch.distributed.elastic.multiprocessing.api.SignalException: Process 71 got signal: 1
    => cancelled reason=TIME LIMIT
    => cancelled signal=15
    => cancelled signal=1
"""

import re
import signal
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_WORDS = {
    "Killed": -9,
    "Out Of Memory": -9,
    "Terminated": -15,
    "Aborted": -6,
    "Segmentation fault": -11,
    "Bus error": -7,
    "Floating point exception": -8,
    "Illegal instruction": -4,
}
_ENDED = "|".join(_WORDS)
_SHELL = 128  # a shell gives 128 + the number of the signal
MOST_TASKS = 4096
MOST_FRAMES = 120  # lines of the table's traceback
_RAISED = re.compile(r"^ {2,8}(?P<type>(?:\w{1,60}\.){0,9}[A-Z]\w{0,60}(?:Error|Exception|Interrupt|Exit|Warning)): ?(?P<message>.*)$")


def _code(text: str) -> int:
    """`-9`, `137` or `SIGKILL` as an exit code; negative means a signal."""
    if text in signal.Signals.__members__:
        return -signal.Signals[text].value
    code = int(text)
    return _SHELL - code if _SHELL < code <= _SHELL + 64 else code


def _table(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """torchelastic's table of failures: host, rank and exit code stand in lines of their own."""
    host: str | None = line.text.rpartition("host      : ")[2].strip()
    rank = local = None
    for _, other in zip(range(4), following, strict=False):
        if match := re.search(r"rank      : (\d+) \(local_rank: (\d+)\)", other.text):
            rank, local = int(match[1]), int(match[2])
        elif match := re.search(r"exitcode  : (-?\d+) \(pid: (\d+)\)", other.text):
            here = None if host in ("localhost", "localhost.localdomain", "") else host
            fields = {"code": _code(match[1])} | ({"local": local} if local is not None else {})
            yield other.fact("exit", fields, rank=rank, host=here, pid=int(match[2]))
            return


def _first(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """The rank that torchelastic of one node saw failing first."""
    rank: int | None = None
    for _, other in zip(range(MOST_FRAMES), following, strict=False):
        if match := re.search(r"rank      : (\d+) \(local_rank: ", other.text):
            rank = int(match[1])
            yield line.fact("first-failure", rank=rank)
        elif other.text.startswith("====") or (rank is not None and "error_file: <N/A>" in other.text):
            return
        elif rank is not None and (error := _RAISED.match(other.text)):
            yield other.fact("error", {"type": error["type"], "message": error["message"], "where": ""}, rank=rank)
            return


def _failed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(r"failed \(exitcode: (-?\d+)\)(?: local_rank: (\d+) \(pid: (\d+)\))?", line.text)
    if match:
        fields = {"code": _code(match[1])} | ({"local": int(match[2])} if match[2] else {})
        yield line.fact("exit", fields, pid=int(match[3]) if match[3] else None)


def _spawned(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(r"process (\d+) terminated with (?:signal|exit code) (\w+)", line.text)
    if match and (match[2].isdigit() or match[2] in signal.Signals.__members__):
        yield line.fact("exit", {"code": _code(match[2]), "local": int(match[1])})


def _srun(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(rf"error: (?P<host>[\w.-]+): tasks? (?P<tasks>[\d,-]+): (?:Exited with exit code (?P<code>\d+)|(?P<word>{_ENDED}))", line.text)
    if not match:
        return
    code = _code(match["code"]) if match["code"] else _WORDS[match["word"]]
    memory = {"memory": True} if match["word"] == "Out Of Memory" else {}
    for task in _tasks(match["tasks"]):
        yield line.fact("exit", {"code": code, "task": task, **memory}, rank=task, host=match["host"])


def _swept(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """What Slurm killed after it had given up the step."""
    for other in following:
        for fact in _srun(other, following):
            if fact.get("code") in (-9, -15) and not fact.get("memory"):
                yield other.fact("ended-by-launcher", {"task": fact.get("task")}, rank=fact.rank, host=fact.host)


def _tasks(text: str) -> Iterator[int]:
    left = MOST_TASKS
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            for task in range(int(first), min(int(last or first) + 1, int(first) + left)):
                left -= 1
                yield task


def _mpirun(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(r"process rank (\d+) with PID (\d+) on node (\S+) exited on signal (\d+)", line.text)
    if match:
        pid = int(match[2])
        yield line.fact("exit", {"code": -int(match[4])}, rank=int(match[1]), host=match[3], pid=pid or None)


def _hydra(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    who = re.search(r"RANK (\d+) PID (\d+) RUNNING AT (\S+)", line.text)
    for _, other in zip(range(3), following, strict=False):
        if who and (match := re.search(r"KILLED BY SIGNAL: (\d+)|EXIT (?:CODE|STATUS): (\d+)", other.text)):
            code = -int(match[1]) if match[1] else _code(match[2])
            yield other.fact("exit", {"code": code}, rank=int(who[1]), host=who[3], pid=int(who[2]))
            return


def _deepspeed(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    match = re.search(r"(?:--local_rank=(\d+))?[^=]*exits with return code = (-?\d+)", line.text)
    if match and int(match[2]):
        yield line.fact("exit", {"code": _code(match[2])} | ({"local": int(match[1])} if match[1] else {}))


def _horovod(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(r"Process (\d+) exit with status code (\d+)", line.text):
        yield line.fact("exit", {"code": _code(match[2]), "local": int(match[1])})


def _shell(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(rf": line \d+: +(\d+) (?P<word>{_ENDED})\b", line.text):
        yield line.fact("exit", {"code": _WORDS[match["word"]]}, pid=int(match[1]))


READS = (
    Block(r"  host      : ", _table),
    Block(r"Root Cause \(first observed failure\)", _first),
    Block(r"failed \(exitcode: ", _failed),
    Clue("ended-by-launcher", r"Sending process (?P<pid>\d+) closing signal (?P<signal>\w+)"),
    Block(r"process \d+ terminated with (?:signal|exit code) ", _spawned),
    Block(r"error: [\w.-]+: tasks? [\d,-]+: ", _srun),
    Block(r"\*\*\* STEP \S+ ON \S+ CANCELLED|Terminating StepId=|Job step aborted", _swept),
    Block(r"process rank \d+ with PID \d+ on node ", _mpirun),
    Block(r"RANK \d+ PID \d+ RUNNING AT ", _hydra),
    Block(r"exits with return code = ", _deepspeed),
    Block(r"Process \d+ exit with status code ", _horovod),
    Block(rf": line \d+: +\d+ (?:{_ENDED})\b", _shell),
    Clue("ended", r"worker group successfully finished"),
    Clue("ended", r"`Trainer\.\w+` stopped: `max_(?:epochs|steps|time)"),
    Clue("ended", r"Training completed\. Do not forget to share your model"),
    Clue("ended", r"'train_runtime': "),
    Clue("ended", r"(?:^|[\s:|])[Tt]raining (?:is |has )?(?:finished|complete|completed|done)\b"),
    Clue("ended", r"\b(?:rc=0|exit code:? 0|exit status:? 0|EXIT_CODE=0|ExitCode=0)(?:$|[\s:])"),
    Clue("ended", r"exiting program at iteration "),
    Clue("ended", r"Process \d+ exits successfully"),
    Clue("ended", r"# Out of bounds values : 0 OK"),
    Clue("cancelled", r"CANCELLED AT \S+ DUE TO (?P<reason>[A-Z ]*[A-Z])"),
    Clue("cancelled", r"Received (?P<signal>\S+) death signal, shutting down workers"),
    Clue("cancelled", r"SignalException: Process \d+ got signal: (?P<signal>\d+)"),
)

"""One rank raised an error of its own, and the others wait for it or fail after it.

The earliest error that is not about a lost connection is the cause: its traceback is in that rank's log.

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init | error ValueError: no such file
    => 1

Blames
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection closed by peer
    rank 1 @ b: init | error KeyError: 'labels'
    => 1

Blames
    rank 0 @ a: init, all_reduce...
    rank 1 @ b: init, all_reduce | gone 3
    => 1

Blames
    log node-a/rank0.log: [rank0]: Traceback (most recent call last):
    log node-a/rank0.log: [rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, remote process exited or there was \
a network error
    log node-b/rank3.log: [rank3]: Traceback (most recent call last):
    log node-b/rank3.log: [rank3]:   File "/home/me/data.py", line 8, in load
    log node-b/rank3.log: [rank3]: IndexError: list index out of range
    => 3

Blames
    log node-b/rank3.log: [rank3]: Traceback (most recent call last):
    log node-b/rank3.log: [rank3]: IndexError: list index out of range
    log node-b/agent.log: [default] Worker group FAILED. 2/3 attempts left; will restart worker group
    => 3

Spares
    rank 0 @ a: init, all_reduce... | error RuntimeError: Connection closed by peer
    rank 1 @ b: init, all_reduce

Spares
    log a.log: [rank0]: Traceback (most recent call last):
    log a.log: [rank0]: torch.distributed.DistStoreError: wait timeout after 15000ms, keys: /default_pg/0//cuda//0
"""

import re

from ncclcheck.evidence._reads import Clue
from ncclcheck.model import Culprit, Fact, Finding, Run
from ncclcheck.rules import _reading as reading
from ncclcheck.safe_text import word

EXPLAINS = ("rank_stuck_in_python", "rank_exited_early", "network_unreachable", "peer_reset")

READS = (Clue("restarted", r"(?P<left>\d+/\d+) attempts left; will restart worker group"),)

_QUOTES = str.maketrans("", "", "'\"")  # of an error that is quoted itself
_ADVICE = (  # what is known of errors that many programs meet
    (
        r"Expected to have finished reduction in the prior iteration",
        "DistributedDataParallel(..., find_unused_parameters=True), or use every parameter",
    ),
    (
        r"device-side assert|Assertion `\w*Index",
        "an index is out of range (a token or label beyond the size of its table): export CUDA_LAUNCH_BLOCKING=1 shows where",
    ),
    (
        r"illegal memory access|misaligned address|unspecified launch failure",
        "export CUDA_LAUNCH_BLOCKING=1 shows which kernel; compute-sanitizer finds its error; try the newest release of the package that owns it",
    ),
    (r"No module named", "pip install it on that node, into the environment of the job: which python, pip list on every node must agree"),
    (r"DataLoader worker .* exited unexpectedly", "num_workers=0 shows the worker's own error; more shared memory (--shm-size) or host memory"),
    (
        r"size mismatch for|Missing key\(s\) in state_dict|KeyError: '.*(?:layers|weight|scale)",
        "the checkpoint fits another version: upgrade the engine",
    ),
)


def check(run: Run) -> list[Finding]:
    """The first rank whose error is its own, and those that raised the same."""
    own = reading.own_errors(run)
    if not own:
        return _silent(run)
    first = own[0]
    same = [fact for fact in own if reading.error(fact) == reading.error(first)]
    ranks = sorted({fact.rank for fact in same if fact.rank is not None})
    hosts = list(dict.fromkeys(fact.host for fact in same if fact.host)) or [host for host in run.hosts(ranks) if host]
    who = ", ".join(run.name(rank) for rank in ranks[:4]) or (hosts[0] if hosts else "a process")
    where = f" in {first.get('where')}" if first.get("where") else ""
    logs = [fact for fact in run.of("traceback") if fact.rank in ranks]
    place = f", {reading.at(run, ranks[0])}{reading.bystanders(run, ranks)}" if ranks and run.steps else ""
    return [
        Finding(
            "rank-died-exception",
            f"{who} raised {reading.error(first)}{where}{place}",
            Culprit(ranks=ranks or None, hosts=hosts or None) if run.sources else run.blame(ranks),
            _confidence(run, first),
            reading.quote(*(logs or same)),
            f"read the traceback of {f'rank {ranks[0]}' if ranks else 'a process'} on {reading.place(first.host)} and mend what it names "
            f"({word(reading.error(first).translate(_QUOTES) + where)}); the other ranks only wait for it or fail after it{_advice(first)}",
            time=first.time,
        )
    ]


def _advice(fact: Fact) -> str:
    text = f"{fact.get('type')}: {fact.get('message', '')}"
    return next((f"; {advice}" for pattern, advice in _ADVICE if re.search(pattern, text)), "")


def _confidence(run: Run, first: Fact) -> float:
    """Less where a program states another cause, where the report shows the last line alone, or where no rank is named."""
    if run.of("says"):
        return 0.5
    if first.kind == "error-line":
        return 0.6
    return 0.9 if first.rank is not None else 0.75


def _silent(run: Run) -> list[Finding]:
    """Ranks that left with an error's exit code and no error of their own."""
    if run.sources:  # in logs, an exit code of its own says nothing that the lines before it do not say better
        return []
    spoke = {fact.rank for fact in run.of("error")}
    codes = {fact.rank: fact for kind in ("gone", "exit") for fact in run.of(kind) if fact.rank is not None and (fact.get("code") or 0) > 0}
    return [
        Finding(
            "rank-died-exception",
            f"{run.name(rank)} left with exit code {fact.get('code')} and no traceback, {reading.at(run, rank)}{reading.bystanders(run, [rank])}",
            run.blame([rank]),
            0.85,
            reading.quote(fact),
            f"read the log of rank {rank} on {reading.place(fact.host)} in the run directory: something in it called exit({fact.get('code')})",
        )
        for rank, fact in codes.items()
        if rank not in spoke
    ]

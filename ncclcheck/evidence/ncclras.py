"""Reads what NCCL's RAS service says of a job (`ncclras`, NCCL 2.24 and newer), as text.

A fact of kind "ras" for each section: `problem` (mismatch, status, incomplete, error, dead, timeout, unreachable), `group`,
`communicator`, `operation`, `counts` {operation count: the ranks named with it}, `numbers` {operation count: how many
ranks}, `ranks` (all that are named, as the communicator counts them), `pids` {rank: pid}, `nodes` {rank: address}. Counts
that differ by one are normal while a job moves. "ras-group" says how many ranks the communicators of a group have,
"ras-missing" which process does not answer.

Reads
    log a.txt: Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    log a.txt:     #  in group  per comm  per node  per comm  in group
    log a.txt:     0         1         2         4         8         8   RUNNING  MISMATCH
    => ras-group group=0 ranks=8 status=RUNNING errors=MISMATCH

Reads
    log a.txt: #0-0 (a3f1c0de99aa5511) MISMATCH
    log a.txt:   Communicator ranks have different AllReduce operation counts
    log a.txt:   7 ranks have launched up to operation 512
    log a.txt:   Rank 5 has launched up to operation 498 -- GPU 1 (NVML 5) managed by process 7113 on node 10.9.0.2
    => ras problem=mismatch operation=AllReduce ranks=[5] pids={5:_7113} numbers={512:_7,_498:_1}

Reads
    log a.txt: INCOMPLETE
    log a.txt:   Missing communicator data from 1 job process
    log a.txt:   Process 7113 on node 10.9.0.2 managing GPU 1 (NVML 5)
    log a.txt:
    log a.txt: #0-0 (a3f1c0de99aa5511) INCOMPLETE
    log a.txt:   Missing communicator data from 1 rank
    log a.txt:   Rank 5 -- GPU 1 (NVML 5) managed by process 7113 on node 10.9.0.2
    log a.txt:
    log a.txt: #0-0 (a3f1c0de99aa5511) ERROR
    log a.txt:   Asynchronous error on 1 rank
    log a.txt:   Rank 2 reported Remote process error -- GPU 2 managed by process 7110 on node 10.9.0.1
    => ras-missing pid=7113 host=10.9.0.2
    => ras problem=incomplete ranks=[5]
    => ras problem=error ranks=[2] error=Remote_process_error

Reads
    log a.txt: DEAD
    log a.txt:   1 job process is considered dead (unreachable via the RAS network)
    log a.txt:   Process 7113 on node 10.9.0.2 managing GPUs 0-3
    => ras-missing pid=7113 dead=True

Reads
    log a.txt: Connecting to 127.0.0.1:28028: Connection refused
    log a.txt: Failed to connect to the NCCL RAS service!
    => ras problem=unreachable

Reads
    log a.txt:   Encountered 2 communication timeouts while gathering communicator data
    log a.txt: NCCLRAS MISMATCH: rank 1 enqueued collective 512; rank 0 completed 511
    => ras problem=timeout
    => ras problem=mismatch counts={512:_[1],_511:_[0]}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ncclcheck.evidence._reads import Block, Line
from ncclcheck.model import Fact

_SECTION = r"#(?P<group>\d+)-\d+ \((?P<hash>[0-9a-f]{16})\) (?P<problem>MISMATCH|INCOMPLETE)\b"
_ERROR = r"^\s+(?:Asynchronous|Initialization) errors? on \d+ rank"
_TABLE = r"Group     Comms     Nodes     Ranks "
_PROCESSES = r"(?:Missing communicator data from \d+ job process|job process(?:es are| is) considered dead|The missing process(?:es)?:)"
_REPORTED = r"MISMATCH\b.{0,80}\brank \d+ \w+ (?:\w+ )?#?\d+"

_ROW = re.compile(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+(?:-\d+)?)\s+(\d+)\s+(\d+)\s+([A-Z,]+)\s+(\S+)")
_OPERATION = re.compile(
    r"Communicator ranks have different (?:(?P<operation>\w+) operation counts|(?:collective )?(?P<what>status|operation counts))"
)
_MANY = re.compile(
    r"^\s*(?P<many>\d+) ranks (?P<said>have launched up to operation (?P<count>\d+)|have not launched any operations"
    r"|have status (?P<status>\w+)|reported (?P<error>.+))"
)
_RANK = re.compile(
    r"^\s*Rank (?P<rank>\d+)(?P<said> has launched up to operation (?P<count>\d+)| has not launched any operations| has status (?P<status>\w+)"
    r"| reported (?P<error>[^-]+?))? -- (?:GPU (?P<gpu>[^m]+?) managed by process (?P<pid>\d+) on node (?P<node>\S+)|\[)"
)
_PROCESS = re.compile(r"^\s*Process (?P<pid>\d+) on node (?P<node>\S+) managing GPU")
_LIST = re.compile(r"^\s*The (?:missing|unknown) ranks?: (?P<ranks>[\d,-]+)")
_OTHER = re.compile(r"^\s*(?:Missing communicator data from \d+ rank|(?:Asynchronous|Initialization) errors? on \d+ rank|\[could not find)")


@dataclass(slots=True)
class _Section:
    """What one paragraph has named so far."""

    problem: str
    line: Line
    fields: dict[str, Any]
    said: dict[object, list[int]] = field(default_factory=dict)  # an operation count, a status or an error -> the ranks named with it
    numbers: Counter[object] = field(default_factory=Counter)
    ranks: list[int] = field(default_factory=list)
    pids: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, str] = field(default_factory=dict)

    def fact(self) -> Iterator[Fact]:
        if not (self.said or self.ranks):
            return
        fields = dict(self.fields, problem=self.problem, ranks=self.ranks, pids=self.pids, nodes=self.nodes)
        if self.problem in ("mismatch", "status"):
            fields |= {"counts": self.said, "numbers": dict(self.numbers)}
        elif self.problem == "error":
            fields["error"] = next(iter(self.said), "")
        yield self.line.fact("ras", fields)


def _section(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    heading = re.search(_SECTION, line.body)
    problem = heading["problem"].lower() if heading else "error"
    base: dict[str, Any] = {"group": int(heading["group"]), "communicator": heading["hash"]} if heading else {}
    section = _Section(problem, line, base)
    now: object = None  # what the ranks that are listed next have in common
    for each in following:
        if differs := _OPERATION.search(each.body):
            yield from section.fact()
            status = differs["what"] == "status"
            section = _Section(
                "status" if status else "mismatch", each, base if status else {**base, "operation": differs["operation"] or "collective"}
            )
        elif many := _MANY.match(each.body):
            now = _what(many)
            section.said.setdefault(now, [])
            section.numbers[now] += int(many["many"])
        elif one := _RANK.match(each.body):
            rank = int(one["rank"])
            if not section.ranks:
                section.line = each
            section.ranks.append(rank)
            if one["said"]:
                section.said.setdefault(_what(one), []).append(rank)
                section.numbers[_what(one)] += 1
            elif now is not None:
                section.said[now].append(rank)
            if one["pid"]:
                section.pids[rank], section.nodes[rank] = int(one["pid"]), one["node"]
        elif listed := _LIST.match(each.body):
            section.ranks += _numbers(listed["ranks"])
        elif each.body.strip() and not _OTHER.match(each.body):
            break
    yield from section.fact()


def _what(match: re.Match[str]) -> object:
    return int(match["count"]) if match["count"] else match["status"] or (match["error"] or "").strip() or 0


def _table(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    for each in following:
        if row := _ROW.match(each.body):
            group, comms, nodes, _, ranks, present, status, errors = row.groups()
            fields = {"group": int(group), "comms": int(comms), "nodes": int(nodes), "ranks": int(ranks), "present": int(present)}
            yield each.fact("ras-group", {**fields, "status": status, "errors": errors})
        elif not re.match(r"^\s+#  in group", each.body):
            return


def _missing(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    dead = "considered dead" in line.body
    for each in following:
        process = _PROCESS.match(each.body)
        if not process:
            return
        yield each.fact("ras-missing", {"dead": True} if dead else {}, pid=int(process["pid"]), host=process["node"])


def _reported(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`MISMATCH: rank 1 enqueued collective 512; rank 0 completed 511`, as people write it down."""
    counts: dict[int, list[int]] = {}
    for rank, count in re.findall(r"\brank (\d+) \w+ (?:\w+ )?#?(\d+)", line.body):
        counts.setdefault(int(count), []).append(int(rank))
    ranks = sorted(rank for named in counts.values() for rank in named)
    numbers = {count: len(named) for count, named in counts.items()}
    yield line.fact(
        "ras", {"problem": "mismatch", "operation": "collective", "counts": counts, "numbers": numbers, "ranks": ranks, "pids": {}, "nodes": {}}
    )


def _says(problem: str) -> Callable[[Line, Iterator[Line]], Iterator[Fact]]:
    """The reader of a line that says all by itself."""
    return lambda line, following: iter([line.fact("ras", {"problem": problem, "ranks": []})])


def _numbers(text: str) -> list[int]:
    """`1,3-5` -> 1, 3, 4, 5; ranges of more than a million are not believed."""
    result: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        if first.isdigit() and (last or first).isdigit() and len(last or first) < 8:
            result += range(int(first), min(int(last or first), int(first) + 2**20) + 1)
    return result


READS = (
    Block(_SECTION, _section),
    Block(_ERROR, _section),
    Block(_TABLE, _table),
    Block(_PROCESSES, _missing),
    Block(_REPORTED, _reported),
    Block(r"Failed to connect to the NCCL RAS service", _says("unreachable")),
    Block(r"Encountered \d+ communication timeouts? while gathering", _says("timeout")),
)

"""Reads what NCCL's RAS service says of a job as JSON (`ncclras -f json`): the same facts as of its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from ncclcheck.evidence._chunks import LONGEST_LINE
from ncclcheck.model import Evidence, Fact

READS_DOCUMENT = True
_RESULTS = (
    "",
    "Unhandled CUDA error",
    "System error",
    "Internal error",
    "Invalid argument",
    "Invalid usage",
    "Remote process error",
    "",
)  # ncclResult_t

MOST_OPERATIONS = 64  # kinds of collectives that are compared; NCCL has fewer than twenty
_WORD = re.compile(r'"([^"]{1,200})"')


class _Status(msgspec.Struct):
    async_error: int = 0
    considered_dead: bool = False


class _Rank(msgspec.Struct):
    rank: int
    host: str | None = None
    pid: int | None = None
    status: _Status = msgspec.field(default_factory=_Status)
    collective_counts: dict[str, int] = {}


class _Communicator(msgspec.Struct):
    hash: str
    size: int
    ranks: list[_Rank] = []
    missing_ranks: list[_Rank] = []


class _Document(msgspec.Struct):
    nccl_version: str
    communicators: list[_Communicator]


def sniff(head: bytes, name: str) -> bool:
    """Whether this begins as RAS's JSON does."""
    return head.lstrip()[:1] == b"{" and b'"nccl_version"' in head and b'"communicators' in head


def document(data: bytes, name: str) -> Iterator[Fact]:
    """The facts of a document; a damaged one, or one of another shape, gives none."""
    try:
        found = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, RecursionError):
        return
    quotes: dict[str, Evidence] = {}  # a word in quotation marks -> the first line with it
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        for word in _WORD.findall(line[:LONGEST_LINE]):
            quotes.setdefault(word, Evidence(name, number, line[:LONGEST_LINE]))
    beginning = Evidence(name, 1, data[:LONGEST_LINE].decode("utf-8", "replace").partition("\n")[0])
    yield Fact("nccl-version", fields={"version": found.nccl_version}, source=quotes.get("nccl_version", beginning))
    for comm in found.communicators:
        yield from _facts(comm, quotes.get(comm.hash, beginning))


def _facts(comm: _Communicator, source: Evidence) -> Iterator[Fact]:
    everybody = [*comm.ranks, *comm.missing_ranks]
    base = {"communicator": comm.hash, "pids": {each.rank: each.pid for each in everybody}, "nodes": {each.rank: each.host for each in everybody}}

    def ras(problem: str, ranks: Sequence[int], **fields: Any) -> Fact:
        return Fact("ras", fields={**base, "problem": problem, "ranks": list(ranks), **fields}, source=source)

    yield Fact("ras-group", fields={"group": comm.hash, "ranks": comm.size, "present": len(comm.ranks)}, source=source)
    for each in comm.missing_ranks:
        yield Fact("ras-missing", each.host, pid=each.pid, fields={"dead": each.status.considered_dead}, source=source)
    if comm.missing_ranks:
        yield ras("incomplete", [each.rank for each in comm.missing_ranks])
    for code, error in enumerate(_RESULTS):
        if error and (failed := [each.rank for each in comm.ranks if each.status.async_error == code]):
            yield ras("error", failed, error=error)
    operations = dict.fromkeys(operation for each in comm.ranks for operation in each.collective_counts)
    for operation in islice(operations, MOST_OPERATIONS):
        counts: dict[int, list[int]] = {}
        for each in comm.ranks:
            counts.setdefault(each.collective_counts.get(operation, 0), []).append(each.rank)
        if len(counts) > 1:
            yield ras(
                "mismatch", _outliers(counts), operation=operation, counts=counts, numbers={count: len(ranks) for count, ranks in counts.items()}
            )


def _outliers(counts: dict[int, list[int]]) -> list[int]:
    """The ranks that are not where most are; all of them where there is no most."""
    by_size = sorted(counts.values(), key=len)
    apart = by_size[:-1] if len(by_size[-1]) > len(by_size[-2]) else by_size
    return sorted(rank for ranks in apart for rank in ranks)

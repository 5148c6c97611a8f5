"""What a node may tell node 0: what concerns its own ranks and itself, in the form that judging relies on. Pure.

What concerns others is left out. What no agent of this version sends raises Invalid, and whoever sent it is heard no more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ncclcheck import wire
from ncclcheck.causes import CAUSES
from ncclcheck.journal import Line, Slot
from ncclcheck.message_limits import (
    MOST_VALUES,
    Invalid,
    Label,
    Name,
    NodeRank,
    RankNumber,
    Room,
    finite,
    one_line,
    plain,
    words,
)
from ncclcheck.model import Evidence, Fact

MOST_BYTES_OF_A_RANK = 8 * 2**20  # of all progress that a node reports of one launch
MOST_BYTES_OF_A_HELLO = 2**16
MOST_VALUES_OF_A_RANK = MOST_VALUES
MOST_VALUES_OF_A_NODE = 2**18  # in its inventory
MOST_BLOCKS = 256  # of a rank's calls that are looked at: the newest
_LONG = 16  # values that a fact, a line or a slot counts as, whatever it holds,
_SELDOM = {"claim": 1024, "hello": 1024}  # and those lines of which each has all ranks compared with each other
_KIND = re.compile(r"[a-z0-9-]{1,64}")
_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sender:
    """A node that takes part: its number, its host, the ranks that are its own, the probes that it was told to run, and how much it may still say."""

    number: int
    host: str
    ranks: range
    probes: Container[str] = ()
    room: Room = field(default_factory=Room)

    @classmethod
    def of(cls, number: int, hello: wire.Hello, probes: Container[str] = (), room: Room | None = None) -> Sender:
        """As the roll call has it."""
        first = hello.task["rank"] if hello.task else number * hello.nproc_per_node
        return cls(number, hello.host, range(first, first + (1 if hello.task else hello.nproc_per_node)), probes, room or Room())


# -- the lines of a rank's journal, by kind --------------------------------------------------------------------------


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    index: int | None
    name: Label | None
    uuid: Label | None
    pci_bus_id: Label | None


class _Identity(msgspec.Struct, forbid_unknown_fields=True):
    rank: RankNumber
    local_rank: RankNumber | None
    node_rank: NodeRank | None
    host: Label
    pid: int | None
    device: _Device


class _Hello(msgspec.Struct):
    identity: _Identity
    torch: Label
    nccl: tuple[Label | None, Label | None]
    vllm: Label | None = None


class _Claim(msgspec.Struct, forbid_unknown_fields=True):
    host: Label
    pid: int
    local_rank: RankNumber
    environment: dict[str, str]
    interfaces: list[str]


class _Step(msgspec.Struct):
    step: str


class _Phase(msgspec.Struct):
    phase: str


class _Probe(msgspec.Struct):
    name: Name


class _Sample(msgspec.Struct):
    name: Label
    nbytes: int
    dtype: Label
    ranks: int
    bus_factor: float
    correct: bool | None
    seconds: list[float | None]
    latency_min: float | None
    latency_median: float | None
    latency_p99: float | None
    algbw: float | None
    busbw: float | None


class _RanksSample(_Sample, kw_only=True):
    rank: RankNumber


class _Told(msgspec.Struct):
    fact: str
    fields: dict[str, Any]


class _Error(msgspec.Struct):
    type: Label
    message: str
    where: str


class _Planted(msgspec.Struct):
    struck: float


_LINES: Mapping[str, type[msgspec.Struct]] = {
    "hello": _Hello, "claim": _Claim, "local": _Step, "leave": _Step, "phase": _Phase, "probe": _Probe, "probe-end": _Probe,
    "sample": _Sample, "fact": _Told, "error": _Error, "planted": _Planted,
}  # fmt: skip


# -- what judging and printing take for granted in the fields of facts ------------------------------------------------


class _Judged(msgspec.Struct):
    """What a check itself found."""

    cause: str
    title: str
    ranks: list[RankNumber] = []
    hosts: list[str] | None = None
    devices: list[str] | None = None
    interface: str | None = None
    link: str | None = None
    remedy: str | None = None
    evidence: list[str] = []
    confidence: float = 0.95


class _Environment(msgspec.Struct):
    added: dict[str, str] = {}


class _Engine(msgspec.Struct):
    tensor_parallel: int | None = None
    pipeline_parallel: int = 1
    startup_seconds: float | None = None
    first_token_seconds: float | None = None
    token_seconds: float | None = None
    phase_seconds: dict[str, float] = {}


class _Served(msgspec.Struct, kw_only=True):
    api_seconds: float | None = None
    first_token_seconds: float | None = None
    ttft_seconds: float | None = None
    token_seconds: float | None = None
    phase_seconds: dict[str, float]


class _Absent(msgspec.Struct):
    ranks: list[RankNumber]


class _Note(msgspec.Struct):
    title: str = ""
    text: str = ""
    hosts: list[str] = []


class _Gone(msgspec.Struct):
    code: int | None = None


_FIELDS: Mapping[str, type[msgspec.Struct]] = {
    "fail": _Judged, "degraded": _Judged, "environment": _Environment, "engine": _Engine, "served": _Served, "absent": _Absent, "note": _Note,
    "unread": _Note, "gone": _Gone,
}  # fmt: skip


_NOT_SAID = frozenset(
    {
        "agent-failed", "agent-lost", "bind", "calls-differ", "clock", "done", "hello", "invalid-message", "late", "lengthy", "master",
        "missing-node", "no-answer", "no-token", "order-refused", "planted", "resolve", "roll-call", "slow", "slowed", "stood-still", "stranger",
    }
)  # fmt: skip
"""Kinds of facts that node 0 finds out itself, or that a node keeps for its own report: none of them is for another node to say."""


def hello(message: wire.Hello, nbytes: int) -> None:
    """Raises Invalid where an agent takes a place that its own job has not, or says too much of itself: many may say so at once."""
    if nbytes > MOST_BYTES_OF_A_HELLO:
        raise Invalid(f"a hello of {nbytes} bytes; at most {MOST_BYTES_OF_A_HELLO} travel")
    number, task = message.node_rank, message.task
    if number is not None and number >= message.nnodes:
        raise Invalid(f"it calls itself node {number} of {message.nnodes}")
    if task and (task["rank"], task["world_size"]) != (number, message.nnodes):
        raise Invalid(f"it calls itself rank {task['rank']} of {task['world_size']}, and agent {number} of {message.nnodes}")
    if task and message.nproc_per_node != 1:
        raise Invalid(f"it calls itself one process of a launcher, and starts {message.nproc_per_node}")


def progress(message: wire.Progress, sender: Sender) -> wire.Progress:
    """The message without what concerns other nodes' ranks. Raises Invalid."""
    finite(message.sent)
    own = sender.ranks
    sender.room.take(_LONG * len(message.slots) + sum(_SELDOM.get(line.kind, _LONG) for line in message.lines))
    return msgspec.structs.replace(
        message,
        slots=[_slot(slot) for slot in message.slots if slot.rank in own],
        lines=[checked for each in message.lines if (checked := _line(each, sender))],
        beats={rank: beat for rank, beat in message.beats.items() if rank in own},
        facts=facts(message.facts, sender),
        blocks={rank: blocks[-MOST_BLOCKS:] for rank, blocks in message.blocks.items() if rank in own},
        starved={rank: finite(seconds) for rank, seconds in message.starved.items() if rank in own},
    )


def facts(told: Sequence[Fact], sender: Sender) -> list[Fact]:
    """A node's facts, of its own ranks and of itself. Raises Invalid."""
    sender.room.take(_LONG * len(told))
    own = [fact for fact in told if fact.kind not in _NOT_SAID and (fact.rank is None or fact.rank in sender.ranks)]
    return [_fact(fact, sender) for fact in own]


def _fact(fact: Fact, sender: Sender) -> Fact:
    if not _KIND.fullmatch(fact.kind):
        raise Invalid(f"a fact of the kind {one_line(fact.kind, 64)!r}")
    if fact.time is not None:
        finite(fact.time)
    host = fact.host if fact.host is None else sender.host
    fields: dict[str, Any] = plain(fact.fields, sender.room)
    formed(fact.kind, fields)
    return replace(fact, host=host, fields=fields, source=fact.source and _evidence(fact.source))


def formed(kind: str, safe: Mapping[str, Any]) -> None:
    """Raises Invalid where a fact's fields are not of the form on which whoever reads this kind relies."""
    if form := _FIELDS.get(kind):
        told = _convert(safe, form, kind)
        if isinstance(told, _Judged) and told.cause not in CAUSES:
            raise Invalid(f"it names a cause that does not exist: {one_line(told.cause, 64)!r}")


def sample(fields: Mapping[str, Any]) -> None:
    """Raises Invalid where this is no sample of a rank."""
    _convert(fields, _RanksSample, "sample")


def _evidence(source: Evidence) -> Evidence:
    return Evidence(one_line(source.file), source.line, words(source.text))


def _slot(slot: Slot) -> Slot:
    numbers = (slot.pid, slot.seq, slot.nbytes, slot.since, slot.writes)
    if not all(-1 <= number <= _LARGEST for number in numbers):
        raise Invalid(f"the slot of rank {slot.rank} holds a number that is out of range")
    for seconds in (slot.entered, slot.left or 0.0, slot.bound, slot.worked, slot.waited):
        finite(seconds)
    texts = slot.name, slot.group, slot.dtype
    safe = _safe(texts)
    return slot if safe == texts else replace(slot, name=safe[0], group=safe[1], dtype=safe[2])


@functools.lru_cache(maxsize=2**10)
def _safe(texts: tuple[str, str, str]) -> tuple[str, str, str]:
    """Thousands of ranks are in the same few operations, twice a second."""
    name, group, dtype = texts
    return one_line(name, 64), one_line(group, 64), one_line(dtype, 64)


def _line(told: Line, sender: Sender) -> Line | None:
    """One event. What a process of that node says when it starts (a claim) is heard whichever rank it takes itself for."""
    form = _LINES.get(told.kind)
    if form is None or (told.rank not in sender.ranks and told.kind != "claim"):
        return None
    finite(told.at)
    fields = plain(told.fields, sender.room)
    known = _convert(fields, form, told.kind)
    match known:
        case _Probe(name=name) if name not in sender.probes:
            raise Invalid(f"it runs the probe {name}, which was not ordered")
        case _Told(fact=kind, fields=more):
            if not _KIND.fullmatch(kind):
                raise Invalid(f"a fact of the kind {one_line(kind, 64)!r}")
            formed(kind, more)
    return replace(told, fields=fields, file=one_line(told.file, 64))


def _convert(fields: Mapping[str, Any], form: type[msgspec.Struct], kind: str) -> msgspec.Struct:
    try:
        return msgspec.convert(fields, form)
    except msgspec.ValidationError as error:
        raise Invalid(f"{kind}: {one_line(str(error))}") from None


def sections(names: Sequence[str], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """A node's inventory: those sections that were asked for, safe to print. Raises Invalid."""
    room = Room(MOST_VALUES_OF_A_NODE)
    return {name: plain(found[name], room) for name in names if name in found}

"""The nouns: who takes part (RankId), what was seen (Step, Sample, Fact, Run), what it means (Finding, Verdict)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ncclcheck.recorder import Dump


Answer = TypeVar("Answer")


class Status(StrEnum):
    """How a probe ended. `skip` and `unknown` never look like `pass`."""

    PASS = "pass"
    DEGRADED = "degraded"
    FAIL = "fail"
    SKIP = "skip"  # it could not or need not run here; the reason is said
    UNKNOWN = "unknown"  # it ran and could not tell
    CRASHED = "crashed"  # the check itself failed


class Outcome(StrEnum):
    """The answer for a whole run: the first four of `probe`, the last three of `triage`."""

    READY = "ready"
    DEGRADED = "degraded"
    NOT_READY = "not-ready"
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    PROBLEM = "problem"


USAGE = 2  # exit code for a mistake on the command line
EXIT_CODES: Mapping[Outcome, int] = {
    Outcome.READY: 0,
    Outcome.HEALTHY: 0,
    Outcome.NOT_READY: 1,
    Outcome.DEGRADED: 1,
    Outcome.PROBLEM: 1,
    Outcome.UNKNOWN: 3,
}


@dataclass(frozen=True, slots=True)
class Device:
    """What a rank computes on. `index` is the CUDA ordinal the rank sees, None on a CPU (whose name is "CPU") and where it is not known."""

    index: int | None = None
    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None

    def __str__(self) -> str:
        return self.name or "" if self.index is None else f"GPU {self.index}"


@dataclass(frozen=True, slots=True)
class RankId:
    """One rank: its place in the job, and the process that is it. `local_rank` and `node_rank` are None where nothing says them."""

    rank: int
    local_rank: int | None = None
    node_rank: int | None = None
    host: str = ""
    pid: int | None = None
    device: Device = field(default_factory=Device)

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.host, str(self.device)) if part)
        return f"rank {self.rank} ({place})" if place else f"rank {self.rank}"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on one rank. Times are that host's monotonic clock, in seconds; `left` is None while inside.

    `seq` counts the collectives a rank has issued, so it can be compared across hosts. A `local` step is work
    that needs no peer (loading, filling a tensor); it carries the seq of the collective before it.
    """

    rank: int
    seq: int
    name: str
    entered: float = 0.0
    left: float | None = None
    group: str = "world"
    nbytes: int = 0
    dtype: str = ""
    local: bool = False
    phase: str = ""  # how far it came, where it says so without announcing anything inside

    @property
    def inside(self) -> bool:
        """Entered and not left: the rank is in this operation now."""
        return self.left is None


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured operation on one rank: `seconds` holds the time of each iteration; bandwidths are bytes/s."""

    name: str
    nbytes: int
    dtype: str
    ranks: int
    seconds: Sequence[float]
    bus_factor: float
    correct: bool | None = None  # None: this operation's result was not checked

    @property
    def median(self) -> float:
        """Median seconds of an iteration."""
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        """Seconds below which `percent` of the iterations lie (nearest rank)."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    @property
    def algbw(self) -> float:
        """Algorithm bandwidth, bytes/s, of the median iteration: what the caller sees."""
        return self.nbytes / self.median

    @property
    def busbw(self) -> float:
        """Bus bandwidth, bytes/s: what each link carried; comparable across world sizes (nccl-tests' definition)."""
        return self.algbw * self.bus_factor


@dataclass(frozen=True, slots=True)
class Evidence:
    """A quoted line: `file` relative to the run directory or the path triaged; `line` counts from 1, 0 = no file."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One observation that is neither a step nor a sample, for example kind="exit", fields={"code": -9}."""

    kind: str
    host: str | None = None
    rank: int | None = None
    pid: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    source: Evidence | None = None
    time: float | None = None  # seconds since the year began, by the clock of whoever said it

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value."""
        return self.fields.get(name, default)

    def placed(self, folder: str) -> Fact:
        """The same fact, its evidence named relative to one folder further up."""
        return replace(self, source=self.source and replace(self.source, file=f"{folder}/{self.source.file}"))


@dataclass(frozen=True, slots=True)
class Culprit:
    """Whom a finding names. None means that this kind of culprit does not apply."""

    ranks: Sequence[int] | None = None
    hosts: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    interface: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause: what happened, whose it is, how we know, and what to type."""

    cause: str
    title: str
    culprit: Culprit = field(default_factory=Culprit)
    confidence: float = 0.9
    evidence: Sequence[Evidence] = ()
    remedy: str = ""
    collect: Sequence[str] = ()
    time: float | None = None  # seconds since the year began when it was first said, by the speaker's clock
    severity: str = "stop"  # or "degradation": a launch works, and slower or less safely than it could


@dataclass(frozen=True, slots=True)
class Run:
    """Everything known about one job, whether it finished, crashed or hung."""

    world_size: int | None = None
    ranks: Mapping[int, RankId] = field(default_factory=dict)
    steps: Sequence[Step] = ()  # the newest of each rank last
    facts: Sequence[Fact] = ()
    dumps: Sequence[Dump] = ()  # flight recorders' dumps, of a heap that was read
    sources: Sequence[str] = ()  # the names of what was read
    _answers: dict[Callable[[Run], Any], Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def once(self, work_out: Callable[[Run], Answer]) -> Answer:
        """What follows from this run, worked out when it is first asked for: many rules ask the same. It must not be changed."""
        if work_out not in self._answers:
            self._answers[work_out] = work_out(self)
        answer: Answer = self._answers[work_out]
        return answer

    def of(self, kind: str) -> list[Fact]:
        """The facts of one kind, in the order they were learned. The list is everybody's: it must not be changed."""
        return self.once(_by_kind).get(kind, [])

    def last_steps(self) -> dict[int, Step]:
        """The newest step of each rank that announced any. It is everybody's, too."""
        return self.once(_last_steps)

    def name(self, rank: int) -> str:
        """`rank 3 (gpu-07, GPU 1)`, or as much of it as is known."""
        return str(self.ranks[rank]) if rank in self.ranks else f"rank {rank}"

    def hosts(self, ranks: Sequence[int]) -> list[str]:
        """The hosts of these ranks, each once."""
        return list(dict.fromkeys(self.ranks[rank].host for rank in ranks if rank in self.ranks and self.ranks[rank].host))

    def blame(self, ranks: Sequence[int]) -> Culprit:
        """The culprit made of these ranks, their hosts and their GPUs."""
        devices = [f"{self.ranks[r].host}:{self.ranks[r].device}" for r in ranks if r in self.ranks and self.ranks[r].device.index is not None]
        return Culprit(ranks=list(ranks), hosts=self.hosts(ranks) or None, devices=devices or None)


def _last_steps(run: Run) -> dict[int, Step]:
    return {step.rank: step for step in run.steps}


def _by_kind(run: Run) -> dict[str, list[Fact]]:
    facts: dict[str, list[Fact]] = {}
    for fact in run.facts:
        facts.setdefault(fact.kind, []).append(fact)
    return facts


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: one status, one sentence, the findings best first."""

    status: Outcome
    summary: str
    findings: Sequence[Finding] = ()


@dataclass(slots=True)
class ProbeResult:
    """How one probe ended, with the samples of every rank (`rank` -> its samples)."""

    name: str
    status: Status
    detail: str = ""
    seconds: float = 0.0
    samples: list[dict[str, Any]] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The whole result of `ncclcheck probe`: what --format json prints. Fields are only ever added."""

    schema: int
    status: Outcome
    summary: str
    seconds: float
    findings: Sequence[Finding]
    emulated: bool
    environment: Mapping[str, Any]
    probes: Sequence[ProbeResult]
    nodes: Sequence[Mapping[str, Any]]
    ranks: Sequence[RankId]
    run: dict[str, Any]  # id, directory, each node's folder in it, version
    drill: Sequence[Mapping[str, Any]] = ()  # a row for each planted fault: fault, victim, status, detected, seconds, cause, cause_right, ...
    sources: Sequence[Mapping[str, Any]] = ()  # what triage read: name, kind, bytes, and why something was not read

"""The ranks of one launch as node 0 sees them, and the question whether something is wrong by now."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ncclcheck import wire
from ncclcheck.journal import Line, Slot
from ncclcheck.model import Device, Evidence, Fact, RankId, Run, Step
from ncclcheck.probe import STALL_FLOOR

LEAVE_BOUND = 5.0  # seconds in which the launchers have left after their ranks
START_BOUND = 90.0  # seconds without progress that are normal while a rank has not announced itself (interpreter, rendezvous)


class Clock(StrEnum):
    """What ended the wait."""

    OVER = "every rank has left"
    DEATH = "a rank died"
    STOP = "a rank is stopped"
    LAUNCHER = "a launcher failed"
    ERROR = "a rank raised an error"
    FAIL = "a check failed"
    STALL = "no rank made progress"
    PROBE = "the probe's deadline"
    DEADLINE = "the overall deadline"


@dataclass(slots=True)
class View:
    """Everything known of one launch. Times are node 0's monotonic clock, at the arrival of a message."""

    launch: str
    world_size: int
    nodes: int
    started: float
    timeouts: dict[str, float]  # probe -> seconds
    slots: dict[int, Slot] = field(default_factory=dict)
    beats: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, RankId] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # probe -> the samples of its ranks
    began: dict[str, float] = field(default_factory=dict)  # probe -> when its first rank began
    finished: dict[str, dict[int, float]] = field(default_factory=dict)  # probe -> rank -> when it finished
    facts: list[Fact] = field(default_factory=list)
    where: dict[int, str] = field(default_factory=dict)  # rank -> the probe it is in
    over: set[bytes] = field(default_factory=set)  # agents whose part has ended
    progress: float = 0.0  # when anything last moved
    patience: float = 1.0  # doubled whenever a stall turned out to be none

    def __post_init__(self) -> None:
        self.progress = self.started

    def update(self, peer: bytes, folder: str, message: wire.Progress, now: float) -> None:
        """Take in what one node reports; `folder` is that node's part of the run directory."""
        for slot in message.slots:
            if (known := self.slots.get(slot.rank)) is None or known.writes != slot.writes:
                self.progress = now
            self.slots[slot.rank] = slot
        for rank, value in message.beats.items():
            if self.beats.get(rank) != value:
                self.progress = now
            self.beats[rank] = value
        for line in message.lines:
            self._line(line, folder, now)
        self.facts += [fact.placed(folder) for fact in message.facts]
        if message.ended:
            self.over.add(peer)

    def _line(self, line: Line, folder: str, now: float) -> None:
        fields = line.fields
        host = self.ranks[line.rank].host if line.rank in self.ranks else None
        match line.kind:
            case "hello":
                who = fields["identity"]
                self.ranks[line.rank] = RankId(**{**who, "device": Device(**who["device"])})
            case "probe":
                self.where[line.rank] = fields["name"]
                self.began.setdefault(fields["name"], now)
            case "probe-end":
                self.finished.setdefault(fields["name"], {})[line.rank] = now
            case "sample":
                self.samples.setdefault(self.where.get(line.rank, ""), []).append({"rank": line.rank, **fields})
                if fields["correct"] is False and not any(fact.kind == "fail" and fact.rank == line.rank for fact in self.facts):
                    title = f"{fields['name']} of {fields['nbytes']} bytes gave a wrong result on rank {line.rank}"
                    wrong = {"cause": "data-corruption", "title": title, "ranks": [line.rank], "probe": self.where.get(line.rank)}
                    self.facts.append(Fact("fail", host, line.rank, fields=wrong))
            case "fact":
                source = Evidence(f"{folder}/{self.launch}/{line.file}", line.number, str(fields["fields"].get("title", fields["fact"])))
                fact = Fact(fields["fact"], host, line.rank, fields={**fields["fields"], "probe": self.where.get(line.rank)}, source=source)
                self.facts.append(fact)
            case "error":
                self.facts.append(Fact("error", host, line.rank, fields={**fields, "probe": self.where.get(line.rank)}))

    def current(self) -> str | None:
        """The probe that the ranks are in: the last one begun."""
        return next(reversed(self.began), None)

    def clock(self, now: float) -> tuple[Clock, float] | None:
        """What has gone wrong (or that all is over), and the bound that was used in seconds; None: go on waiting."""
        for kind, clock in (
            ("gone", Clock.DEATH),
            ("stopped", Clock.STOP),
            ("launcher-failed", Clock.LAUNCHER),
            ("launcher-stopped", Clock.STOP),
            ("error", Clock.ERROR),
            ("fail", Clock.FAIL),
        ):
            if any(fact.kind == kind for fact in self.facts):
                return clock, 0.0
        if len(self.over) == self.nodes:
            return Clock.OVER, 0.0
        if self.complete and self.slots and all(slot.done for slot in self.slots.values()) and now - self.progress > LEAVE_BOUND:
            return Clock.OVER, 0.0  # the ranks have left in order; a launcher that does not is ended with the rest
        if (probe := self.current()) and now - self.began[probe] > self.timeouts[probe]:
            return Clock.PROBE, self.timeouts[probe]
        bound = self.bound() * self.patience
        if now - self.progress > bound:
            return Clock.STALL, bound
        return None

    @property
    def complete(self) -> bool:
        """Whether every rank came to the end of every probe."""
        return all(len(self.finished.get(probe, ())) == self.world_size for probe in self.timeouts)

    def explained(self) -> bool:
        """Whether a rank is known to be dead or stopped, or every rank has raised an error."""
        failed = {fact.rank for fact in self.facts if fact.kind == "error"}
        return any(fact.kind in ("gone", "stopped", "launcher-failed") for fact in self.facts) or len(failed) == self.world_size

    def bound(self) -> float:
        """Seconds without progress anywhere that are normal now: the largest that any rank's step allows."""
        if len(self.slots) < self.world_size:
            return START_BOUND
        return max((slot.bound if slot.step.inside else STALL_FLOOR for slot in self.slots.values() if not slot.done), default=START_BOUND)

    def steps(self) -> list[Step]:
        """The newest step of each rank."""
        return [self.slots[rank].step for rank in sorted(self.slots)]

    def run(self, more: list[Fact]) -> Run:
        """What triage reads."""
        done = [Fact("done", self.ranks[rank].host if rank in self.ranks else None, rank) for rank, slot in self.slots.items() if slot.done]
        facts = [*self.facts, *more, *done]
        nameless = {
            fact.rank: RankId(fact.rank, host=fact.host or "", pid=fact.pid) for fact in facts if fact.rank is not None
        }  # died too early to say
        return Run(self.world_size, {**nameless, **self.ranks}, self.steps(), facts)

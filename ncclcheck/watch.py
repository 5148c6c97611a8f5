"""The ranks of one launch as node 0 sees them, and the question whether something is wrong by now."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ncclcheck import muster, pace, wire
from ncclcheck.journal import Line, Slot
from ncclcheck.model import Device, Evidence, Fact, RankId, Run, Step
from ncclcheck.pace import Pace
from ncclcheck.probe import STALL_FACTOR, STALL_FLOOR

SUSPICIOUS = 2.5  # seconds without progress after which the network is looked at, however long the step may take
LEAVE_BOUND = 5.0  # seconds in which the launchers have left after their ranks
LATE = 6.0  # seconds after the others at which a rank that starts is late
KEPT_BLOCKS = 256  # of calls, for ranks that lag behind
KEPT_READINGS = 64  # of each rank's pace, before the oldest are let go
START_BOUND = 90.0  # seconds without progress that are normal while a rank has not announced itself (interpreter, rendezvous)


class Clock(StrEnum):
    """What ended the wait."""

    OVER = "every rank has left"
    DEATH = "a rank died"
    STOP = "a rank is stopped"
    LAUNCHER = "a launcher failed"
    ERROR = "a rank raised an error"
    FAIL = "a check failed"
    DIFFER = "ranks issued different collectives"
    STALL = "no rank made progress"
    NETWORK = "no rank made progress, and the network failed"
    PROBE = "the probe's deadline"
    DEADLINE = "the overall deadline"
    LOST = "an agent was lost"


@dataclass(slots=True)
class View:
    """Everything known of one launch. Times are node 0's monotonic clock, at the arrival of a message."""

    launch: str
    world_size: int
    nodes: int
    started: float
    timeouts: dict[str, float]  # probe -> seconds
    order: muster.Order
    slots: dict[int, Slot] = field(default_factory=dict)
    beats: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, RankId] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # probe -> the samples of its ranks
    began: dict[str, float] = field(default_factory=dict)  # probe -> when its first rank began
    finished: dict[str, dict[int, float]] = field(default_factory=dict)  # probe -> rank -> when it finished
    facts: list[Fact] = field(default_factory=list)
    where: dict[int, str] = field(default_factory=dict)  # rank -> the probe it is in
    over: set[bytes] = field(default_factory=set)  # agents whose part has ended
    paced: bool = False  # the probe keeps a steady pace, so that a slow rank or network shows in it
    progress: float = 0.0  # when anything last moved
    looked: float = -1.0  # the progress after which the network was looked at last
    patience: float = 1.0  # doubled whenever a stall turned out to be none
    struck: float | None = None  # when a planted fault struck
    claims: dict[tuple[int, int], muster.Claim] = field(default_factory=dict)  # (node, local_rank) -> what that rank says of itself
    blocks: dict[int, dict[int, list[int]]] = field(default_factory=dict)  # end of a block of calls -> digest -> ranks
    paces: dict[int, list[Pace]] = field(default_factory=dict)  # rank -> the newest readings in the probe that it is in,
    bests: dict[int, float] = field(default_factory=dict)  # and what those showed that are not kept (see pace.let_go)
    first_seen: dict[int, float] = field(default_factory=dict)
    begun: dict[int, tuple[str, float]] = field(default_factory=dict)  # rank -> the local step that it is in, since when (its clock)
    phases: dict[int, tuple[int, str]] = field(default_factory=dict)  # rank -> the seq of a step, and the phase that it has come to
    longest: dict[str, dict[int, float]] = field(default_factory=dict)  # local step -> rank -> seconds that the longest one took
    _kinds: set[str] = field(default_factory=set)  # of the facts
    _failed: set[int | None] = field(default_factory=set)  # ranks with a fact of kind "fail"
    _unmatched: set[tuple[int, int]] = field(default_factory=set)  # whose claims were not compared with the order yet

    def __post_init__(self) -> None:
        self.progress = self.started

    def update(self, peer: bytes, node: int, folder: str, message: wire.Progress, now: float) -> None:
        """Take in what one node reports; `folder` is that node's part of the run directory."""
        for slot in message.slots:
            self.first_seen.setdefault(slot.rank, now)
            if (known := self.slots.get(slot.rank)) is None or known.writes != slot.writes:
                self.progress = now
            self.slots[slot.rank] = slot
        for rank, value in message.beats.items():
            if self.beats.get(rank) != value:
                self.progress = now
            self.beats[rank] = value
        for line in message.lines:
            self._line(line, node, folder, now)
            if line.kind == "planted" and self.struck is None:
                self.struck = now - (message.sent - float(line.fields["struck"]))
        for slot in message.slots if self.paced else ():
            if (probe := self.where.get(slot.rank)) and slot.rank not in self.finished.get(probe, {}):
                self._read(slot.rank, Pace(now, slot.seq, slot.worked, slot.waited, message.starved.get(slot.rank, 0.0)))
        for rank, blocks in message.blocks.items():
            for end, digest in blocks:
                self._block(end, digest, rank)
        self._learn(*(fact.placed(folder) for fact in message.facts))
        if message.ended:
            self.over.add(peer)

    def _learn(self, *facts: Fact) -> None:
        self.facts += facts
        self._kinds.update(fact.kind for fact in facts)
        self._failed.update(fact.rank for fact in facts if fact.kind == "fail")

    def _read(self, rank: int, reading: Pace) -> None:
        readings = self.paces.setdefault(rank, [])
        readings.append(reading)
        if len(readings) > KEPT_READINGS:
            self.bests[rank] = min(self.bests.get(rank, math.inf), pace.let_go(readings))

    def _block(self, end: int, digest: int, rank: int) -> None:
        """Compare a block of calls with the same of the other ranks."""
        known = self.blocks.setdefault(end, {})
        known.setdefault(digest, []).append(rank)
        if len(known) > 1 and "calls-differ" not in self._kinds:
            self._learn(Fact("calls-differ", fields={"before": end}))
        while len(self.blocks) > KEPT_BLOCKS:
            del self.blocks[min(self.blocks)]

    def compare_claims(self) -> None:
        """Compare what ranks claimed since the last time, all at once: thousands of them start in the same seconds."""
        if self._unmatched:
            new = [self.claims[place] for place in sorted(self._unmatched)]
            self._unmatched.clear()
            known = {fact.get("title") for fact in self.facts if fact.kind == "fail"}
            self._learn(*(fact for fact in muster.check(self.order, list(self.claims.values()), new) if fact.get("title") not in known))

    def _line(self, line: Line, node: int, folder: str, now: float) -> None:
        fields = line.fields
        host = self.ranks[line.rank].host if line.rank in self.ranks else None
        match line.kind:
            case "hello":
                who = fields["identity"]
                self.ranks[line.rank] = RankId(**{**who, "device": Device(**who["device"])})
                place = node, who["local_rank"]
                if claim := self.claims.get(place):
                    nccl, built = fields["nccl"]
                    self.claims[place] = replace(claim, device=who["device"], torch=fields["torch"], nccl=nccl, built=built, vllm=fields.get("vllm"))
                    self._unmatched.add(place)
            case "claim":
                self.claims[node, fields["local_rank"]] = muster.Claim(node, **fields)
                self._unmatched.add((node, fields["local_rank"]))
            case "local":
                self.begun[line.rank] = (fields["step"], line.at)
            case "leave" if self.begun.get(line.rank, ("", 0.0))[0] == fields["step"]:
                step, at = self.begun.pop(line.rank)
                self.longest.setdefault(step, {})[line.rank] = max(line.at - at, self.longest.get(step, {}).get(line.rank, 0.0))
            case "phase":
                self.phases[line.rank] = line.seq, str(fields["phase"])
            case "probe":
                self.where[line.rank] = fields["name"]
                self.paces.pop(line.rank, None)
                self.bests.pop(line.rank, None)
                self.began.setdefault(fields["name"], now)
            case "probe-end":
                self.finished.setdefault(fields["name"], {})[line.rank] = now
            case "sample":
                self.samples.setdefault(self.where.get(line.rank, ""), []).append({"rank": line.rank, **fields})
                if fields["correct"] is False and line.rank not in self._failed:
                    title = f"{fields['name']} of {fields['nbytes']} bytes gave a wrong result on rank {line.rank}"
                    wrong = {"cause": "data-corruption", "title": title, "ranks": [line.rank], "probe": self.where.get(line.rank)}
                    self._learn(Fact("fail", host, line.rank, fields=wrong))
            case "fact":
                source = Evidence(f"{folder}/{self.launch}/{line.file}", line.number, str(fields["fields"].get("title", fields["fact"])))
                fact = Fact(fields["fact"], host, line.rank, fields={**fields["fields"], "probe": self.where.get(line.rank)}, source=source)
                self._learn(fact)
            case "error":
                self._learn(Fact("error", host, line.rank, fields={**fields, "probe": self.where.get(line.rank)}))

    def current(self) -> str | None:
        """The probe that the ranks are in: the last one begun."""
        return next(reversed(self.began), None)

    def clock(self, now: float) -> tuple[Clock, float] | None:
        """What has gone wrong (or that all is over), and the bound that was used in seconds; None: go on waiting."""
        self.compare_claims()
        for kind, clock in (
            ("gone", Clock.DEATH),
            ("stopped", Clock.STOP),
            ("launcher-failed", Clock.LAUNCHER),
            ("absent", Clock.LAUNCHER),
            ("launcher-stopped", Clock.STOP),
            ("error", Clock.ERROR),
            ("fail", Clock.FAIL),
            ("calls-differ", Clock.DIFFER),
        ):
            if kind in self._kinds:
                return clock, 0.0
        if len(self.over) == self.nodes:
            return Clock.OVER, 0.0
        if self.complete and self.slots and now - self.progress > LEAVE_BOUND and all(slot.done for slot in self.slots.values()):
            return Clock.OVER, 0.0  # the ranks have left in order; a launcher that does not is ended with the rest
        if (probe := self.current()) and now - self.began[probe] > self.timeouts[probe]:
            return Clock.PROBE, self.timeouts[probe]
        if self._disagree():
            return Clock.DIFFER, 0.0
        bound = self.bound() * self.patience
        if now - self.progress > bound:
            return Clock.STALL, bound
        return None

    def _disagree(self) -> bool:
        """Whether ranks are inside different collectives that have the same number: then there is nothing to wait for."""
        inside: dict[int, set[int]] = {}
        for slot in self.slots.values():
            if slot.left is None and not slot.local:
                inside.setdefault(slot.seq, set()).add(slot.signature)
        return any(len(calls) > 1 for calls in inside.values())

    def suspicious(self, now: float) -> bool:
        """Whether nothing has moved for so long that the network is to be looked at: once for each time that all stands still."""
        if now - self.progress <= SUSPICIOUS or self.looked == self.progress or len(self.slots) < self.world_size:
            return False
        self.looked = self.progress
        return True

    @property
    def complete(self) -> bool:
        """Whether every rank came to the end of every probe."""
        return all(len(self.finished.get(probe, ())) == self.world_size for probe in self.timeouts)

    @property
    def slowed(self) -> bool:
        """Whether the collectives take longer than they did at first: then the network is looked at, though the job goes on."""
        return any(fact.kind == "slowed" for fact in self._pace())

    def _pace(self) -> list[Fact]:
        if not self.paced:
            return []
        lengthy = [
            Fact("lengthy", rank=rank, fields={"step": step, "longest": round(seconds, 2), "others": round(others, 2)})
            for step, times in ((step, dict(times)) for step, times in dict(self.longest).items())
            for rank in [max(times, key=lambda rank: times[rank])]  # no other one took longer than all others
            if (seconds := times[rank]) > STALL_FACTOR * (others := max((time for other, time in times.items() if other != rank), default=math.inf))
        ]
        return [*pace.facts({rank: list(readings) for rank, readings in dict(self.paces).items()}, dict(self.bests)), *lengthy]

    def _late(self) -> list[Fact]:
        """Ranks that started long after the others."""
        if len(self.first_seen) < self.world_size or self.world_size < 2:
            return []
        first_seen = dict(self.first_seen)
        usual = statistics.median_low(list(first_seen.values()))
        late = {rank: seen - usual for rank, seen in first_seen.items() if seen - usual > max(LATE, usual - self.started)}
        return [Fact("late", rank=rank, fields={"seconds": round(seconds, 1)}) for rank, seconds in late.items()]

    def reached(self, seq: int) -> bool:
        """Whether every rank has issued more than so many collectives."""
        return len(self.slots) == self.world_size and all(slot.seq > seq for slot in self.slots.values())

    def explained(self) -> bool:
        """Whether a rank is known to be dead or stopped, or every rank has raised an error."""
        failed = {fact.rank for fact in self.facts if fact.kind == "error"}
        return not self._kinds.isdisjoint(("gone", "stopped", "launcher-failed")) or len(failed) == self.world_size

    def bound(self) -> float:
        """Seconds without progress anywhere that are normal now: the largest that any rank's step allows."""
        if len(self.slots) < self.world_size:
            return START_BOUND
        return max((slot.bound if slot.left is None else STALL_FLOOR for slot in self.slots.values() if not slot.done), default=START_BOUND)

    def steps(self) -> list[Step]:
        """The newest step of each rank."""
        return [self._step(slot) for _, slot in sorted(self.slots.items())]

    def _step(self, slot: Slot) -> Step:
        """It has a phase while the rank is inside of it; what came after it has none."""
        seq, phase = self.phases.get(slot.rank, (-1, ""))
        return replace(slot.step, phase=phase) if seq == slot.seq and slot.step.inside and not slot.local else slot.step

    def run(self, more: list[Fact]) -> Run:
        """What triage reads. It copies before it looks: a thread may make it while messages come in."""
        slots, ranks = dict(self.slots), dict(self.ranks)
        done = [Fact("done", ranks[rank].host if rank in ranks else None, rank) for rank, slot in slots.items() if slot.done]
        facts = [*self.facts, *more, *done, *self._late(), *self._pace()]
        nameless = {
            fact.rank: RankId(fact.rank, host=fact.host or "", pid=fact.pid) for fact in facts if fact.rank is not None
        }  # died too early to say
        return Run(self.world_size, {**nameless, **ranks}, self.steps(), facts)

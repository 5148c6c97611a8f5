"""Which faults a drill plants where, and how what was said of each is scored. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ncclcheck import registry
from ncclcheck.fault import Spec
from ncclcheck.model import Outcome, Report, Status

JOB = "training"  # the probe in which faults are planted, where theirs name no other
FIRST, LAST = 20, 90  # collectives of that job after which a fault strikes: drawn at random
ENGINE = "vllm_engine"
ENGINE_START = 1.0  # seconds after an engine began to start
ENGINE_STEPS = (4, 30)  # its collectives 3 to 34 generate the first answer


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault in one job."""

    spec: Spec
    probe: str
    moment: str = ""  # "start" or "generate", in an engine

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.spec.name} ({self.probe}, {self.moment})" if self.moment else self.spec.name

    def row(self, status: Status, said: str, left: Sequence[str] = ()) -> Row:
        """A row of which nothing more is known than what was `left` behind."""
        return Row(self.name, self.spec.rank, status, clean=not left, probe=self.probe, spec=str(self.spec), said="; ".join([said, *left]))


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one trial. `seconds` from the fault until the culprit was named; None where nothing was detected."""

    fault: str
    victim: int
    status: Status
    detected: bool = False
    seconds: float | None = None
    cause: str | None = None
    cause_right: bool = False
    culprit_right: bool = False
    clean: bool = False
    probe: str = ""
    spec: str = ""
    said: str = ""  # the best finding's title, or why there is none


def trials(names: Sequence[str], nodes: int, ranks_per_node: int, repeat: int, seed: int) -> list[Trial]:
    """The trials of a drill, the same on every node: victims and moments are drawn from the seed."""
    drawn: list[Trial] = []
    for round_ in range(repeat):
        for name in names:
            plugin = registry.describe("faults", name)
            choose = random.Random(f"{seed} {round_} {name}")
            for probe in plugin.get("PROBES", (JOB,)):
                drawn += _trials(name, plugin, probe, choose, nodes, ranks_per_node)
    return drawn


def _trials(name: str, plugin: registry.Plugin, probe: str, choose: random.Random, nodes: int, each: int) -> list[Trial]:
    victim = choose.randrange(each if plugin.get("BLAMES") == "master" else nodes * each)
    at_once = plugin.get("STRIKES") in ("start", "launcher")
    if probe != ENGINE:
        return [Trial(Spec(name, victim, 0 if at_once else choose.randint(FIRST, LAST)), probe)]
    start = Spec(name, victim, 0, 0.0 if at_once else ENGINE_START)
    found = [Trial(start, probe, "start")]
    return found if at_once else [*found, Trial(Spec(name, victim, choose.randint(*ENGINE_STEPS)), probe, "generate")]


def score(trial: Trial, report: Report, ranks_per_node: int, left: Sequence[str]) -> Row:
    """One row: was the fault seen, in what time, was its cause named and its victim, and was nothing `left` behind?"""
    plugin = trial.spec.plugin
    planted = report.run.get("planted") or {}
    if planted.get("refused"):
        return trial.row(Status.SKIP, str(planted["refused"]), left)
    best = report.findings[0] if report.findings else None
    detected = report.status in (Outcome.NOT_READY, Outcome.DEGRADED) and best is not None and planted.get("seconds") is not None
    if best is None or not detected:
        said = report.summary if planted.get("seconds") is not None else f"it never struck: {report.summary}"
        return replace(trial.row(Status.FAIL, said, left), cause=best.cause if best else None)
    cause_right = best.cause == plugin.get("EXPECT")
    culprit_right = _named(trial, report, ranks_per_node)
    right = cause_right and culprit_right and not left
    return replace(
        trial.row(Status.PASS if right else Status.FAIL, best.title, left),
        detected=True,
        seconds=planted["seconds"],
        cause=best.cause,
        cause_right=cause_right,
        culprit_right=culprit_right,
    )


def _named(trial: Trial, report: Report, ranks_per_node: int) -> bool:
    """Whether the best finding names the victim and no bystander; of two ranks that contradict each other, both may be named."""
    culprit, victim = report.findings[0].culprit, trial.spec.rank
    hosts = {node["node_rank"]: node["host"] for node in report.nodes}
    blames = trial.spec.plugin.get("BLAMES", "rank")
    if blames == "pair":
        return victim in (culprit.ranks or ()) and len(culprit.ranks or ()) == 2
    if blames == "rank":
        tie = ranks_per_node * len(hosts) == 2 and trial.spec.strikes == "call"
        return list(culprit.ranks or ()) == [victim] or (tie and victim in (culprit.ranks or ()))
    host = hosts.get(0 if blames == "master" else victim // ranks_per_node)
    named = list(culprit.hosts or ())
    return host in named if blames == "link" else named == [host]


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of all rows. `alarms`: healthy runs that were not ready."""

    rows: Sequence[Row]
    alarms: int

    @property
    def ran(self) -> list[Row]:
        """The rows whose fault could be planted."""
        return [row for row in self.rows if row.status is not Status.SKIP]

    @property
    def detected(self) -> list[Row]:
        """Those in which something was found,"""
        return [row for row in self.ran if row.detected]

    @property
    def right(self) -> list[Row]:
        """and those in which it was what had been planted, where it had been."""
        return [row for row in self.detected if row.cause_right and row.culprit_right]


def summary(tally: Tally) -> tuple[Outcome, str]:
    """The drill's verdict: healthy only if every fault was detected, blamed on the right place, and cleaned up after."""
    ran, detected, right, alarms = tally.ran, tally.detected, tally.right, tally.alarms
    skipped = f"; {len(tally.rows) - len(ran)} skipped" if len(tally.rows) > len(ran) else ""
    if not ran:
        return Outcome.UNKNOWN, f"no fault could be planted here{skipped}"
    seconds = sorted(row.seconds for row in detected if row.seconds is not None)
    told = (
        f"{len(detected)} of {len(ran)} faults detected, {len(right)} with the right cause and culprit, {sum(row.clean for row in ran)} left nothing"
        + (f"; named after {seconds[len(seconds) // 2]:.1f} s (median), {seconds[-1]:.1f} s at most" if seconds else "")
        + (f"; {alarms} of the healthy runs between them raised an alarm" if alarms else "")
    )
    well = len(right) == len(ran) and all(row.clean for row in ran) and not alarms
    return (Outcome.HEALTHY if well else Outcome.PROBLEM), f"{told}{skipped}"


def figures(tally: Tally) -> Mapping[str, Any]:
    """Precision: of the alarms, those that were right. Recall: of the faults, those that were named rightly."""
    ran, right, raised = len(tally.ran), len(tally.right), len(tally.detected) + tally.alarms
    return {
        "trials": ran,
        "right": right,
        "false_alarms": tally.alarms,
        "precision": round(right / raised, 4) if raised else None,
        "recall": round(right / ran, 4) if ran else None,
    }

"""What of a run's evidence still counts: errors that a rank survived are no death, and a restart makes what was before it history."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ncclcheck.model import Fact, Run

EVENTS = frozenset({"says", "error", "error-line", "exit", "first-failure", "timeout", "position", "reset", "ended-by-launcher", "left"})
"""Kinds of facts that tell what happened in one attempt of the job; the others tell how it is set up."""

RETRIES_WITHIN = 60  # lines after an error in which a program says that it tries again
_STEP = re.compile(r"\b(?:step|iter(?:ation)?|epoch|loss)\b\D{0,12}\d", re.IGNORECASE)


@dataclass(slots=True)
class _Source:
    """What one source says about how its processes went on: numbers of lines, and the newest call of each rank."""

    restarted: int = 0
    failed: int = 0  # the last exit code other than 0
    ended: dict[int | None, int] = field(default_factory=dict)  # rank -> the last line that says it came to its end
    over: int = 0  # the last of these lines, whichever rank's
    stepped: dict[int | None, int] = field(default_factory=dict)
    retried: dict[int | None, list[int]] = field(default_factory=dict)
    waited: dict[int | None, tuple[int, float]] = field(default_factory=dict)  # the last time-out, and when its call was issued

    def learn(self, fact: Fact, line: int) -> None:
        """Take in one fact of the source."""
        match fact.kind:
            case "restarted":
                self.restarted = max(self.restarted, line)
            case "exit" if fact.get("code"):
                self.failed = max(self.failed, line)
            case "ended":
                self.ended[fact.rank] = max(self.ended.get(fact.rank, 0), line)
                self.over = max(self.over, line)
            case "last-line" if fact.source and _STEP.search(fact.source.text):
                self.stepped[fact.rank] = line
            case "retried":
                self.retried.setdefault(fact.rank, []).append(line)
            case "timeout":
                ran = fact.get("ran_ms")
                begun = fact.time - ran / 1000 if fact.time is not None and isinstance(ran, int) else -math.inf
                self.waited[fact.rank] = max(self.waited.get(fact.rank, (0, begun)), (line, begun))

    def survived(self, error: Fact, line: int) -> bool:
        """Whether the process that showed the error went on: it tried again, came to its end, made further steps, or began another call."""
        tries = self.retried.get(error.rank, [])
        at = bisect_right(tries, line)
        if at < len(tries) and tries[at] - line <= RETRIES_WITHIN and not line < self.failed < tries[at]:
            return True
        begun = self.waited.get(error.rank, (0, -math.inf))[1]
        if error.rank is not None and error.time is not None and begun > error.time:
            return True
        ends = [self.over] if error.rank is None else [self.ended.get(error.rank, 0), self.ended.get(None, 0)]
        stepped = 0 if error.rank is None else self.stepped.get(error.rank, 0)
        return self.failed <= line < max(stepped, *ends, 0)

    def outlasted(self, error: Fact, line: int) -> bool:
        """Whether the rank ran into a time-out below an error that tells no time: it was hardly the rank's end."""
        below = 0 if error.rank is None or error.time is not None else self.waited.get(error.rank, (0, 0.0))[0]
        return line < below and not line < self.failed < below


def newest(run: Run) -> tuple[Run, Run]:
    """The run without errors that were survived, and, of that, what the newest attempt left; the very same run where nothing is left out."""
    sources: dict[str, _Source] = {}
    for fact in run.facts:
        if fact.source:
            sources.setdefault(fact.source.file, _Source()).learn(fact, fact.source.line)
    alive = _left_out(run, (fact for fact, line, source in _placed(run, sources) if _is_error(fact) and source.survived(fact, line)))
    history = (
        fact
        for fact, line, source in _placed(alive, sources)
        if (fact.kind in EVENTS and line < source.restarted) or (_is_error(fact) and source.outlasted(fact, line))
    )
    return alive, _left_out(alive, history)


def _left_out(run: Run, facts: Iterable[Fact]) -> Run:
    """The run without these facts; with them where it failed and they are its only words: what is repeated word for word is read once."""
    out = {id(fact) for fact in facts}
    rest = replace(run, facts=[fact for fact in run.facts if id(fact) not in out]) if out else run
    failed = any(fact.get("code") for fact in rest.of("exit"))
    return run if failed and not any(rest.of(kind) for kind in ("error", "error-line", "timeout", "position", "says")) else rest


def _placed(run: Run, sources: dict[str, _Source]) -> Iterable[tuple[Fact, int, _Source]]:
    return ((fact, fact.source.line, sources[fact.source.file]) for fact in run.facts if fact.source)


def _is_error(fact: Fact) -> bool:
    return fact.kind in ("error", "error-line") or (fact.kind == "says" and fact.get("rule") == "rank_died_oom")

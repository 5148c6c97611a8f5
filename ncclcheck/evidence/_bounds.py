"""How long reading may take: one reader of one source, one source, and all of them together."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass

from ncclcheck.units import seconds_text

DEADLINE = 300.0  # seconds for everything, unless the user says otherwise
SOURCE = 60.0  # seconds for one source, of a deadline of DEADLINE or less
READER = 6.0  # seconds of processor time that one reader may take of one source
_READING = 0.8  # the share of the deadline for reading; what was read must be judged, too
_TICK = 0.05  # seconds of processor time between two looks at who takes it


class GaveUp(Exception):
    """A reader took more than it may; says of what."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Until when (time.monotonic) all must be read, and how many seconds one source may take."""

    end: float = math.inf
    source: float = math.inf
    total: float = math.inf  # seconds, as they were given

    @classmethod
    def of(cls, deadline: float) -> Bounds:
        """The bounds on reading, from now on, of a deadline for reading and judging."""
        return cls(time.monotonic() + deadline * _READING, max(SOURCE, SOURCE * deadline / DEADLINE), deadline)

    def over(self) -> bool:
        """Whether nothing more may be read."""
        return time.monotonic() >= self.end

    def until(self, begun: float) -> float:
        """Until when the source may be read that was begun then."""
        return min(begun + self.source, self.end)

    def why(self, late: str = "") -> str:
        """`the time for one source (60 s) was up`."""
        if self.over():
            return f"the time for all sources was up ({seconds_text(self.total * _READING)} of --deadline {seconds_text(self.total)})"
        return late or f"the time for one source was up ({seconds_text(self.source)})"


class Meter:
    """Sees which reader of a source takes the processor's time, by a look at it every few hundredths of a second.

    A pattern that backtracks without end cannot look at a clock: the look interrupts it.
    """

    def __init__(self, until: float = math.inf) -> None:
        self.reader: object = None  # who reads now; None where it must not be interrupted
        self.over = False  # the source's time is up
        self._until = until
        self._used: dict[object, float] = {}

    def start(self) -> None:
        """From now on this is the meter of this process's main thread."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, _TICK, _TICK)

    def _look(self, number: int, frame: object) -> None:
        self.over = self.over or time.monotonic() >= self._until
        if self.reader is None:
            return
        self._used[self.reader] = self._used.get(self.reader, 0.0) + _TICK
        if self.over:
            raise GaveUp("the source's time was up")
        if self._used[self.reader] > READER:
            raise GaveUp(f"it had used {seconds_text(READER)} of processor time")

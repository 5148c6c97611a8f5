"""Tells agents that come when the roll is complete that they are too late, without keeping node 0 from its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from ncclcheck import wire
from ncclcheck.bounded import bounded

REPORTS = 8  # that are made at a time: the agents that claim one taken number share one, those that are left another one
MAKING = 0.2  # of the time at most
MOST = 10_000  # agents that wait for their answer, and that are remembered with it
BOUND = 30.0  # seconds for one report


class Latecomers:
    """Whoever comes too late hears it once for each hello; the report is made once for all who came meanwhile."""

    def __init__(self, refusal: Callable[[Sequence[wire.Hello]], bytes], send: Callable[[bytes, wire.Message], None]) -> None:
        """`refusal` makes the report for agents that claim the same number, or for any."""
        self._refusal, self._send = refusal, send
        self._waiting: dict[bytes, tuple[wire.Hello, int | None]] = {}
        self._reports: dict[bytes, wire.Result] = {}  # of those that were told
        self._came = asyncio.Event()

    def add(self, peer: bytes, hello: wire.Hello, taken: int | None) -> None:
        """An agent said hello, perhaps again: what it was sent may be lost. `taken` is the number that it claims, if another one has it."""
        if report := self._reports.get(peer):
            self._send(peer, report)
        elif len(self._waiting) < MOST:
            self._waiting[peer] = hello, taken
            self._came.set()

    async def answer(self) -> None:
        """Tell them, for ever."""
        while True:
            await self._came.wait()
            self._came.clear()
            waiting, self._waiting = self._waiting, {}
            began = time.monotonic()
            for peers in _alike(waiting):
                report = wire.Result(await bounded(self._refusal, BOUND, [waiting[peer][0] for peer in peers]))
                for peer in peers:
                    self._send(peer, report)
                    self._reports[peer] = report
            while len(self._reports) > MOST:
                del self._reports[next(iter(self._reports))]
            await asyncio.sleep((time.monotonic() - began) * (1 / MAKING - 1))


def _alike(waiting: dict[bytes, tuple[wire.Hello, int | None]]) -> list[list[bytes]]:
    """The agents by the taken number that they claim, in at most REPORTS groups."""
    groups: dict[int | None, list[bytes]] = {}
    for peer, (_, taken) in waiting.items():
        groups.setdefault(taken, []).append(peer)
    first, rest = list(groups.values())[: REPORTS - 1], list(groups.values())[REPORTS - 1 :]
    return [*first, *([[peer for group in rest for peer in group]] if rest else [])]

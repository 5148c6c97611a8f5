"""Blocking work that cannot hold the event loop up, and a clock that stands still while this process does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

TICK = 0.2  # seconds between two looks at the clock
T = TypeVar("T")


async def bounded(work: Callable[..., T], seconds: float, *args: Any) -> T:
    """Run blocking work in a thread that nobody has to wait for. Raises TimeoutError; the thread is then left to end by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            result = work(*args)
        except Exception as error:
            outcome: tuple[Callable[[Any], None], Any] = (future.set_exception, error)
        else:
            outcome = (future.set_result, result)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    async with asyncio.timeout(seconds):
        return await future


class Awake:
    """Seconds for which this process really ran: another one's silence is judged by them.

    A process that was stopped, or that a busy machine did not let run, has heard nobody meanwhile; that is not the
    others' silence. Each look at the clock counts for a second at most.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # run so far
        self.absent = 0.0  # the longest time between two looks
        self._last = time.monotonic()

    async def keep(self) -> None:
        """Keep the clock, for as long as it is needed."""
        while True:
            now = time.monotonic()
            gap, self._last = now - self._last, now
            self.seconds += min(gap, 1.0)
            self.absent = max(self.absent, gap)
            await asyncio.sleep(TICK)

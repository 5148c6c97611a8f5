"""How far the start of a vLLM engine in this process has come, and how long each phase took, from what vLLM logs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ncclcheck.evidence import vllm_log


class Phases:
    """Listens to vLLM's log inside of `with`. `seconds` of each phase are there afterwards; `now` is the phase that was entered last.

    A phase that vLLM does not log here (its level is above INFO, or only the first rank of a node says it) counts to the one before.
    It listens where records are made: vLLM replaces the handlers of its loggers while the engine starts.
    """

    def __init__(self, entered: Callable[[str], object]) -> None:
        """`entered` is told the name of each phase when it begins."""
        self.now = vllm_log.PHASES[0]
        self.seconds: dict[str, float] = {}
        self._entered = entered
        self._listening = False

    def __enter__(self) -> Phases:
        self._since = time.perf_counter()
        self._entered(self.now)
        self._listening = True
        self._factory = logging.getLogRecordFactory()
        logging.setLogRecordFactory(self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listening = False
        if logging.getLogRecordFactory() == self._record:  # else somebody relies on it
            logging.setLogRecordFactory(self._factory)
        self._count()

    def _record(self, *args: Any, **fields: Any) -> logging.LogRecord:
        record = self._factory(*args, **fields)
        if self._listening and record.name.startswith("vllm"):
            with contextlib.suppress(TypeError, ValueError):  # a message that does not fit its arguments is vLLM's affair
                self.hear(record.getMessage())
        return record

    def hear(self, line: str) -> None:
        """One line of vLLM's."""
        phase = vllm_log.phase([line])
        if phase and vllm_log.PHASES.index(phase) > vllm_log.PHASES.index(self.now):
            self._count()
            self.now = phase
            self._entered(phase)

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds[self.now] = now - self._since
        self._since = now

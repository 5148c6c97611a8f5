"""Reads in processes of their own, because what is read may be hostile: each is bounded in time and memory, and none is missed."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import select
import signal
import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from ncclcheck import parent
from ncclcheck.units import bytes_text, seconds_text

PATIENCE = 20.0  # seconds in which a worker must have read something, or be done with what it reads
MEMORY = 2 << 30  # bytes that a worker may take in addition to what it begins with
TRIES = 4  # workers that one job may cost before the rest of it is given up
_OFTEN = 0.2  # seconds between two signs of life
_OUT_OF_MEMORY, _FAILED = 77, 78  # a worker's exit codes
_TASK = struct.Struct("=QQ")  # job, results to skip
_FRAME = struct.Struct("=cQ")  # kind, bytes that follow
_BEGUN, _ALIVE, _RESULT, _DONE = b"b", b"a", b"r", b"d"

Result = TypeVar("Result")


class Watch:
    """A worker's side: what it is at, and that it is alive."""

    def __init__(self, to_parent: socket.socket) -> None:
        self._to_parent, self._told = to_parent, time.monotonic()

    def begin(self, name: str) -> None:
        """From now on this is read."""
        self.send(_BEGUN, name)

    def alive(self) -> None:
        """Something was read, or is waited for."""
        if (now := time.monotonic()) - self._told > _OFTEN:
            self._told = now
            self.send(_ALIVE)

    def send(self, kind: bytes, content: Any = None) -> None:
        """Tell the parent; waits while it is busy."""
        data = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
        self._to_parent.sendall(_FRAME.pack(kind, len(data)) + data)


@dataclass(slots=True)
class _Worker:
    """The parent's side of a worker."""

    pid: int
    socket: socket.socket
    job: int = -1  # -1: none
    reading: str = ""  # what it has begun and not finished
    heard: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def give(self, job: int, skip: int) -> None:
        self.job, self.reading, self.heard = job, "", time.monotonic()
        self.socket.sendall(_TASK.pack(job, skip))

    def hear(self) -> list[tuple[bytes, Any]] | None:
        """The messages that have come; None if it has ended."""
        piece = b""
        with contextlib.suppress(ConnectionError):  # it died with a task unread
            piece = self.socket.recv(1 << 20)
        if not piece:
            return None
        self.heard = time.monotonic()
        self.received += piece
        messages = []
        while len(self.received) >= _FRAME.size:
            kind, size = _FRAME.unpack_from(self.received)
            end = _FRAME.size + size
            if len(self.received) < end:
                break
            messages.append((kind, pickle.loads(self.received[_FRAME.size : end])))  # our own process wrote it
            del self.received[:end]
        return messages

    def end(self, patience: float = 1.0) -> int | None:
        """Kill it; its exit code, or None where it hangs in the kernel and cannot even be killed."""
        self.socket.close()
        deadline = time.monotonic() + patience
        code = self._ended()
        while code is None and time.monotonic() < deadline:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.001)
            code = self._ended()
        return code

    def _ended(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


@dataclass(slots=True)
class _Job(Generic[Result]):
    """What has come of one job and was not given on yet."""

    results: deque[Result] = field(default_factory=deque)
    count: int = 0  # results that came, from whichever worker
    tries: int = 0
    done: bool = False


class Pool(Generic[Result]):
    """Does jobs 0 to count-1 in forked processes. Nothing may have started a thread before.

    `work(job, skip, watch)` gives the results of one job but the first `skip`, and says before each what it reads. Where
    a worker failed, `lost(job, name, why, gave_up)` stands in for the result it was at; name is "" where that is not known.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, int, Watch], Iterator[Result]],
        lost: Callable[[int, str, str, bool], Result],
        patience: float = PATIENCE,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """`meanwhile` is done here, once, when the first workers are at work."""
        self._work, self._lost, self._patience, self._meanwhile = work, lost, patience, meanwhile
        self._jobs: list[_Job[Result]] = [_Job() for _ in range(count)]
        self._waiting = deque(range(count))
        self._workers: list[_Worker] = []
        self._most = len(os.sched_getaffinity(0))

    def results(self) -> Iterator[Result]:
        """The results of all jobs, in the order of the jobs, each as soon as its turn has come."""
        try:
            for job in self._jobs:
                while job.results or not job.done:
                    while job.results:
                        yield job.results.popleft()
                    if not job.done:
                        self._step()
        finally:
            for worker in self._workers:
                worker.end()

    def _step(self) -> None:
        """Give out what waits, then hear what comes, or notice that nothing does."""
        idle = [worker for worker in self._workers if worker.job < 0]
        while self._waiting and (idle or len(self._workers) < self._most):
            worker = idle.pop() if idle else self._start()
            job = self._waiting.popleft()
            worker.give(job, self._jobs[job].count)
        if self._meanwhile:
            self._meanwhile()
            self._meanwhile = None
        busy = {worker.socket.fileno(): worker for worker in self._workers if worker.job >= 0}
        poll = select.poll()
        for number in busy:
            poll.register(number, select.POLLIN)
        until = min(worker.heard for worker in busy.values()) + self._patience
        ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        for number, _ in ready:
            self._hear(busy[number])
        if not ready:  # else what came while nobody listened would not count
            for worker in busy.values():
                if time.monotonic() - worker.heard >= self._patience:
                    self._replace(worker, f"nothing came of it for {seconds_text(self._patience)}")

    def _hear(self, worker: _Worker) -> None:
        messages = worker.hear()
        if messages is None:
            self._replace(worker, "")
            return
        for kind, content in messages:
            job = self._jobs[worker.job]
            if kind == _BEGUN:
                worker.reading = content
            elif kind == _RESULT:
                worker.reading = ""
                job.results.append(content)
                job.count += 1
            elif kind == _DONE:
                worker.job, job.done = -1, True

    def _replace(self, worker: _Worker, why: str) -> None:
        """Do without a worker that hangs or has died. Its job goes on after what it was at."""
        code = worker.end()
        self._workers.remove(worker)
        job = self._jobs[worker.job]
        job.tries += 1
        job.done = not worker.reading or job.tries == TRIES
        job.results.append(self._lost(worker.job, worker.reading, why or _explained(code), job.done))
        job.count += 1
        if not job.done:
            self._waiting.appendleft(worker.job)

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        me = os.getpid()
        gc.freeze()  # the collector then leaves the pages that parent and child share alone
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._serve(theirs, me)
        theirs.close()
        worker = _Worker(pid, ours)
        self._workers.append(worker)
        return worker

    def _serve(self, to_parent: socket.socket, parent_pid: int) -> NoReturn:
        """A worker's life."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            parent.follow(parent_pid)
            _limit()
            watch = Watch(to_parent)
            while task := to_parent.recv(_TASK.size, socket.MSG_WAITALL):
                job, skip = _TASK.unpack(task)
                for result in self._work(job, skip, watch):
                    watch.send(_RESULT, result)
                watch.send(_DONE)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except ConnectionError:  # the parent wants no more
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(_FAILED)
        os._exit(0)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _explained(code: int | None) -> str:
    if code == _OUT_OF_MEMORY:
        return f"it takes more than {bytes_text(MEMORY)} of memory to read"
    if code == _FAILED:
        return "its reader failed (the traceback stands on standard error)"
    return f"its reader was ended by signal {-code}" if code is not None and code < 0 else f"its reader ended with code {code}"

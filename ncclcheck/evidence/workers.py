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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from ncclcheck import parent
from ncclcheck.evidence._bounds import Bounds
from ncclcheck.evidence._streams import Late
from ncclcheck.units import bytes_text, seconds_text

PATIENCE = 20.0  # seconds in which a worker must have read something, or be done with what it reads
MEMORY = 2 << 30  # bytes that a worker may take in addition to what it begins with
GRACE = 15.0  # seconds that a worker may take longer than it should, before it is ended
MOST_JOBS = 32  # that a worker has before it at once
TRIES = 4  # workers that one job may cost before the rest of it is given up
_OFTEN = 0.2  # seconds between two signs of life, and between two looks at what was read so far
_AT_ONCE = 1 << 16  # bytes that are worth telling the parent by themselves
_OUT_OF_MEMORY, _FAILED = 77, 78  # a worker's exit codes
_TASK = struct.Struct("=QQ")  # job, results to skip
_FRAME = struct.Struct("=cQ")  # kind, bytes that follow
_BEGUN, _ALIVE, _RESULT, _DONE = b"b", b"a", b"r", b"d"

Result = TypeVar("Result")


class Watch:
    """A worker's side: what it is at, that it is alive, and how long it may take."""

    def __init__(self, to_parent: socket.socket, bounds: Bounds) -> None:
        self.bounds = bounds
        self.until = bounds.until(time.monotonic())  # when the source's time is up
        self._to_parent, self._told = to_parent, time.monotonic()
        self._unsent = bytearray()

    def begin(self, name: str) -> None:
        """From now on this is read."""
        self.until = self.bounds.until(time.monotonic())
        self.send(_BEGUN, name)
        self.flush()

    def alive(self, nbytes: int = 0) -> None:
        """So much was read, or something is waited for. Raises Late where there is no time for more."""
        if (now := time.monotonic()) - self._told > _OFTEN:
            self._told = now
            self.send(_ALIVE, nbytes)
            self.flush()
        if now >= self.bounds.end:
            raise Late(f"{self.bounds.why()}; the rest was not read")

    def send(self, kind: bytes, content: Any = None) -> None:
        """Tell the parent; waits while it is busy."""
        data = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
        self._unsent += _FRAME.pack(kind, len(data)) + data
        if len(self._unsent) > _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """What is told reaches the parent now, and not with what comes next."""
        self._to_parent.sendall(self._unsent)
        self._unsent.clear()

    def tasks(self) -> Iterator[tuple[int, int]]:
        """The jobs that the parent gives, and how many results to skip of each."""
        while True:
            try:
                task = self._to_parent.recv(_TASK.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.flush()
                task = self._to_parent.recv(_TASK.size, socket.MSG_WAITALL)
            if len(task) < _TASK.size:
                return
            yield _TASK.unpack(task)


@dataclass(slots=True)
class _Worker:
    """The parent's side of a worker."""

    pid: int
    socket: socket.socket
    jobs: deque[int] = field(default_factory=deque)  # it is at the first
    reading: str = ""  # what it has begun and not finished
    heard: float = 0.0
    begun: float = 0.0  # when it said so
    received: bytearray = field(default_factory=bytearray)

    def give(self, tasks: Sequence[tuple[int, int]]) -> None:
        self.jobs.extend(job for job, _ in tasks)
        self.reading = ""
        self.heard = self.begun = time.monotonic()
        self.socket.sendall(b"".join(_TASK.pack(*task) for task in tasks))

    def hear(self) -> list[tuple[bytes, Any]] | None:
        """The messages that have come; None if it has ended."""
        piece = b""
        with contextlib.suppress(ConnectionError):  # it died with a task unread
            piece = self.socket.recv(1 << 20)
        if not piece:
            return None
        self.heard = time.monotonic()
        self.received += piece
        messages, at = [], 0
        while len(self.received) - at >= _FRAME.size:
            kind, size = _FRAME.unpack_from(self.received, at)
            end = at + _FRAME.size + size
            if len(self.received) < end:
                break
            messages.append((kind, pickle.loads(memoryview(self.received)[at + _FRAME.size : end])))  # our own process wrote it
            at = end
        del self.received[:at]
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


class Loss(NamedTuple):
    """What a worker could not give."""

    name: str  # what it was at; "" where that is not known
    why: str
    gave_up: bool  # nothing more comes of the job
    late: bool = False  # there was no time for it


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
    a worker failed, `lost(job, loss)` stands in for the result it was at.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, int, Watch], Iterator[Result]],
        lost: Callable[[int, Loss], Result],
        patience: float = PATIENCE,
        bounds: Bounds | None = None,
        order: Sequence[int] | None = None,
        meanwhile: Callable[[], object] | None = None,
        progress: Callable[[str, int], object] | None = None,
    ) -> None:
        """`order`: the jobs, those first that must not be left undone. `meanwhile` is done here, once, when the first workers are at work.

        `progress` is told what is read and how many bytes came of it so far.
        """
        self._work, self._lost, self._patience, self._meanwhile = work, lost, patience, meanwhile
        self._bounds, self._progress = bounds or Bounds(), progress
        self._jobs: list[_Job[Result]] = [_Job() for _ in range(count)]
        self._waiting = deque(range(count) if order is None else order)
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
        if self._bounds.over():
            while self._waiting:
                self._give_up(self._waiting.popleft(), Loss("", self._bounds.why(), True, True))
        idle = [worker for worker in self._workers if not worker.jobs]
        while self._waiting and (idle or len(self._workers) < self._most):
            worker = idle.pop() if idle else self._start()
            many = max(1, min(MOST_JOBS, len(self._waiting) // (8 * self._most)))
            worker.give([(job, self._jobs[job].count) for job in (self._waiting.popleft() for _ in range(many))])
        if self._meanwhile:
            self._meanwhile()
            self._meanwhile = None
        busy = {worker.socket.fileno(): worker for worker in self._workers if worker.jobs}
        if not busy:
            return
        poll = select.poll()
        for number in busy:
            poll.register(number, select.POLLIN)
        until = min(min(worker.heard + self._patience, self._bounds.until(worker.begun) + GRACE) for worker in busy.values())
        ready = {number for number, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)}
        for number, worker in busy.items():
            if number in ready:
                self._hear(worker)
            elif (now := time.monotonic()) >= self._bounds.until(worker.begun) + GRACE:
                self._replace(worker, self._bounds.why(), late=True)
            elif not ready and now - worker.heard >= self._patience:  # else what came while nobody listened would not count
                self._replace(worker, f"nothing came of it for {seconds_text(self._patience)}")

    def _hear(self, worker: _Worker) -> None:
        messages = worker.hear()
        if messages is None:
            self._replace(worker, "")
            return
        for kind, content in messages:
            job = self._jobs[worker.jobs[0]]
            if kind == _BEGUN:
                worker.reading, worker.begun = content, time.monotonic()
            elif kind == _ALIVE and self._progress:
                self._progress(worker.reading, content)
            elif kind == _RESULT:
                worker.reading, worker.begun = "", time.monotonic()
                job.results.append(content)
                job.count += 1
            elif kind == _DONE:
                worker.jobs.popleft()
                job.done = True

    def _replace(self, worker: _Worker, why: str, late: bool = False) -> None:
        """Do without a worker that hangs or has died. Its job goes on after what it was at."""
        code = worker.end()
        self._workers.remove(worker)
        at, *others = worker.jobs
        self._waiting.extendleft(reversed(others))
        job = self._jobs[at]
        job.tries += 1
        gave_up = not worker.reading or job.tries == TRIES
        self._give_up(at, Loss(worker.reading, why or _explained(code), gave_up, late))
        if not gave_up:
            self._waiting.appendleft(at)

    def _give_up(self, at: int, loss: Loss) -> None:
        job = self._jobs[at]
        job.done = loss.gave_up
        job.results.append(self._lost(at, loss))
        job.count += 1

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
            watch = Watch(to_parent, self._bounds)
            for job, skip in watch.tasks():
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

"""The control plane on one node: meets node 0, carries out its orders on the local ranks, and ends everything it started.

The agent never joins the process group under test and never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path

from ncclcheck import examination, wire
from ncclcheck.bounded import Awake, bounded
from ncclcheck.collect import bundle
from ncclcheck.journal import Line
from ncclcheck.launch import LocalLaunch
from ncclcheck.model import Fact

POLL_BOUND = 30.0  # seconds that a look may take (/proc and disks may be slow)
TICK = 0.1  # seconds between two looks at the local ranks
SHIP = 0.5  # seconds between two reports of changes; deaths and stops are reported at once
REPEAT = 2.0
HELLO_EVERY = 1.0
_PR_SET_CHILD_SUBREAPER = 36


class NodeLost(Exception):
    """Node 0 has been silent for wire.SILENCE seconds; args: what this node's ranks were doing, as facts."""


class Paused(Exception):
    """This agent itself did not run for a while; args: how long, in seconds. It cannot judge who was silent meanwhile."""


class Agent:
    """One node's agent. `run` returns the report that node 0 sent, as JSON bytes."""

    def __init__(self, client: wire.Client, hello: wire.Hello, folder: Path, say: Callable[[str], None], pid: int | None = None) -> None:
        """`folder` is where run directories are made; `say` shows one line of progress; only `pid`'s job is examined, if given."""
        self._client = client
        self._hello = hello
        self._folder = folder
        self._say = say
        self._pid = pid
        self._run_id = ""
        self._node_rank = -1
        self._node_folder = folder
        self._awake = Awake()
        self._heard = -1.0  # waking time of node 0's last message; -1.0: never
        self._orders: deque[wire.Any_] = deque()
        self._news = asyncio.Event()
        self._launches: dict[str, LocalLaunch] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    @property
    def met(self) -> bool:
        """Whether node 0 has answered at all."""
        return self._heard >= 0

    @property
    def run_id(self) -> str:
        """This run's id, once node 0 has told it."""
        return self._run_id

    @property
    def welcomed(self) -> bool:
        """Whether the roll call was completed with this node."""
        return self._node_rank >= 0

    async def run(self) -> bytes:
        """Take orders until the verdict comes. Raises NodeLost or Paused. Whatever happens, no rank of this node outlives it."""
        always = [asyncio.create_task(work) for work in (self._awake.keep(), self._beat(), self._hear())]
        try:
            while True:
                for task in [task for task in (*self._watching.values(), *self._jobs, *always) if task.done()]:
                    self._jobs.discard(task)
                    task.result()  # an agent that cannot watch or end its ranks must say so
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._news.wait()
                self._news.clear()
                while self._orders:
                    message = self._orders.popleft()
                    if isinstance(message, wire.Result):
                        self._client.send(wire.Ack())
                        return message.report
                    self._obey(message)
                if self.met and self._awake.seconds - self._heard > wire.SILENCE:
                    if self._awake.absent > wire.PAUSE:
                        raise Paused(self._awake.absent)
                    raise NodeLost(await self._look())
        finally:
            for task in always:
                task.cancel()
            await self._end_all()

    async def _hear(self) -> None:
        """Take in what node 0 says, and that it says something."""
        while True:
            self._orders.append(await self._client.receive())
            self._heard = self._awake.seconds
            self._news.set()

    def leave(self, reason: str) -> None:
        """Tell node 0, where it listens, that this agent goes."""
        self._client.send(wire.Goodbye(reason))

    async def _beat(self) -> None:
        while True:
            self._client.send(wire.Beat() if self.welcomed else self._hello)
            await asyncio.sleep(HELLO_EVERY)

    def _obey(self, message: wire.Any_) -> None:
        match message:
            case wire.Roster(there=there, missing=missing, seconds_left=left):
                self._say(f"roll call: {', '.join(there)} here; waiting for {', '.join(missing)} ({left:.0f} s left)")
            case wire.Welcome(run_id=run_id, node_rank=node_rank):
                self._run_id, self._node_rank = run_id, node_rank
                self._node_folder = self._folder / run_id / f"node{node_rank}-{self._hello.host}"
                self._node_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            case wire.Launch():
                self._start(message)
            case wire.Collect(launch=name) if name in self._launches:
                self._spawn(self._collect(name))
            case wire.Stop(launch=name) if name in self._launches:
                self._spawn(self._stop(name))
            case wire.Examine():
                self._spawn(self._examine())

    def _start(self, order: wire.Launch) -> None:
        task = dict(self._hello.task) if self._hello.task else None
        launch = LocalLaunch(order, self._node_rank, self._node_folder, self._run_id, self._hello.host, task)
        launch.start()
        self._launches[order.id] = launch
        self._watching[order.id] = asyncio.create_task(self._watch(launch))

    async def _watch(self, launch: LocalLaunch) -> None:
        """Look at the local ranks every TICK and report what changed, and every REPEAT seconds all of it (a message may be lost)."""
        sent: dict[int, int] = {}  # rank -> writes of its slot as last sent
        lines: list[Line] = []
        shipped = repeated = 0.0
        while True:
            slots, new, beats, facts, over = await bounded(launch.poll, POLL_BOUND)
            lines += new
            now = time.monotonic()
            if now - repeated >= REPEAT:
                sent, repeated = {}, now
            changed = [slot for slot in slots if sent.get(slot.rank) != slot.writes]
            if facts or (now - shipped >= SHIP and (changed or lines or beats or over)):
                *first, last = wire.batches(lines)
                for batch in first:
                    self._client.send(wire.Progress(launch.id, [], batch, {}, []))
                self._client.send(wire.Progress(launch.id, changed, last, beats, facts, over))
                sent |= {slot.rank: slot.writes for slot in changed}
                lines, shipped = [], now
            await asyncio.sleep(TICK)

    async def _collect(self, name: str) -> None:
        launch = self._launches[name]
        facts = await launch.collect()
        slots, lines, beats, news, over = await bounded(launch.poll, POLL_BOUND)
        self._client.send(wire.Progress(name, slots, lines, beats, news, over))  # so that all nodes are seen as of now
        self._client.send(wire.Collected(name, facts))

    async def _stop(self, name: str) -> None:
        self._client.send(wire.Stopped(name, await self.end(name)))

    async def _examine(self) -> None:
        """Bundle what is seen of the jobs on this node, and send it."""
        try:
            path = await bounded(lambda: bundle.write(self._node_folder, self._pid, self._say), examination.BUNDLE_BOUND)
            pieces = examination.parts(path.read_bytes())
        except (OSError, ValueError) as error:  # TimeoutError is one
            self._client.send(wire.Examined(0, 1, b"", f"{type(error).__name__}: {error}"))
            return
        for number, piece in enumerate(pieces):
            self._client.send(wire.Examined(number, len(pieces), piece))

    async def end(self, name: str) -> list[Fact]:
        """End one launch's ranks here; what of them is left. A launch is ended once."""
        launch = self._launches.pop(name, None)
        if launch is None:
            return []
        watching = self._watching.pop(name)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        return await launch.end()

    async def _look(self) -> list[Fact]:
        """Collect from every launch of this node that is running."""
        return [fact for launch in self._launches.values() for fact in await launch.collect()]

    async def _end_all(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        for name in list(self._launches):
            await self.end(name)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._jobs.add(asyncio.create_task(work))

"""The control plane on one node: meets node 0, carries out its orders on the local ranks, and ends everything it started.

The agent never joins the process group under test and never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from ncclcheck import asking, documents, examination, fault, paths, safe_files, secrets, start, transport, wire
from ncclcheck.bounded import Awake, bounded
from ncclcheck.collect import bundle
from ncclcheck.doors import Doors
from ncclcheck.guarded import Guard
from ncclcheck.launch import LocalLaunch, Seen
from ncclcheck.masked_files import mask_files
from ncclcheck.message_limits import Invalid, one_line
from ncclcheck.model import Fact
from ncclcheck.neighbourhood import Neighbourhood
from ncclcheck.permissions import Permissions, Refused, evidence
from ncclcheck.survey import Question
from ncclcheck.trying import Trier

MASK_BOUND = 60.0  # seconds for masking what is in the logs of this node's ranks
POLL_BOUND = 30.0  # seconds that a look may take (/proc and disks may be slow)
TICK = 0.1  # seconds between two looks at the local ranks
LOOK_AFTER = 2.0  # seconds of node 0's silence after which the way to it is tried
SHIP = 0.5  # seconds between two reports of changes; deaths and stops are reported at once
REPEAT = 2.0
HELLO_EVERY = 1.0
SELDOM = 4  # signs of life, of which one is a hello
MOST_JOBS = 32  # orders that are carried out at once: node 0 waits for the answers to most of them
MOST_ORDERS = 1024  # that wait for their turn
_PR_SET_CHILD_SUBREAPER = 36


class NodeLost(Exception):
    """Node 0 has been silent for wire.SILENCE seconds; args: what this node's ranks were doing and how the network is, as facts."""


class Paused(Exception):
    """This agent itself did not run for a while; args: how long, in seconds. It cannot judge who was silent meanwhile."""


class Agent:
    """One node's agent. `run` returns the report that node 0 sent, as JSON bytes."""

    def __init__(
        self,
        client: transport.Client | transport.Local,
        hello: wire.Hello,
        folder: Path,
        say: Callable[[str], None],
        permissions: Permissions,
        master: str,
        doors: Doors,
    ) -> None:
        """`folder` is where run directories are made; `say` shows one line of progress; `master` is node 0's address.

        `permissions`: what this node's user lets node 0 order. `doors` are where others try the ways to this node.
        """
        self._client = client
        self._hello = hello
        self._folder = folder
        self._say = say
        self._permissions = permissions
        self._master = master
        self._run_id = ""
        self._seen: set[str] = set()  # probes that came to their end here
        self._node_rank = -1
        self._node_folder = folder
        self._doors = doors
        self._around = Neighbourhood(hello.host, doors.first)
        self._trier = Trier(hello.host, doors)
        self._looking: asyncio.Task[list[Fact]] | None = None  # at the network, while node 0 is silent
        self._awake = Awake()
        self._heard = -1.0  # waking time of node 0's last message; -1.0: never
        self._orders: deque[wire.Any_] = deque()
        self._news = asyncio.Event()
        self._launches: dict[str, LocalLaunch] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._faults: dict[str, fault.Spec] = {}  # launch -> what was ordered to break it, and is permitted
        self._guards: dict[str, Guard] = {}  # launch -> what breaks this node during it
        self._ending: dict[str, asyncio.Task[list[Fact]]] = {}  # launch -> its end, which nothing cuts short
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

    @property
    def seen(self) -> frozenset[str]:
        """The probes in which this node took part: its ranks came to their end, or it said what it has (one of several agents of a node does)."""
        return frozenset(self._seen) | (self._permissions.of_nodes if self._hello.task else frozenset())

    @property
    def lost_node0(self) -> Fact:
        """What is to be said of node 0 when it is lost; its host is None where it never said its name."""
        node0, fell_silent = self._around.node0, time.monotonic() - (self._awake.seconds - self._heard)
        fields = {"node_rank": 0, "reason": f"silent for {wire.SILENCE:g} s", "closed": wire.ended(self._client.closed, fell_silent)}
        return Fact("agent-lost", node0.host if node0 else None, fields=fields)

    async def run(self) -> bytes:
        """Take orders until the verdict comes. Raises NodeLost or Paused; Refused for an order that this node's user did not permit, and
        Invalid for what no node 0 of this version sends. Whatever happens, no rank of this node outlives it.
        """
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
                self._look_around()
                if self.met and self._awake.seconds - self._heard > wire.SILENCE:
                    if self._awake.absent > wire.PAUSE:
                        raise Paused(self._awake.absent)
                    seen = await self._look()
                    if self._guards:  # node 0 is looking at the way, too, and must not find it mended
                        await asyncio.sleep(wire.BEAT + paths.WHOLE)
                    raise NodeLost(seen)
        finally:
            for task in always:
                task.cancel()
            self._around.rest()
            self._trier.rest()
            if self._looking:
                self._looking.cancel()
            await self._end_all()
            await self._mask_logs()

    async def _hear(self) -> None:
        """Take in what node 0 says, and that it says something."""
        while True:
            self._orders.append(wire.decode(await self._client.receive()))
            if len(self._orders) > MOST_ORDERS:
                raise Invalid(f"more than {MOST_ORDERS} messages at once")
            self._heard = self._awake.seconds
            self._news.set()

    def _is_own_door(self, address: str) -> bool:
        return any(echo.address == address for echo in self._doors.echoes)

    def leave(self, reason: str) -> None:
        """Tell node 0, where it listens, that this agent goes."""
        self._client.send(wire.Goodbye(one_line(reason)))

    async def _beat(self) -> None:
        """Say hello until the roll call is over; seldom, once node 0 has heard it: then it beats back, and thousands of hellos are its work."""
        for turn in itertools.count():
            await self._client.connected()
            heard = self.met and self._awake.seconds - self._heard < LOOK_AFTER
            self._client.send(wire.Beat() if self.welcomed or (heard and turn % SELDOM) else self._hello)
            await asyncio.sleep(HELLO_EVERY)

    def _obey(self, message: wire.Any_) -> None:
        match message:
            case wire.Roster(there=there, missing=missing, seconds_left=left):
                self._say(f"roll call: {', '.join(there)} here; waiting for {', '.join(missing)} ({left:.0f} s left)")
            case wire.Welcome() if not self.welcomed:
                self._join(message)
            case _ if not self.welcomed:
                pass  # no order counts before there is a run
            case wire.Survey():
                self._permissions.survey(message)
                self._seen |= self._permissions.of_nodes
                self._spawn(self._survey(message))
            case wire.Launch() if message.id not in self._launches and message.id not in self._ending:
                self._start(message)
            case wire.Collect(launch=name) if name in self._launches:
                self._spawn(self._collect(message))
            case wire.Collect(launch=name):  # it has ended here
                self._client.send(wire.Collected(name, []))
            case wire.Stop(launch=name):
                self._spawn(self._stop(name))
            case wire.Strike(launch=name) if name in self._faults and name in self._launches:
                self._spawn(self._strike(message, self._faults.pop(name)))
            case wire.Try():
                self._permissions.ways(message, self._is_own_door, self._master)
                self._spawn(self._try(message))
            case wire.Examine():
                self._permissions.examine()
                self._spawn(self._examine())

    def _join(self, order: wire.Welcome) -> None:
        """The roll is complete, and this node has its number. Raises Refused for a number that is not its own, or peers that are no nodes."""
        if order.node_rank >= self._hello.nnodes or self._hello.node_rank not in (None, order.node_rank):
            raise Refused(f"the number {order.node_rank} was given to this node")
        self._permissions.peers([*order.peers, *filter(None, [order.node0])], self._master)
        self._around.learn(order.node_rank, order.peers, order.node0)
        self._run_id, self._node_rank = order.run_id, order.node_rank
        self._node_folder = safe_files.folder(self._folder, order.run_id, f"node{order.node_rank}-{self._hello.host}")

    async def _survey(self, order: wire.Survey) -> None:
        """Say what this node is and has."""
        try:
            found = await asking.inventory(self._question(order), order.sections, {"NCCLCHECK_RUN": self._run_id})
            self._client.send(wire.Surveyed(documents.pack(found)))
            with contextlib.suppress(OSError):  # a copy for people: a full disk is no reason to give no answer
                told = msgspec.json.format(msgspec.json.encode(found))
                await bounded(safe_files.write, POLL_BOUND, self._node_folder / "inventory.json", told)
        except (OSError, ValueError) as error:  # TimeoutError is one
            self._client.send(wire.Surveyed(b"", one_line(str(error))))

    def _question(self, order: wire.Survey) -> Question:
        each = self._hello.task["local_world_size"] if self._hello.task else self._hello.nproc_per_node
        model = self._permissions.asked.probe_options.get("model")
        return Question(evidence(records=order.records, times=True), each, self._master, self._hello.echo[0], order.peers, model)

    def _start(self, order: wire.Launch) -> None:
        """Raises Refused for what this node's user did not ask for, and for a second launch beside one that runs."""
        if self._launches:
            raise Refused(f"the launch {order.id} was ordered while {next(iter(self._launches))} runs")
        added = self._permissions.launch(order, self._node_rank, self._hello.nnodes, self._hello.nproc_per_node)
        job = start.Job(order.id, order.probes, self._master, order.port, order.nnodes, order.nproc_per_node, added)
        if spec := fault.given(added):
            self._faults[order.id] = spec
        task = None if self._hello.task is None else {name: int(number) for name, number in self._hello.task.items() if isinstance(number, int)}
        launch = LocalLaunch(job, self._node_rank, self._node_folder, self._run_id, self._hello.host, task)
        self._around.begin()
        launch.start()
        self._launches[order.id] = launch
        self._watching[order.id] = asyncio.create_task(self._watch(launch))

    async def _watch(self, launch: LocalLaunch) -> None:
        """Look at the local ranks every TICK and report what changed, and every REPEAT seconds all of it (a message may be lost)."""
        sent: dict[int, int] = {}  # rank -> writes of its slot as last sent
        shipped = repeated = 0.0
        while True:
            await bounded(launch.poll, POLL_BOUND)
            now = time.monotonic()
            if launch.urgent or now - shipped >= SHIP:
                if now - repeated >= REPEAT:
                    sent, repeated = {}, now
                seen = launch.take()
                changed = [slot for slot in seen.slots if sent.get(slot.rank) != slot.writes]
                if changed or seen.lines or seen.beats or seen.facts or seen.over:
                    self._ship(launch.id, replace(seen, slots=changed))
                    sent |= {slot.rank: slot.writes for slot in changed}
                    shipped = now
            await asyncio.sleep(TICK)

    def _ship(self, name: str, seen: Seen) -> None:
        """Report what was seen, in as many messages as its journal lines need."""
        *first, last = wire.batches(seen.lines)
        now = time.monotonic()
        for batch in first:
            self._client.send(wire.Progress(name, [], batch, {}, [], sent=now))
        rest = (seen.beats, secrets.mask_as(seen.facts, list[Fact]), seen.over, now, seen.blocks, seen.starved)
        self._client.send(wire.Progress(name, seen.slots, last, *rest))

    async def _collect(self, order: wire.Collect) -> None:
        name, launch = order.launch, self._launches[order.launch]
        await bounded(launch.poll, POLL_BOUND)
        looks = [look for wanted, look in ((order.ranks, partial(launch.collect, order.recorder)), (order.network, self._around.look)) if wanted]
        seen = await asyncio.gather(*(look() for look in looks))
        facts = [fact for part in seen for fact in part]
        await bounded(launch.poll, POLL_BOUND)
        self._ship(name, launch.take())  # so that all nodes are seen as of now
        self._client.send(wire.Collected(name, secrets.mask_as(facts, list[Fact])))

    async def _strike(self, order: wire.Strike, spec: fault.Spec) -> None:
        """Break this node as it was permitted when the launch began; node 0 hears where that cannot be done."""
        launch = self._launches[order.launch]
        guard = self._guards[order.launch] = Guard(spec.name, launch.place(spec.rank, order.others, order.ports))
        if reason := await guard.struck():
            refused = Fact("not-planted", self._hello.host, spec.rank, fields={"fault": spec.name, "reason": reason})
            self._client.send(wire.Progress(order.launch, [], [], {}, [refused]))

    async def _try(self, order: wire.Try) -> None:
        self._client.send(await self._trier.answer(order, self._node_rank))

    async def _stop(self, name: str) -> None:
        left = await self.end(name)
        self._client.send(wire.Stopped(name, left + await self._around.outages()))

    async def _examine(self) -> None:
        """Bundle what is seen of the jobs on this node, and send it."""
        try:
            path = await bounded(lambda: bundle.write(self._node_folder, self._permissions.asked.examine_pid, self._say), examination.BUNDLE_BOUND)
            pieces = examination.parts(path.read_bytes())
        except (OSError, ValueError) as error:  # TimeoutError is one
            self._client.send(wire.Examined(0, 1, b"", one_line(f"{type(error).__name__}: {error}")))
            return
        for number, piece in enumerate(pieces):
            self._client.send(wire.Examined(number, len(pieces), piece))

    async def end(self, name: str) -> list[Fact]:
        """End one launch's ranks here; what of them is left. A launch is ended once, and to its end: who is cancelled only does not hear of it."""
        self._begin_to_end(name)
        return await asyncio.shield(self._ending[name]) if name in self._ending else []

    def _begin_to_end(self, name: str) -> None:
        if name in self._launches:
            if self._launches[name].completed:
                self._seen.update(self._launches[name].probes)
            self._ending[name] = asyncio.create_task(self._end(name, self._launches.pop(name)))

    async def _end(self, name: str, launch: LocalLaunch) -> list[Fact]:
        if guard := self._guards.pop(name, None):
            await guard.undo()
        watching = self._watching.pop(name)
        watching.cancel()
        await asyncio.wait([watching])  # however it ended: run() has heard of it, or will not any more
        return await launch.end()

    def _look_around(self) -> None:
        """While node 0 is silent, look at the network once: when it counts as lost, it is known why."""
        silent = self.met and self._awake.seconds - self._heard > LOOK_AFTER
        if silent and not self._looking:
            self._looking = asyncio.create_task(self._around.look([self._around.node0] if self._around.node0 else []))
        elif not silent and self._looking:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> list[Fact]:
        """Collect from every launch of this node that is running, and from the network."""
        self._look_around()
        looking = [self._looking] if self._looking else []
        seen = await asyncio.gather(*(launch.collect() for launch in self._launches.values()), *looking)
        return [fact for part in seen for fact in part]

    async def _end_all(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        for name in list(self._launches):
            self._begin_to_end(name)
        while pending := [ending for ending in self._ending.values() if not ending.done()]:
            with contextlib.suppress(asyncio.CancelledError):  # who is in a hurry waits, too: each end has its bound
                await asyncio.wait(pending)
        for ending in self._ending.values():
            ending.result()

    async def _mask_logs(self) -> None:
        """Mask the secrets in what ranks and libraries wrote into this node's folder, now that nobody writes there."""
        if not self.welcomed:
            return
        masking = asyncio.create_task(bounded(mask_files, MASK_BOUND, self._node_folder))
        while not masking.done():
            with contextlib.suppress(asyncio.CancelledError):  # as above
                await asyncio.wait([masking])
        if error := masking.exception():
            self._say(f"secrets may stand in {self._node_folder}: {str(error) or 'its files were not read in time'}")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Raises Invalid where node 0 orders more than it can wait for."""
        self._jobs.add(asyncio.create_task(work))
        if len(self._jobs) > MOST_JOBS:
            raise Invalid(f"more than {MOST_JOBS} orders at once")

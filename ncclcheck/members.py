"""The agents as node 0 hears them: who is there, who fell silent, what each answered to an order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from ncclcheck import arrivals, paths, transport, wire
from ncclcheck.arrivals import MOST_BYTES_OF_A_RANK, MOST_VALUES_OF_A_RANK, Sender
from ncclcheck.bounded import Awake
from ncclcheck.examination import Bundles
from ncclcheck.latecomers import Latecomers
from ncclcheck.message_limits import Invalid, Room, one_line
from ncclcheck.model import Fact
from ncclcheck.rollcall import Roll
from ncclcheck.watch import View

ACK_BOUND = 5.0  # seconds in which every node must have acknowledged the verdict
MOST_INVALID = 64  # senders of invalid messages that are remembered
TURN = 0.1  # seconds after which a condition is looked at again, whatever was heard; and for which messages are taken in without a break
LOOKING = 0.1  # of the time at most: what thousands of nodes say in a row is looked at once


class AgentLost(Exception):
    """An agent said goodbye or fell silent; args: its node number, the reason."""


class Members:
    """Everybody who said hello; after `settle`, those who take part."""

    def __init__(self, server: transport.Server, roll: Roll, refusal: Callable[[Sequence[wire.Hello]], bytes]) -> None:
        """`refusal` makes the report for agents that come when the roll is complete."""
        self._server = server
        self._roll = roll
        self._late = Latecomers(refusal, server.send)
        self._numbers: dict[bytes, int] = {}  # who takes part now
        self._settled: dict[bytes, int] = {}  # who did at the roll call,
        self._hellos: dict[int, wire.Hello] = {}  # and what they said of themselves
        self._peers: dict[int, bytes] = {}  # number -> who had it then
        self._awake = Awake()
        self._heard: dict[bytes, float] = {}  # by our own waking time
        self._welcomes: dict[bytes, wire.Welcome] = {}
        self._left: dict[bytes, str] = {}  # who said goodbye, and why
        self._tried: dict[int, wire.Tried] = {}
        self._answers: dict[tuple[type, str], dict[bytes, list[Fact]]] = {}
        self._surveyed: dict[int, wire.Surveyed] = {}
        self._acks: set[bytes] = set()
        self._news = asyncio.Event()
        self._run_id = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._said: dict[bytes, tuple[str, int, Room]] = {}  # who -> a launch, the bytes of what was reported of it, and the room for more
        self.invalid: dict[bytes, Fact] = {}  # who sent what no agent of this version sends, and is heard no more
        self.view: View | None = None  # the launch whose progress is taken in
        self.probes: Sequence[str] = ()  # that it runs
        self.bundles: Bundles | None = None  # where bundles are awaited

    def open(self) -> None:
        """Begin to listen."""
        always = (self._awake.keep(), self._listen(), self._beat(), self._late.answer())
        self._tasks = [asyncio.create_task(work) for work in always]

    def close(self) -> None:
        """Listen no more."""
        for task in self._tasks:
            task.cancel()

    @property
    def settled(self) -> bool:
        """Whether the roll call was completed."""
        return bool(self._run_id)

    def settle(self, run_id: str) -> None:
        """The roll is complete: everybody gets a number and the run's id, and counts from now on."""
        self._run_id, self._numbers = run_id, self._roll.numbers()
        self._settled = dict(self._numbers)
        self._hellos = {number: self._roll.hellos[peer] for peer, number in self._numbers.items()}
        self._peers = {number: peer for peer, number in self._numbers.items()}
        nodes = [self.place(number) for number in self._numbers.values()]
        node0, near = next((node for node in nodes if node.node_rank == 0), None), paths.neighbourhoods(nodes)
        self._welcomes = {peer: wire.Welcome(run_id, number, near.get(number, []), node0) for peer, number in self._numbers.items()}
        for peer, welcome in self._welcomes.items():
            self._server.send(peer, welcome)

    def place(self, number: int) -> wire.Peer:
        """A node as others find it."""
        hello = self.hellos()[number]
        return wire.Peer(number, hello.host, *hello.echo, hello.secret)

    def hellos(self) -> Mapping[int, wire.Hello]:
        """Number -> what that agent said of itself; before `settle` the numbers are provisional."""
        return self._hellos if self.settled else dict(enumerate(self._roll.hellos.values()))

    def drop_silent(self, seconds: float) -> None:
        """Strike from the roll who has said nothing for so long."""
        for peer in [peer for peer in self._roll.hellos if self._awake.seconds - self._heard[peer] > seconds]:
            self._roll.drop(peer)

    def drop(self, number: int) -> None:
        """A lost agent takes part no more."""
        self._numbers.pop(self._peers[number], None)

    def drop_lost(self, number: int, reason: str) -> list[Fact]:
        """Drop one that is lost, and whoever else is by now; a fact of kind "agent-lost" for each.

        `closed`: its connection was ended from there when it fell silent, so its host and the network between worked.
        """
        silent = [other for peer, other in self._numbers.items() if other and self._awake.seconds - self._heard[peer] > wire.SILENCE]
        lost = {**dict.fromkeys(silent if number else [], f"silent for {wire.SILENCE:g} s"), number: reason}
        for other in lost:
            self.drop(other)
        return [
            Fact(
                "agent-lost",
                self._hellos[other].host,
                fields={"node_rank": other, "reason": why, "closed": self._has_closed(self._peers[other])},
            )
            for other, why in lost.items()
        ]

    def _has_closed(self, peer: bytes) -> bool:
        hello, fell_silent = self._roll.hellos[peer], time.monotonic() - (self._awake.seconds - self._heard[peer])
        ends = [self._server.closed.get(address) for found in hello.addresses.values() for address in found]
        return any(wire.ended(end, fell_silent) for end in ends)

    def tell(self, message: wire.Message) -> None:
        """Send to everybody who takes part; before `settle`, to everybody who said hello."""
        self._server.send_all(self._numbers or self._roll.hellos, message)

    def order(self, number: int, message: wire.Message) -> None:
        """Send to one node."""
        if self._peers[number] in self._numbers:
            self._server.send(self._peers[number], message)

    async def until(self, predicate: Callable[[], object], seconds: float) -> bool:
        """Wait until something holds; False after `seconds`. Raises AgentLost when a node that takes part is gone."""
        now = time.monotonic()
        end = now + seconds
        while not predicate():
            for task in self._tasks:
                if task.done():
                    task.result()  # it ends by an error only: who does not hear must not judge
            for peer, number in self._numbers.items():
                if peer in self._left:
                    raise AgentLost(number, self._left[peer])
                if self._awake.seconds - self._heard[peer] > wire.SILENCE:
                    raise self._silent(number)
            if now >= end:
                return False
            looked = time.monotonic() - now
            await asyncio.sleep(min(TURN, looked * (1 / LOOKING - 1)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(TURN, end - now)):  # (wait_for of Python 3.11 may swallow an interrupt)
                    await self._news.wait()
            self._news.clear()
            now = time.monotonic()
        return True

    def _silent(self, number: int) -> AgentLost:
        """Who is lost when one of two does not hear the other: the one that was away."""
        if self._awake.absent > wire.PAUSE:
            return AgentLost(0, f"it was itself stopped for {self._awake.absent:.0f} s")
        return AgentLost(number, f"silent for {wire.SILENCE:g} s")

    async def ask(self, order: wire.Collect | wire.Stop, answer: type, seconds: float, unless: Callable[[], object] = lambda: False) -> list[Fact]:
        """Send an order to every node and gather the answers; a node that gives none in time, or before `unless`, is a fact of kind "no-answer"."""
        answers = self._answers[answer, order.launch] = {}  # afresh: what was answered to an earlier question is old
        self.tell(order)
        await self.until(lambda: answers.keys() >= self._numbers.keys() or unless(), seconds)
        del self._answers[answer, order.launch]
        silent = [self._roll.hellos[peer].host for peer in self._numbers if peer not in answers]
        return [
            *(fact for facts in answers.values() for fact in facts),
            *(Fact("no-answer", host, fields={"order": type(order).__name__, "seconds": seconds}) for host in silent),
        ]

    def answered(self, answer: type, launch: str) -> list[Fact] | None:
        """What everybody who still takes part has answered to a question that a loss cut short; None where somebody has not."""
        answers = self._answers.get((answer, launch), {})
        return [fact for facts in answers.values() for fact in facts] if answers and answers.keys() >= self._numbers.keys() else None

    async def survey(self, orders: Mapping[int, wire.Survey], seconds: float, at_once: int) -> dict[int, wire.Surveyed]:
        """Ask each of these nodes its question, at most so many at a time; node -> its answer. Who gives none in time is left out.

        Emulated nodes share this machine: asked all at once, they would be late for want of it.
        """
        self._surveyed = {}
        todo, until = deque(orders), dict[int, float]()
        while todo or until:
            while todo and len(until) < at_once:
                number = todo.popleft()
                until[number] = time.monotonic() + seconds
                self.order(number, orders[number])
            await self.until(partial(self._any_surveyed, until), next(iter(until.values())) - time.monotonic())
            for number in until.keys() & self._surveyed.keys():
                del until[number]
            while until and next(iter(until.values())) <= time.monotonic():  # the first asked is the first to be late
                del until[next(iter(until))]
        return dict(self._surveyed)

    def _any_surveyed(self, asked: Mapping[int, float]) -> bool:
        return not self._surveyed.keys().isdisjoint(asked)

    async def examine(self, bundles: Bundles, seconds: float) -> dict[int, str]:
        """Have every node bundle what it sees; node -> why nothing came of it, for each that could not, or not in time.

        A node that is lost meanwhile does not end it: what the others see is wanted all the more. Raises AgentLost for node 0.
        """
        self.bundles = bundles
        self.tell(wire.Examine())
        lost: dict[int, str] = {}
        end = time.monotonic() + seconds
        while True:
            try:
                await self.until(lambda: bundles.done() >= set(self._numbers.values()), end - time.monotonic())
                break
            except AgentLost as gone:
                number, reason = gone.args
                if number == 0:
                    raise
                self.drop(number)
                lost[number] = f"its agent was lost: {reason}"
        self.bundles = None  # what comes now is too late
        late = {number: f"nothing came in {seconds:g} s" for number in self._numbers.values()}
        return {number: why for number, why in (late | lost | bundles.failed).items() if number not in bundles.whole()}

    async def try_ways(self, orders: Mapping[int, wire.Try], seconds: float) -> dict[int, wire.Tried]:
        """Have each of these nodes try its ways, all in one round; node -> its answer. Who gives none in time is left out."""
        rounds = {number: order.round for number, order in orders.items()}
        self._tried = {}
        for number, order in orders.items():
            self.order(number, order)
        await self.until(lambda: all(number in self._tried and self._tried[number].round == rounds[number] for number in rounds), seconds)
        return {number: told for number, told in self._tried.items() if rounds.get(number) == told.round}

    async def publish(self, report: bytes) -> None:
        """Give everybody the report and wait, bounded, until each has it."""
        peers = list(self._numbers or self._roll.hellos)
        self.tell(wire.Result(report))
        for peer in self._settled.keys() - self._numbers.keys():  # who is lost may hear us even so
            self._server.send(peer, wire.Result(report))
        with contextlib.suppress(Exception):  # the report stands, whoever is lost now
            await self.until(lambda: self._acks.issuperset(peers), ACK_BOUND)

    async def _listen(self) -> None:
        until = time.monotonic() + TURN
        while True:
            if time.monotonic() > until:  # where messages wait, to receive one lets nobody else have its turn
                await asyncio.sleep(0)
                until = time.monotonic() + TURN
            peer, data = await self._server.receive()
            if peer in self.invalid:
                continue
            try:
                self._take_in(peer, wire.decode(data), len(data))
            except Exception as error:  # whatever a peer says must not end the run
                self._refuse(peer, str(error) if isinstance(error, Invalid) else f"{type(error).__name__}: {error}")
            self._news.set()

    def _refuse(self, peer: bytes, reason: str) -> None:
        """Hear this peer no more: it said what no agent of this version says."""
        number, hello = self._numbers.get(peer), self._roll.hellos.get(peer)
        if len(self.invalid) < MOST_INVALID:
            fields = {"node_rank": number, "reason": one_line(reason)}
            self.invalid[peer] = Fact("invalid-message", hello.host if hello else self._server.address(peer) or None, fields=fields)
        self._server.end(peer)
        if number is not None:
            self._left[peer] = f"it sent an invalid message: {one_line(reason)}"
        elif not self.settled:
            self._roll.drop(peer)

    def _take_in(self, peer: bytes, message: wire.Any_, nbytes: int) -> None:
        """What one peer says. Raises Invalid, or whatever it leads to where it is not what it should be."""
        match message:
            case wire.Hello() if not self.settled and (peer in self._roll.hellos or len(self._roll.hellos) < self._server.most):
                arrivals.hello(message, nbytes)
                self._heard[peer] = self._awake.seconds
                self._roll.add(peer, message)
            case wire.Hello() if not self.settled:
                self._server.end(peer)
            case wire.Hello() if peer in self._numbers:  # our welcome was lost
                self._heard[peer] = self._awake.seconds
                self._server.send(peer, self._welcomes[peer])
            case wire.Hello():
                self._late.add(peer, message, message.node_rank if message.node_rank in self._peers else None)
            case wire.Beat() if peer in self._roll.hellos and not self.settled:
                self._heard[peer] = self._awake.seconds
            case wire.Ack() if peer in self._settled or peer in self._roll.hellos:
                self._acks.add(peer)
            case wire.Goodbye(reason=reason) if peer in self._roll.hellos:
                self._left[peer] = reason
                if not self.settled:
                    self._roll.drop(peer)
            case _ if peer in self._numbers:
                self._heard[peer] = self._awake.seconds
                self._take_in_from_node(peer, message, nbytes)

    def _take_in_from_node(self, peer: bytes, message: wire.Any_, nbytes: int) -> None:
        """What a node that takes part says of itself."""
        number, folder = self._numbers[peer], self._folder(peer)
        sender = Sender.of(number, self._roll.hellos[peer], self.probes)
        match message:
            case wire.Progress() if self.view and message.launch == self.view.launch:
                sender = replace(sender, room=self._room(peer, message.launch, nbytes, len(sender.ranks)))
                self.view.update(peer, number, folder, arrivals.progress(message, sender), time.monotonic())
            case wire.Collected() | wire.Stopped() if (answers := self._answers.get((type(message), message.launch))) is not None:
                answers[peer] = [fact.placed(folder) for fact in arrivals.facts(message.facts, sender)]
            case wire.Surveyed():
                self._surveyed[number] = message
            case wire.Examined(part=part, count=count, data=data, error=error) if self.bundles:
                self.bundles.add(number, part, count, data, error)
            case wire.Tried():
                self._tried[number] = msgspec.structs.replace(message, facts=arrivals.facts(message.facts, sender))

    def _room(self, peer: bytes, launch: str, nbytes: int, ranks: int) -> Room:
        """For what a node says of one launch. Raises Invalid where it reports more than its ranks can have to say."""
        known, before, room = self._said.get(peer, ("", 0, None))
        if room is None or known != launch:
            before, room = 0, Room(MOST_VALUES_OF_A_RANK * (1 + ranks))
        self._said[peer] = launch, nbytes + before, room
        if nbytes + before > (most := MOST_BYTES_OF_A_RANK * (1 + ranks)):
            raise Invalid(f"more than {most >> 20} MiB of progress in one launch")
        return room

    async def _beat(self) -> None:
        while True:
            self.tell(wire.Beat())
            await asyncio.sleep(wire.BEAT)

    def _folder(self, peer: bytes) -> str:
        return folder(self._numbers[peer], self._roll.hellos[peer].host)


def folder(number: int, host: str) -> str:
    """A node's part of the run directory."""
    return f"node{number}-{host}"

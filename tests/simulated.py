"""Agents of many nodes in one process: they speak to node 0 as real ones do, over real connections, and start nothing.

python simulated.py PORT FIRST COUNT NODES RANKS

Their ranks issue the same collective CALLS times a second, all in step. What is to happen is said on standard input, a line each:

    go AT       the agents connect and say hello, one after the other; their ranks have run since then (time.monotonic())
    stall AT    the last rank of all issues no call after this moment (time.monotonic())
    late COUNT  so many more agents come, one after the other; each wants to be told that it is too late

Standard output has a line of JSON for each of these that is over, and one at the end of the run (see `Seen`).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ncclcheck import asking, documents, history, journal, received, registry, transport, wire
from ncclcheck.agent import HELLO_EVERY, LOOK_AFTER, REPEAT, SELDOM, SHIP
from ncclcheck.journal import Line, Slot
from ncclcheck.launch import MOST_CALLS
from ncclcheck.model import Evidence, Fact, Sample
from ncclcheck.survey import Question

KEY = bytes(32)
MASTER = "127.0.0.1"
CALLS = 20.0  # collectives a second
WORK = 0.8  # of the time between two calls, outside of them
BOUND = 2.0  # seconds without progress that the ranks call normal: the least there is
APART = 0.001  # seconds between two agents of this process
AT_ONCE = 100  # of those that come too late
PATIENCE = 60.0  # seconds that one of them waits for its answer
FRAMES = [
    f"{name} (site-packages/torch/{name}.py:{100 + at})" for at, name in enumerate(["wait", "synchronize", "backward", "step", "train", "main"])
]


@dataclass
class Seen:
    """What these agents went through; times are time.monotonic(), 0.0 where it never came to that."""

    launched: int = 0  # how many were told to start ranks
    ended: int = 0  # how many got the verdict,
    lost: int = 0  # and how many heard nothing for so long that a real one would have given node 0 up
    silence: float = 0.0  # the longest that any of them heard nothing, in seconds
    asked: float = 0.0  # when the first was asked what it sees
    stopped: float = 0.0  # when the last said that its ranks are gone
    told: float = 0.0  # when the first got the verdict,
    all_told: float = 0.0  # and the last
    cpu: float = 0.0  # seconds of CPU that this process took
    causes: Sequence[str] = ()  # what the verdict says
    ranks: Sequence[int] = ()


@dataclass
class Job:
    """What all nodes run."""

    nodes: int
    ranks: int  # of each node
    began: float = 0.0  # time.monotonic()
    stall: float = float("inf")
    _inventory: asyncio.Future[bytes] | None = None

    @functools.cached_property
    def sample(self) -> dict[str, Any]:
        """What every rank measured."""
        return journal.sample_fields(Sample("all_reduce", 2**20, "float32", self.nodes * self.ranks, [0.01] * 20, 1.0, True))

    async def inventory(self, order: wire.Survey) -> bytes:
        """What is read of this machine stands for every node, without its names and addresses."""
        if self._inventory is None:
            self._inventory = asyncio.get_running_loop().create_future()
            question = Question({}, self.ranks, MASTER, "10.0.0.1", order.peers, None)
            found = await asking.inventory(question, order.sections, {})
            self._inventory.set_result(documents.pack(found | {"interfaces": {"error": "simulated"}}))
        return await self._inventory

    def slot(self, rank: int, now: float) -> Slot:
        """Where a rank is at a moment."""
        stuck = min(now, self.stall) - self.began
        seq = int(stuck * CALLS)
        inside = stuck * CALLS - seq > WORK
        if now > self.stall:  # all others are inside the call after the last that this rank issued
            inside = rank != self.nodes * self.ranks - 1
            seq += inside
        at = self.began + seq / CALLS
        left = None if inside else at + 0.001
        worked, waited = seq / CALLS * WORK, seq / CALLS * (1 - WORK)
        return Slot(
            1000 + rank, rank, seq, 2**20, at, left, BOUND, False, False, False, worked, waited, 4711, 1, 2 * seq + (not inside), "all_reduce",
            "world", "float32",
        )  # fmt: skip


class Node:
    """One agent."""

    def __init__(self, number: int, job: Job, port: int, seen: Seen) -> None:
        self._number, self._job, self._seen = number, job, seen
        self._host = f"gpu-{number:04d}"
        self._client = transport.Client(f"tcp://{MASTER}:{port}", KEY)
        self._heard = 0.0
        self._welcomed = False

    async def run(self) -> None:
        """From hello to the verdict."""
        hello = self.hello(self._number)
        tasks = [asyncio.create_task(self._beat(hello))]
        try:
            while True:
                message = wire.decode(await self._client.receive())
                now = time.monotonic()
                if self._heard:
                    self._seen.silence = max(self._seen.silence, now - self._heard)
                self._heard = now
                match message:
                    case wire.Welcome():
                        self._welcomed = True
                    case wire.Survey():
                        self._client.send(wire.Surveyed(await self._job.inventory(message)))
                    case wire.Try():
                        self._client.send(wire.Tried(message.round, [self._way(target) for target in message.targets]))
                    case wire.Launch():
                        self._seen.launched += 1
                        tasks.append(asyncio.create_task(self._ship(message)))
                    case wire.Collect(launch=launch, ranks=ranks):
                        self._seen.asked = self._seen.asked or now
                        self._client.send(wire.Collected(launch, self._look() if ranks else []))
                    case wire.Stop(launch=launch):
                        tasks[-1].cancel()
                        self._client.send(wire.Stopped(launch, []))
                        self._seen.stopped = time.monotonic()
                    case wire.Result(report=report):
                        self._client.send(wire.Ack())
                        self._end(report, now)
                        return
        finally:
            for task in tasks:
                task.cancel()
            await self._client.close()

    def hello(self, number: int | None) -> wire.Hello:
        """What it says of itself."""
        high, low = divmod(self._number, 250)
        address = f"10.0.{high}.{low + 1}"
        each = self._job.ranks
        gpus = [
            wire.Gpu(
                index=at, name="NVIDIA H100", uuid=f"GPU-{self._number}-{at}", pci_bus_id=f"0000:{at:02x}:00.0",
                memory_total=80 * 2**30, memory_used=0, processes=[],
            )
            for at in range(each)
        ]  # fmt: skip
        doors = [wire.Door(f"ib{at}", f"10.{at + 1}.{high}.{low + 1}", 9, 1500, 16, "up") for at in range(2)]
        addresses = {"eth0": [address], "lo": ["127.0.0.1"], **{door.interface: [door.address] for door in doors}}
        versions = {"torch": "2.13.0", "vllm": None, "ray": None, "nvidia-nccl-cu12": "2.28.9"}
        return wire.Hello(
            wire.PROTOCOL, "test", self._job.nodes, number, each, self._host, os.getpid(), "flags", addresses, gpus, versions, True, None,
            (address, 9), doors, permits=wire.Permits(registry.names("probes")),
        )  # fmt: skip

    async def _beat(self, hello: wire.Hello) -> None:
        for turn in itertools.count():
            heard = time.monotonic() - self._heard < LOOK_AFTER
            self._client.send(wire.Beat() if self._welcomed or (heard and turn % SELDOM) else hello)
            if self._heard and time.monotonic() - self._heard > wire.SILENCE:
                self._seen.lost += 1
                self._heard = 0.0
            await asyncio.sleep(HELLO_EVERY)

    async def _ship(self, order: wire.Launch) -> None:
        """Report where the ranks are, as the agent does: what changed each SHIP seconds."""
        first = self._number * self._job.ranks
        ranks = range(first, first + self._job.ranks)
        lines = [line for rank in ranks for line in self._started(rank, order)]
        writes: dict[int, int] = {}
        compared, repeated = 0, 0.0
        await asyncio.sleep(SHIP * self._number / self._job.nodes)  # not all at the same moment
        while True:
            now = time.monotonic()
            if now - repeated >= REPEAT:
                writes, repeated = {}, now
            slots = [self._job.slot(rank, now) for rank in ranks]
            changed = [slot for slot in slots if writes.get(slot.rank) != slot.writes]
            writes |= {slot.rank: slot.writes for slot in changed}
            complete = slots[0].seq // history.BLOCK
            blocks = {slot.rank: [(complete * history.BLOCK, 2**63 + complete)] for slot in slots} if complete > compared else {}
            compared = complete
            starved = dict.fromkeys(ranks, 0.0)
            if changed or lines:
                self._client.send(wire.Progress(order.id, changed, lines, {}, [], False, now, blocks, starved))
            lines = []
            await asyncio.sleep(SHIP)

    def _started(self, rank: int, order: wire.Launch) -> list[Line]:
        """What a rank's journal has when its first probe begins."""
        local, world = rank % order.nproc_per_node, order.nnodes * order.nproc_per_node
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(local), "GROUP_RANK": str(self._number), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(order.nproc_per_node), "MASTER_ADDR": MASTER, "MASTER_PORT": str(order.port), "NCCL_DEBUG": "INFO",
            "NCCL_SOCKET_IFNAME": "eth0", "TORCH_NCCL_BLOCKING_WAIT": "0",
        }  # fmt: skip
        device = {"index": local, "name": "NVIDIA H100", "uuid": f"GPU-{self._number}-{local}", "pci_bus_id": f"0000:{local:02x}:00.0"}
        who = {"rank": rank, "local_rank": local, "node_rank": self._number, "host": self._host, "pid": 1000 + rank, "device": device}
        said = [
            ("claim", {"host": self._host, "pid": 1000 + rank, "local_rank": local, "environment": environment, "interfaces": ["eth0", "ib0", "lo"]}),
            ("hello", {"identity": who, "torch": "2.13.0", "nccl": ["2.28.9", "2.28.9"], "vllm": None}),
            ("probe", {"name": order.probes[0]}),
            ("call", {"signature": 4711, "text": "all_reduce float32 1 MiB"}),
            ("local", {"step": "load"}),
            ("leave", {"step": "load"}),
            ("sample", self._job.sample),
        ]
        return [Line(rank, kind, 1.0 + at / 100, 0, fields, f"rank{rank}.jsonl", at + 1) for at, (kind, fields) in enumerate(said)]  # type: ignore[arg-type]

    def _way(self, target: wire.Target) -> Fact:
        fields = {"answer": "ok", "rtt_ms": 0.1, "out_bytes_per_s": 10**9, "in_bytes_per_s": 10**9, "path_mtu": 1500}
        return Fact("way", self._host, fields={**fields, "address": target.peer.address, "source": target.source})

    def _look(self) -> list[Fact]:
        """State, calls and stack of each rank, and how the network is."""
        facts: list[Fact] = []
        now = time.monotonic()
        for local in range(self._job.ranks):
            rank = self._number * self._job.ranks + local
            slot = self._job.slot(rank, now)
            count = min(MOST_CALLS, slot.seq)
            calls = {"last": slot.seq, "signatures": [4711], "texts": ["all_reduce float32 1 MiB"], "calls": history.pack([0] * count)}
            frames = ["all_reduce (torch/distributed/distributed_c10d.py:3000)", *FRAMES] if slot.step.inside else ["read (data.py:12)", *FRAMES]
            source = Evidence(f"01/rank{rank}.stack", 3, f'File "{frames[0]}"')
            facts += [
                Fact("state", self._host, rank, slot.pid, {"state": "S", "cpu_seconds": 12.5, "wchan": "futex_wait"}),
                Fact("calls", self._host, rank, slot.pid, calls),
                Fact("stack", self._host, rank, slot.pid, {"frames": frames, "own": frames[0], "by": "faulthandler"}, source),
            ]
        for step in (1, 2, 4):
            peer = f"gpu-{(self._number + step) % self._job.nodes:04d}"
            rates = {"rtt_ms": 0.1, "out_bytes_per_s": 10**9, "in_bytes_per_s": 10**9, "segments": 100, "retransmits": 0}
            fields = {"peer": peer, "address": "10.0.0.1", "port": 9, "answer": "ok", **rates, "control": False}
            facts.append(Fact("path", self._host, fields=fields))
        return facts

    def _end(self, report: bytes, now: float) -> None:
        self._seen.told = self._seen.told or now
        self._seen.all_told = now
        self._seen.ended += 1
        if self._seen.ended == 1:
            found = received.report(report).findings
            self._seen.causes, self._seen.ranks = [one.cause for one in found], list(found[0].culprit.ranks or ()) if found else []


async def late(count: int, job: Job, port: int) -> dict[str, float]:
    """So many agents come when the roll is complete; how many were told so, and what that took."""
    began, told = time.monotonic(), 0
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        nonlocal told
        async with limit:
            node = Node(number, job, port, Seen())
            task = asyncio.create_task(node.run())
            done, _ = await asyncio.wait([task], timeout=PATIENCE)
            told += bool(done)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(one(job.nodes + at) for at in range(count)))
    return {"late": count, "told": told, "seconds": time.monotonic() - began}


async def live(port: int, first: int, count: int, nodes: int, ranks: int) -> None:
    """Carry out what is said on standard input until every agent here has its verdict."""
    job, seen = Job(nodes, ranks), Seen()
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    say({"ready": count})
    job.began = float((await words.readline()).split()[1])
    agents = []
    for number in range(first, first + count):  # they share a core or two: all at once, each would take seconds to answer node 0
        agents.append(asyncio.create_task(Node(number, job, port, seen).run()))
        await asyncio.sleep(APART)
    ended = asyncio.gather(*agents)
    others: set[asyncio.Task[None]] = set()

    async def told(count: int) -> None:
        say(await late(count, job, port))

    async def listen() -> None:
        while line := (await words.readline()).split():
            if line[0] == b"stall":
                job.stall = float(line[1])
            elif line[0] == b"late":
                others.add(asyncio.create_task(told(int(line[1]))))

    listening = asyncio.create_task(listen())
    await ended
    await (listening if not count else asyncio.sleep(0))  # for those who come too late there is a process of its own
    listening.cancel()
    seen.cpu = time.process_time()
    say(asdict(seen))


def say(what: object) -> None:
    """One line for whoever started this."""
    print(json.dumps(what), flush=True)


def main(arguments: Sequence[str]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(live(*(int(word) for word in arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])

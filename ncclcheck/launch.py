"""One launch on one node: start the ranks with torchrun, watch them from outside, end them and prove that none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ncclcheck import fault, history, registry, safe_files, start
from ncclcheck.bounded import bounded
from ncclcheck.collect import master, processes, ras, recorder, stacks
from ncclcheck.collect.host import addresses
from ncclcheck.evidence import text
from ncclcheck.journal import Line, Slot, SlotReader, Tail, create_maps
from ncclcheck.logs import Death, Logs
from ncclcheck.model import Fact
from ncclcheck.scratch import Scratch

END_BOUND = 5.0  # seconds in which a killed process must be gone
LOGS_BOUND = 5.0  # seconds in which the logs are read
EXIT_BOUND = 1.5  # seconds in which torchrun has said how a rank ended
STOPPED_FOR = 0.3  # seconds in state T after which a rank counts as stopped
SHORT = 15  # characters of a folder below which Ray can make its sockets
MOST_CALLS = 4 * history.BLOCK  # of a rank's last calls that are sent, so that a block that differs is still there


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the local ranks."""

    slots: list[Slot]
    lines: list[Line]  # new in the journals
    beats: dict[int, int]  # of ranks in opaque steps
    facts: list[Fact]  # deaths and stops that were not told before
    over: bool  # the launcher has left and no rank is alive
    blocks: dict[int, list[tuple[int, int]]]  # rank -> end and digest of blocks of calls that it completed
    starved: dict[int, float]  # rank -> seconds without a CPU

    def after(self, earlier: Seen) -> Seen:
        """This look, with the news of an earlier one before its own."""
        blocks = {rank: earlier.blocks.get(rank, []) + self.blocks.get(rank, []) for rank in (*earlier.blocks, *self.blocks)}
        return replace(self, lines=earlier.lines + self.lines, facts=earlier.facts + self.facts, blocks=blocks)


class LocalLaunch:
    """The ranks of one launch that run on this node."""

    def __init__(self, job: start.Job, node_rank: int, node_folder: Path, run_id: str, host: str, task: Mapping[str, int] | None) -> None:
        self.id, self.probes = job.id, job.probes
        self.folder = safe_files.folder(node_folder, job.id, new=True)
        self._job = job
        self._host = host
        self._node_rank = node_rank
        self._task = task
        self._marks = (f"NCCLCHECK_RUN={run_id}", f"NCCLCHECK_NODE={node_rank}")
        started = start.of(job, node_rank, self.folder, task, self._marks, os.environ)
        self._command, self._environ = started.command, started.environ
        self._count = job.nproc_per_node
        places = 1 + self._index(job.nproc_per_node - 1)
        create_maps(self.folder, places)
        self._reader = SlotReader(self.folder / "slots", places)
        self._histories = [history.Reader(self.folder / "calls", index) for index in range(places)]
        self._texts: dict[int, str] = {}  # what the numbers of calls mean
        self._tail = Tail(self.folder)
        self._seen = Seen([], [], {}, [], False, {}, {})
        self._first: dict[int, processes.Process] = {}  # pid of a rank -> its process when first seen
        self._exit_codes: dict[int, processes.Exit] = {}  # the same
        self._stopped_since: dict[int, float] = {}
        self._told: set[tuple[str, int]] = set()  # (kind, rank) of deaths and stops already reported
        self._unknown_exits: set[int] = set()
        self._deaths: list[Death] = []
        self._newborn: dict[int, int] = {}  # pid -> rank, of processes that have not announced themselves yet
        self._shared = set(processes.orphaned_shared_memory())
        # what simulates a link, say: not of this launch
        self._before = {(process.pid, process.start) for process in processes.descendants(os.getpid())}
        self._mapped: set[str] = set()  # files of /dev/shm that our processes use
        # who is killed leaves the engine's sockets (which have no room for the path of the run directory: 107 bytes) and temporary folders
        needs = {need for probe in job.probes for need in registry.describe("probes", probe).needs}
        # Ray adds 64 bytes to the names of its sockets
        short = "/tmp" if "ray" in needs and len(tempfile.gettempdir()) > SHORT else None
        self._scratch = Scratch(short) if "vllm" in needs else None
        if self._scratch:
            self._environ["TMPDIR"] = str(self._scratch.path)
            self._environ.setdefault("VLLM_RPC_BASE_PATH", str(self._scratch.path))
        self._lock = threading.Lock()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._logs = Logs(self.folder, host)

    def start(self) -> None:
        """Start the launcher. Its output goes to launcher.log."""
        with open(self.folder / "launcher.log", "wb", opener=safe_files.private) as log:
            self._launcher = subprocess.Popen(
                self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _index(self, local: int) -> int:
        """Where a rank's slot lies: by local_rank."""
        return local if self._task is None else self._task["local_rank"]

    def place(self, rank: int, peers: Sequence[str], ports: Sequence[int]) -> fault.Place:
        """Where a fault strikes that breaks this node."""
        interface = master.interface_to(self._job.master)
        address = next(iter(addresses().get(interface, [])), "")
        pid = next((slot.pid for slot in self._slots() if slot.rank == rank), 0)
        return fault.Place(interface, address, peers, ports, pid)

    def poll(self) -> None:
        """Look at everything once; `take` tells what was seen.

        It reads files of /proc, which may block: call it from a thread. One call at a time goes ahead.
        """
        with self._lock:
            seen = self._poll()
            self._seen = seen.after(self._seen)

    def take(self) -> Seen:
        """What was seen last, with all lines, facts and blocks that were not taken before."""
        with self._lock:
            seen, self._seen = self._seen, replace(self._seen, lines=[], facts=[], blocks={})
            return seen

    @property
    def completed(self) -> bool:
        """Whether every rank here has left in order."""
        slots = self._slots()
        return len(slots) == self._count and all(slot.done for slot in slots)

    @property
    def urgent(self) -> bool:
        """Whether a death or a stop waits to be taken."""
        return bool(self._seen.facts)

    def _poll(self) -> Seen:
        states = {slot.pid: self._process(slot) for slot in self._slots()}
        slots = self._slots()  # after the states: what a dead process announced last is final
        lines = list(self._tail.more())
        self._texts |= {line.fields["signature"]: line.fields["text"] for line in lines if line.kind == "call"}
        beats: dict[int, int] = {}
        news: list[Fact] = []
        alive = False
        for slot in slots:
            if slot.pid not in states:  # it has just announced itself
                alive = True
                continue
            process = states[slot.pid]
            if process is None or process.dead:
                if not slot.done:
                    code = process.exit_code if process else self._exit_code(slot.pid)
                    news += self._tell("gone", slot.rank, slot.pid, {"code": code})
                continue
            alive = True
            if slot.opaque and slot.step.inside:
                log = self.folder / f"rank{slot.rank}.log"
                beats[slot.rank] = int(process.cpu_seconds * 2) + (log.stat().st_size if log.exists() else 0)
            if process.stopped:
                since = self._stopped_since.setdefault(slot.rank, time.monotonic())
                if time.monotonic() - since >= STOPPED_FOR:
                    news += self._tell("stopped", slot.rank, slot.pid, {"state": process.state})
            else:
                self._stopped_since.pop(slot.rank, None)
        if len(slots) < self._count:
            news += self._early_deaths()
        news += self._launcher_news(complete=len(slots) == self._count)
        over = self._launcher is not None and self._launcher.poll() is not None and not alive
        blocks = {
            slot.rank: new
            for index, slot in self._places()
            if (new := list(self._histories[index].blocks(slot.seq, slot.since, slot.signature, slot.done)))
        }
        starved = {slot.rank: processes.starved(slot.pid) for slot in slots}
        return Seen(slots, lines, beats, news, over, blocks, starved)

    def _slots(self) -> list[Slot]:
        """The slots of the ranks that have announced themselves."""
        return [slot for _, slot in self._places()]

    def _places(self) -> list[tuple[int, Slot]]:
        """The same, each with its index in the maps."""
        return [(index, slot) for index, slot in enumerate(self._reader.read()) if slot]

    def _calls(self, index: int, slot: Slot) -> Fact:
        """What a rank issued last, as far as its own lines tell what the numbers mean."""
        calls = self._histories[index].calls(slot.seq, MOST_CALLS, slot.since, slot.signature)
        at = {signature: number for number, signature in enumerate(dict.fromkeys(calls))}
        texts = [self._texts.get(signature, f"call {signature:x}") for signature in at]
        packed = history.pack([at[signature] for signature in calls])
        fields = {"last": slot.seq, "signatures": list(at), "texts": texts, "calls": packed}
        return Fact("calls", self._host, slot.rank, slot.pid, fields)

    def _process(self, slot: Slot) -> processes.Process | None:
        """The rank's process, which may be dead and not yet reaped; None once it is gone or its pid belongs to another."""
        now = processes.read(slot.pid)
        if now and slot.pid not in self._first:
            self._exit_codes[slot.pid] = processes.Exit(slot.pid)
        first = self._first.setdefault(slot.pid, now) if now else None
        return now if now and first and now.start == first.start else None

    def _exit_code(self, pid: int) -> int | None:
        """How a rank ended that its parent has reaped."""
        return self._exit_codes[pid].code() if pid in self._exit_codes else None

    def _tell(self, kind: str, rank: int, pid: int, fields: dict[str, Any]) -> list[Fact]:
        if not self._once(kind, rank):
            return []
        if kind == "gone":
            self._deaths.append(Death(rank, pid, fields["code"]))
        if kind == "gone" and fields["code"] is None:
            self._unknown_exits.add(rank)
        return [Fact(kind, self._host, rank, pid, fields)]

    async def collect(self, recorded: bool = False) -> list[Fact]:
        """State, wait channel, calls and stack of every rank that is alive, and what the logs say; at most about 4 s.

        `recorded`: what their flight recorders say, too.
        """
        alive = [(slot, process) for slot in self._slots() if (process := self._process(slot)) and not process.dead]
        facts = [
            Fact(
                "state",
                self._host,
                slot.rank,
                slot.pid,
                {"state": process.state, "cpu_seconds": process.cpu_seconds, "wchan": processes.wchan(slot.pid)},
            )
            for slot, process in alive
        ]
        for process in self._ours():
            self._mapped |= processes.shared_memory(process.pid)
        facts += [self._calls(index, slot) for index, slot in self._places()]
        asked = [(slot.rank, slot.pid) for slot, process in alive if recorded and not process.stopped]
        answers = asyncio.gather(*(recorder.pending(rank, pid, self.folder) for rank, pid in asked))
        service = asyncio.ensure_future(self._ras(wanted=recorded))
        facts += await asyncio.gather(*(stacks.stack(slot.rank, slot.pid, self.folder, process.stopped) for slot, process in alive))
        facts += [fact for found in await answers for fact in found] + await service
        await self._until_exits_are_told()
        return facts + await bounded(self._said, LOGS_BOUND)

    async def _ras(self, wanted: bool) -> list[Fact]:
        """What NCCL itself (2.24 and newer) says of its communicators; nothing where NCCL is not used, or does not answer."""
        if not (wanted and recorder.listens(self.folder)):
            return []
        try:
            answer = await bounded(ras.ask, ras.BOUND, *ras.address(self._environ.get("NCCL_RAS_ADDR", "")))
        except (OSError, ValueError):  # TimeoutError is one
            return []
        safe_files.write(self.folder / "ncclras.txt", answer.encode("utf-8", "replace"))
        return [replace(fact, host=fact.host or self._host) for fact in text.lines(answer.splitlines(), f"{self.id}/ncclras.txt")]

    def _said(self) -> list[Fact]:
        """What all logs say."""
        exits = self._exits()
        started = self._slots() or self._newborn or exits  # else the launcher says what kept it from starting any rank
        refused = [] if started else self._logs.launcher()
        return [
            *self._logs.ranks(master.interface_to(self._job.master)),
            *refused,
            *exits,
            *self._logs.signalled(),
            *self._logs.kernel(self._deaths),
        ]

    async def _until_exits_are_told(self) -> None:
        """Where a rank was gone before its exit code could be read, the launcher says it; wait for that, bounded."""
        end = time.monotonic() + EXIT_BOUND
        while self._unknown_exits - {fact.rank for fact in self._exits()} and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def _early_deaths(self) -> list[Fact]:
        """Ranks that die before they have announced themselves: children of the launcher that were there and are dead."""
        if self._launcher is None:
            return []
        for child in processes.descendants(self._launcher.pid):
            if child.pid not in self._newborn and (rank := processes.variable(child.pid, "RANK")):
                self._newborn[child.pid] = int(rank)
        news: list[Fact] = []
        states = {pid: processes.read(pid) for pid in self._newborn}
        announced = {slot.pid for slot in self._slots()}  # after the states, as above
        for pid, process in states.items():
            if pid not in announced and (process is None or process.dead):
                news += self._tell("gone", self._newborn[pid], pid, {"code": process.exit_code if process else None})
        return news

    def _launcher_news(self, complete: bool) -> list[Fact]:
        """What befell the launcher: stopped, killed, or failed before every rank had announced itself."""
        if self._launcher is None:
            return []
        code = self._launcher.poll()
        process = processes.read(self._launcher.pid) if code is None else None
        if process and process.stopped and self._once("launcher-stopped", -1):
            return [Fact("launcher-stopped", self._host, pid=process.pid, fields={"state": process.state})]
        if code == 0 and not complete and not self._newborn and not self._slots() and self._once("absent", -1):
            first = self._node_rank * self._count
            ranks = [self._task["rank"]] if self._task else list(range(first, first + self._count))
            return [Fact("absent", self._host, fields={"ranks": ranks, "code": code}, source=self._logs.last_words())]
        if code and (code < 0 or not complete) and self._once("launcher-failed", -1):
            return [Fact("launcher-failed", self._host, fields={"code": code}, source=self._logs.last_words())]
        return []

    def _once(self, kind: str, rank: int) -> bool:
        """Whether this is to be told now: the first time it is asked."""
        new = (kind, rank) not in self._told
        self._told.add((kind, rank))
        return new

    def _exits(self) -> list[Fact]:
        if self._task is not None and self._launcher is not None and (code := self._launcher.poll()) not in (None, 0):
            return [Fact("exit", self._host, self._task["rank"], self._launcher.pid, {"code": code})]
        return self._logs.exits(self._node_rank * self._count)

    def _ours(self) -> list[processes.Process]:
        """Everything of this launch that lives: what carries its marks, and what descends from us (we adopt orphans) without them."""
        new = [process for process in processes.descendants(os.getpid()) if (process.pid, process.start) not in self._before]
        return list({process.pid: process for process in [*processes.marked(*self._marks), *new]}.values())

    async def end(self) -> list[Fact]:
        """End everything of this launch. Facts of kind "left-over" name what could not be ended or was left behind."""
        deadline = time.monotonic() + END_BOUND
        while True:
            ours = await bounded(self._ours, END_BOUND)
            for process in ours:
                self._mapped |= processes.shared_memory(process.pid)
                if process.state != "D":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
            launcher_gone = self._launcher is None or self._launcher.poll() is not None
            if (not ours and launcher_gone) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        reap()
        for watched in self._exit_codes.values():
            watched.close()
        if self._scratch:
            self._scratch.remove()
        for path in self._mapped:  # a killed process cannot remove its own
            with contextlib.suppress(OSError):
                os.unlink(path)
        facts = [
            Fact(
                "left-over",
                self._host,
                pid=process.pid,
                fields={"what": f"process {process.pid}", "state": processes.STATES.get(process.state, process.state)},
            )
            for process in self._ours()
        ]
        return facts + [
            Fact("left-over", self._host, fields={"what": path}) for path in processes.orphaned_shared_memory() if path not in self._shared
        ]


def reap() -> None:
    """Collect orphans that this process adopted as subreaper (or as pid 1), so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                break

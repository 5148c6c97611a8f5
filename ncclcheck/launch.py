"""One launch on one node: start the ranks with torchrun, watch them from outside, end them and prove that none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ncclcheck import triage, wire
from ncclcheck.bounded import bounded
from ncclcheck.collect import master, processes, stacks
from ncclcheck.evidence import traceback
from ncclcheck.journal import Line, Slot, SlotReader, Tail, create_slots
from ncclcheck.model import Evidence, Fact

END_BOUND = 5.0  # seconds in which a killed process must be gone
LOGS_BOUND = 5.0  # seconds in which the logs are read
EXIT_BOUND = 1.5  # seconds in which torchrun has said how a rank ended
LOG_BYTES = 8 * 2**20  # of a rank's log that are read, from its end
LOG_FACTS = 20  # of one kind that are kept of a log, from its beginning and from its end
STOPPED_FOR = 0.3  # seconds in state T after which a rank counts as stopped
_EXIT = re.compile(r"failed \(exitcode: (?P<code>-?\d+)\) local_rank: (?P<local_rank>\d+) \(pid: (?P<pid>\d+)\)")


class LocalLaunch:
    """The ranks of one launch that run on this node."""

    def __init__(self, order: wire.Launch, node_rank: int, node_folder: Path, run_id: str, host: str, task: Mapping[str, int] | None) -> None:
        self.id = order.id
        self.folder = node_folder / order.id
        self.folder.mkdir(mode=0o700)
        self._order = order
        self._host = host
        self._node_rank = node_rank
        self._task = task
        self._marks = (f"NCCLCHECK_RUN={run_id}", f"NCCLCHECK_NODE={node_rank}")
        self._environ = {
            **{name: value for name, value in order.env.items() if not name.startswith("NCCLCHECK_")},
            **os.environ,  # what the user has set wins over what we would add for evidence
            **{name: value for name, value in order.env.items() if name.startswith("NCCLCHECK_")},
            **dict(mark.split("=", 1) for mark in self._marks),
            "NCCLCHECK_DIR": str(self.folder),
            "NCCLCHECK_PARENT": str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }
        self._command = self._torchrun(node_rank) if task is None else self._single(task)
        self._count = order.nproc_per_node
        places = 1 + self._index(order.nproc_per_node - 1)
        create_slots(self.folder / "slots", places)
        self._reader = SlotReader(self.folder / "slots", places)
        self._tail = Tail(self.folder)
        self._seen: dict[int, processes.Process] = {}  # rank -> its process when first seen
        self._stopped_since: dict[int, float] = {}
        self._told: set[tuple[str, int]] = set()  # (kind, rank) of deaths and stops already reported
        self._unknown_exits: set[int] = set()
        self._newborn: dict[int, int] = {}  # pid -> rank, of processes that have not announced themselves yet
        self._shared = set(processes.orphaned_shared_memory())
        self._lock = threading.Lock()
        self._launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the launcher. Its output goes to launcher.log."""
        with open(self.folder / "launcher.log", "wb") as log:
            self._launcher = subprocess.Popen(
                self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _torchrun(self, node_rank: int) -> list[str]:
        order = self._order
        flags = {
            "nnodes": order.nnodes,
            "node-rank": node_rank,
            "nproc-per-node": order.nproc_per_node,
            "master-addr": order.master,
            "master-port": order.port,
            "max-restarts": 0,
            "log-dir": self.folder / "torchrun",  # else it leaves a folder in /tmp
        }
        self._environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "2"
        self._environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default, said without its warning
        for name in [name for name in self._environ if name.startswith(("TORCHELASTIC_", "PET_"))]:
            del self._environ[name]  # of a torchrun around us
        words = [f"--{name}={value}" for name, value in flags.items()]
        return [sys.executable, "-m", "ncclcheck.torchrun", *words, "-m", "ncclcheck.rank", *order.probes]

    def _single(self, task: Mapping[str, int]) -> list[str]:
        """Inside a launcher that starts one process per rank, this process's rank is its child."""
        self._environ |= {
            "RANK": str(task["rank"]),
            "LOCAL_RANK": str(task["local_rank"]),
            "GROUP_RANK": str(task["node_rank"]),
            "WORLD_SIZE": str(task["world_size"]),
            "LOCAL_WORLD_SIZE": str(task["local_world_size"]),
            "MASTER_ADDR": self._order.master,
            "MASTER_PORT": str(self._order.port),
        }
        for name in [name for name in self._environ if name.startswith("TORCHELASTIC_")]:
            del self._environ[name]  # the surrounding job's store must not be used
        return [sys.executable, "-m", "ncclcheck.rank", *self._order.probes]

    def _index(self, local: int) -> int:
        """Where a rank's slot lies: by local_rank."""
        return local if self._task is None else self._task["local_rank"]

    def poll(self) -> tuple[list[Slot], list[Line], dict[int, int], list[Fact], bool]:
        """What is seen now: slots, new journal lines, beats of opaque steps, newly noticed deaths and stops, and whether all is over.

        It reads files of /proc, which may block: call it from a thread. One call at a time goes ahead.
        """
        with self._lock:
            return self._poll()

    def _poll(self) -> tuple[list[Slot], list[Line], dict[int, int], list[Fact], bool]:
        states = {slot.rank: self._process(slot) for slot in self._slots()}
        slots = self._slots()  # after the states: what a dead process announced last is final
        lines = list(self._tail.more())
        beats: dict[int, int] = {}
        news: list[Fact] = []
        alive = False
        for slot in slots:
            if slot.rank not in states:  # it has just announced itself
                alive = True
                continue
            process = states[slot.rank]
            if process is None or process.dead:
                if not slot.done:
                    news += self._tell("gone", slot.rank, slot.pid, {"code": process.exit_code if process else None})
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
        return slots, lines, beats, news, over

    def _slots(self) -> list[Slot]:
        """The slots of the ranks that have announced themselves."""
        return [slot for slot in self._reader.read() if slot]

    def _process(self, slot: Slot) -> processes.Process | None:
        """The rank's process, which may be dead and not yet reaped; None once it is gone or its pid belongs to another."""
        now = processes.read(slot.pid)
        first = self._seen.setdefault(slot.rank, now) if now else None
        return now if now and first and now.start == first.start else None

    def _tell(self, kind: str, rank: int, pid: int, fields: dict[str, object]) -> list[Fact]:
        if not self._once(kind, rank):
            return []
        if kind == "gone" and fields["code"] is None:
            self._unknown_exits.add(rank)
        return [Fact(kind, self._host, rank, pid, fields)]

    async def collect(self) -> list[Fact]:
        """State, wait channel and stack of every rank that is alive, and what the logs say; at most about 4 s."""
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
        facts += await asyncio.gather(*(stacks.stack(slot.rank, slot.pid, self.folder, process.stopped) for slot, process in alive))
        await self._until_exits_are_told()
        return facts + await bounded(self.logs, LOGS_BOUND)

    async def _until_exits_are_told(self) -> None:
        """Where a rank was gone before its exit code could be read, the launcher says it; wait for that, bounded."""
        end = time.monotonic() + EXIT_BOUND
        while self._unknown_exits - {fact.rank for fact in self._exits()} and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def logs(self) -> list[Fact]:
        """Causes that the ranks' own logs state, and exit codes that the launcher printed."""
        facts: list[Fact] = []
        interface = master.interface_to(self._order.master)
        for path in sorted(self.folder.glob("rank*.log")):
            skipped, lines = _end_of(path)
            file, rank = f"{self.id}/{path.name}", int(path.stem[4:])
            stated = [
                Fact(
                    "fail",
                    fields={
                        "cause": finding.cause, "title": finding.title, "ranks": [rank], "confidence": finding.confidence,
                        "remedy": finding.remedy.replace("INTERFACE", interface),
                    },
                    source=next(iter(finding.evidence), None),
                )
                for finding in triage.stated_by(lines, file)
            ]  # fmt: skip
            for found in ([*traceback.read(lines, file)], stated):
                for fact in found if len(found) <= 2 * LOG_FACTS else found[:LOG_FACTS] + found[-LOG_FACTS:]:
                    source = fact.source and replace(fact.source, line=fact.source.line + skipped)
                    facts.append(replace(fact, host=self._host, rank=rank, source=source))
        return facts + self._exits()

    def _early_deaths(self) -> list[Fact]:
        """Ranks that die before they have announced themselves: children of the launcher that were there and are dead."""
        if self._launcher is None:
            return []
        for child in processes.descendants(self._launcher.pid):
            if child.pid not in self._newborn and (text := processes.variable(child.pid, "RANK")):
                self._newborn[child.pid] = int(text)
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
        if code and (code < 0 or not complete) and self._once("launcher-failed", -1):
            return [Fact("launcher-failed", self._host, fields={"code": code}, source=self._last_words())]
        return []

    def _last_words(self) -> Evidence | None:
        """The first error in the launcher's log, or its last line."""
        lines = (self.folder / "launcher.log").read_text(errors="replace").split("\n")
        file = f"{self.id}/launcher.log"
        errors = [fact.source for fact in traceback.read(lines, file)]
        said = errors[:1] or [Evidence(file, number, line) for number, line in enumerate(lines, 1) if line.strip()][-1:]
        return said[0] if said else None

    def _once(self, kind: str, rank: int) -> bool:
        """Whether this is to be told now: the first time it is asked."""
        new = (kind, rank) not in self._told
        self._told.add((kind, rank))
        return new

    def _exits(self) -> list[Fact]:
        facts: list[Fact] = []
        first = self._node_rank * self._count  # rank of this node's local_rank 0
        if self._task is not None and self._launcher is not None and (code := self._launcher.poll()) not in (None, 0):
            return [Fact("exit", self._host, self._task["rank"], self._launcher.pid, {"code": code})]
        for number, line in enumerate((self.folder / "launcher.log").read_text(errors="replace").split("\n"), 1):
            if match := _EXIT.search(line):
                source = Evidence(f"{self.id}/launcher.log", number, line.strip())
                facts.append(Fact("exit", self._host, first + int(match["local_rank"]), int(match["pid"]), {"code": int(match["code"])}, source))
        return facts

    def _ours(self) -> list[processes.Process]:
        """Everything of this launch that lives: what carries its marks, and what descends from us (we adopt orphans) without them."""
        found = {process.pid: process for process in [*processes.marked(*self._marks), *processes.descendants(os.getpid())]}
        return list(found.values())

    async def end(self) -> list[Fact]:
        """End everything of this launch. Facts of kind "left-over" name what could not be ended or was left behind."""
        deadline = time.monotonic() + END_BOUND
        mapped: set[str] = set()
        while True:
            ours = await bounded(self._ours, END_BOUND)
            for process in ours:
                mapped |= processes.shared_memory(process.pid)
                if process.state != "D":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
            launcher_gone = self._launcher is None or self._launcher.poll() is not None
            if (not ours and launcher_gone) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        reap()
        for path in mapped:  # a killed process cannot remove its own
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


def _end_of(path: Path) -> tuple[int, list[str]]:
    """The last LOG_BYTES of a log as lines, and how many lines stand before them."""
    with open(path, "rb") as file:
        skip = max(0, path.stat().st_size - LOG_BYTES)
        before = 0
        while file.tell() < skip:
            before += file.read(min(2**20, skip - file.tell())).count(b"\n")
        return before, file.read().decode("utf-8", "replace").split("\n")


def reap() -> None:
    """Collect orphans that this process adopted as subreaper (or as pid 1), so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                break

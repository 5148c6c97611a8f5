"""The processes of one `vllm serve` on this node, from outside: what they use, which died or stopped, and their end with proof."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ncclcheck import interpreter
from ncclcheck.collect import processes
from ncclcheck.ports import listens

_SAID_BY = r"\(\w+[\w-]* pid=(?P<pid>\d{1,10})\)"  # how a line of one of vLLM's processes begins
WORKER = re.compile(_SAID_BY + r".{0,80}\bworld_size=\d+ rank=(?P<rank>\d{1,6}) local_rank=")
DIED = re.compile(r"Worker proc VllmWorker-(?P<rank>\d{1,6}) died unexpectedly \(exit code: (?P<code>-\d+)\)")
RAISED = re.compile(_SAID_BY + r" ERROR .{0,80}\] WorkerProc hit an exception")  # and it waits for the next order
ERROR = re.compile(_SAID_BY + r" ERROR .{0,80}?\] (?P<error>[A-Za-z_][\w.]{0,200}(?:Error|Exception)\b.{0,500})")
LOOK = 0.25  # seconds between looks
GRACE = 20.0  # seconds for an orderly end: a headless node's executor takes up to 10
TOLD_BOUND = 1.0  # seconds in which the keeper has said how its command ended
KEEPER_BOUND = 8.0  # seconds in which the keeper has ended all
_ASKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE}


@dataclass(frozen=True, slots=True)
class End:
    """How a server ended: seconds, which processes had to be killed, what of its shared memory was removed for it, and what is left."""

    seconds: float
    killed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Tree:
    """A command, kept by vllm_keeper, and all its descendants."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        with open(log, "ab") as out:
            self._keeper = subprocess.Popen(
                interpreter.module("ncclcheck.vllm_keeper", *words),
                env=dict(environ),
                cwd=log.resolve().parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,
            )
        self.exit_code: int | None = None
        self.cpu_seconds = 0.0
        self.read_mib = 0  # whole MiB
        self.over = False
        self._said = b""
        self._pid = 0
        self._seen: dict[int, processes.Process] = {}
        self._exits: dict[int, processes.Exit] = {}
        self._gone: dict[int, int | None] = {}
        self._stopped: dict[int, int] = {}  # pid -> looks at which it was stopped
        self._mapped: set[str] = set()

    def look(self) -> None:
        """Read the state of every process of the tree."""
        self._hear()
        alive: dict[int, processes.Process] = {}
        for process in processes.descendants(self._keeper.pid):
            alive[process.pid] = process
            if process.pid not in self._seen:
                self._exits[process.pid] = processes.Exit(process.pid)
        for pid in self._seen.keys() - alive.keys() - self._gone.keys():
            dead = processes.read(pid)  # a zombie tells how it ended
            known = dead is not None and dead.start == self._seen[pid].start and dead.dead
            self._gone[pid] = dead.exit_code if known and dead else self._exits[pid].code()
        self._seen |= alive
        self._stopped = {pid: self._stopped.get(pid, 0) + 1 for pid, process in alive.items() if process.stopped}
        self.cpu_seconds = sum(process.cpu_seconds for process in self._seen.values())
        self.read_mib = sum(map(_read_bytes, alive)) // 2**20

    def killed(self) -> dict[int, int]:
        """pid -> minus the signal that ended it, of those that were there; signals by which processes are asked to end do not count."""
        return {pid: code for pid, code in self._gone.items() if code is not None and code < 0 and -code not in _ASKED}

    def stopped(self) -> list[int]:
        """In state T at two looks in a row."""
        return [pid for pid, times in self._stopped.items() if times > 1]

    def alive(self) -> dict[int, processes.Process]:
        """pid -> process of the tree now, the keeper left out."""
        return {process.pid: process for process in processes.descendants(self._keeper.pid)}

    def end(self, grace: float, ports: Sequence[int]) -> End:
        """End all of it; see Server.end."""
        began = time.monotonic()
        self.look()
        for pid in self.alive():
            self._mapped |= processes.shared_memory(pid)
        if self._pid and self.exit_code is None and grace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
        while (alive := self.alive()) and time.monotonic() - began < grace:
            self._hear()
            time.sleep(0.05)
        told = time.monotonic() + TOLD_BOUND
        while not alive and self.exit_code is None and self._keeper.poll() is None and time.monotonic() < told:
            self._hear()  # the keeper has not said yet how it ended
            time.sleep(0.02)
        killed = [_called(pid) for pid in alive]
        assert self._keeper.stdin and self._keeper.stdout
        self._keeper.stdin.close()
        try:
            self._keeper.wait(KEEPER_BOUND)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._hear()
        self._keeper.stdout.close()
        for watched in self._exits.values():
            watched.close()
        self.over = True
        removed = [path for path in sorted(self._mapped) if os.path.exists(path)]
        for path in removed:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return End(round(time.monotonic() - began, 2), killed, removed, self._left(ports))

    def _left(self, ports: Sequence[int]) -> list[str]:
        """What is there even so: processes, shared memory, ports."""
        alive = [pid for pid, seen in self._seen.items() if (now := processes.read(pid)) and now.start == seen.start and not now.dead]
        files = [path for path in sorted(self._mapped) if os.path.exists(path)]
        return [*(f"process {pid}" for pid in alive), *files, *(f"port {port}" for port in ports if listens(port))]

    def _hear(self) -> None:
        """What the keeper says: the command's pid, and later its exit code."""
        assert self._keeper.stdout
        if self._keeper.stdout.closed:
            return
        while select.select([self._keeper.stdout], [], [], 0)[0] and (block := os.read(self._keeper.stdout.fileno(), 4096)):
            self._said += block
        for word, number in re.findall(rb"^(pid|exit) (-?\d+)$", self._said, re.MULTILINE):
            if word == b"pid":
                self._pid = int(number)
            else:
                self.exit_code = int(number)
        if self.exit_code is None and self._keeper.poll():  # it was killed, or could not start the command
            self.exit_code = self._keeper.returncode


def _read_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/io").read_text(encoding="ascii").split()[1])
    return 0


def _called(pid: int) -> str:
    """A process as a report names it: `VLLM::Worker_TP1 (812)`."""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return f"{name.split(' ')[0].rpartition('/')[2][:40]} ({pid})"
    return f"process {pid}"

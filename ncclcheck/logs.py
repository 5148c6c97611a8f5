"""What the logs of one launch say on this node: those of its ranks, its launcher's, and the kernel's."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ncclcheck import safe_files, triage
from ncclcheck.collect import kernel_log
from ncclcheck.evidence import text, traceback
from ncclcheck.model import Evidence, Fact

LOG_BYTES = 8 * 2**20  # of a rank's log that are read, from its end
LOG_FACTS = 20  # of one kind that are kept of a log, from its beginning and from its end
_SIGNALLED = re.compile(r"Received (?:Signals\.)?(?P<signal>\w{1,12}) death signal, shutting down workers")
_EXIT = re.compile(r"failed \(exitcode: (?P<code>-?\d+)\) local_rank: (?P<local_rank>\d+) \(pid: (?P<pid>\d+)\)")


@dataclass(frozen=True, slots=True)
class Death:
    """A rank that ended before it should: its exit code, or minus the signal; None where that is not known."""

    rank: int
    pid: int
    code: int | None


class Logs:
    """The logs in the folder of one launch, which begins now."""

    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host = folder, host
        self._began = time.monotonic()

    def ranks(self, interface: str) -> list[Fact]:
        """Tracebacks in the ranks' own logs, and the causes that these state; `interface` leads to the other nodes."""
        facts: list[Fact] = []
        for path in sorted(self._folder.glob("rank*.log")):
            skipped, lines = _end_of(path)
            file, rank = self._file(path.name), int(path.stem[4:])
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
        return facts

    def launcher(self) -> list[Fact]:
        """What kept the launcher from starting any rank, in its own words."""
        return [
            Fact(
                "fail",
                self._host,
                fields={"cause": finding.cause, "title": f"{self._host}: {finding.title}", "hosts": [self._host], "remedy": finding.remedy},
                source=next(iter(finding.evidence), None),
            )
            for finding in triage.stated_by(self._of_launcher(), self._file("launcher.log"))[:1]
        ]

    def last_words(self) -> Evidence | None:
        """The first error in the launcher's log, or its last line."""
        file, lines = self._file("launcher.log"), self._of_launcher()
        errors = [fact.source for fact in traceback.read(lines, file)]
        said = errors[:1] or [Evidence(file, number, line) for number, line in enumerate(lines, 1) if line.strip()][-1:]
        return said[0] if said else None

    def signalled(self) -> list[Fact]:
        """Whether the launcher was asked to end by a signal, and so ended its ranks: then it was not they who failed."""
        for number, line in enumerate(self._of_launcher(), 1):
            if match := _SIGNALLED.search(line):
                named = match["signal"]
                code = int(named) if named.isdecimal() else getattr(signal, named, 0)
                source = Evidence(self._file("launcher.log"), number, line.strip())
                return [Fact("launcher-signalled", self._host, fields={"signal": int(code)}, source=source)]
        return []

    def exits(self, first: int) -> list[Fact]:
        """Exit codes that the launcher printed; `first` is the rank of its local_rank 0."""
        return [
            Fact(
                "exit",
                self._host,
                first + int(match["local_rank"]),
                int(match["pid"]),
                {"code": int(match["code"])},
                Evidence(self._file("launcher.log"), number, line.strip()),
            )
            for number, line in enumerate(self._of_launcher(), 1)
            if (match := _EXIT.search(line))
        ]

    def kernel(self, deaths: Sequence[Death]) -> list[Fact]:
        """What the kernel has said since the launch began, where a signal ended a rank.

        Its pids are the machine's: in a container, or on an emulated node, the only rank that SIGKILL ended is the one it means.
        """
        killed = [death for death in deaths if death.code is not None and death.code < 0]
        lines = kernel_log.since(self._began) if killed else []
        if not lines:
            return []
        safe_files.write(self._folder / "kernel.log", ("\n".join(lines) + "\n").encode("utf-8", "replace"))
        victims = [death.rank for death in killed if death.code == -signal.SIGKILL]
        facts = []
        for fact in text.lines(lines, self._file("kernel.log")):
            rank = next((death.rank for death in killed if death.pid == fact.pid), None)
            if rank is None and fact.kind == "oom-kill" and len(victims) == 1:
                rank = victims[0]
            if fact.pid is None or rank is not None:  # else it is about somebody else
                facts.append(replace(fact, host=self._host, rank=rank))
        return facts

    def _of_launcher(self) -> list[str]:
        return (self._folder / "launcher.log").read_text(errors="replace").split("\n")

    def _file(self, name: str) -> str:
        """As evidence names it: relative to the node's folder."""
        return f"{self._folder.name}/{name}"


def _end_of(path: Path) -> tuple[int, list[str]]:
    """The last LOG_BYTES of a log as lines, and how many lines stand before them."""
    with open(path, "rb") as file:
        skip = max(0, path.stat().st_size - LOG_BYTES)
        before = 0
        while file.tell() < skip:
            before += file.read(min(2**20, skip - file.tell())).count(b"\n")
        return before, file.read().decode("utf-8", "replace").split("\n")

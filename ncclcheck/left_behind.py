"""What a run may have left on this machine, seen from outside of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ncclcheck.collect import network, processes
from ncclcheck.collect.taken import Taken

SETTLE = 12.0  # seconds that a difference must stand: another node may mend what it broke later than this one looks


def processes_of(mark: str) -> list[str]:
    """Processes whose environment has this `NAME=value`. A namespace lives as long as a process in it, so these are its trace, too."""
    return [f"process {process.pid} still runs" for process in processes.marked(mark)]


@dataclass(frozen=True, slots=True)
class Trace:
    """What runs could change beside processes: shared memory, the network's settings, memory cgroups."""

    things: frozenset[str]

    @classmethod
    def now(cls) -> Trace:
        """As it is."""
        return cls(frozenset([*processes.orphaned_shared_memory(), *_network(), *_cgroups()]))

    def news(self) -> list[str]:
        """What is there now and was not, or the other way round for the network's settings, and stays so: other programs come and go."""
        end = time.monotonic() + SETTLE
        while (found := self._news()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def _news(self) -> list[str]:
        now = Trace.now().things
        gone = {thing for thing in self.things - now if thing.startswith("network ")}
        return [*(f"left behind: {thing}" for thing in sorted(now - self.things)), *(f"not restored: {thing}" for thing in sorted(gone))]


def _network() -> Iterator[str]:
    """Each interface's state, MTU and addresses; counters move by themselves."""
    for item in network.interfaces():
        if isinstance(item, Taken) and item.name == "ip.txt":
            for line in str(item.data).splitlines():
                if not line.lstrip().startswith(("RX:", "TX:", "speed")):
                    yield f"network {line.strip()}"


def _cgroups() -> Iterator[str]:
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        yield from (f"cgroup {path}" for path in root.glob("**/ncclcheck-*") if path.is_dir())

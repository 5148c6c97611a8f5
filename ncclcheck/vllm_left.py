"""What an engine leaves in this process once it is shut down: child processes, listening ports, shared memory, GPU memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker

import psutil

from ncclcheck import units
from ncclcheck.collect import processes

BOUND = 5.0  # seconds that a shutdown may take after it was ordered


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds."""

    children: frozenset[int]
    ports: frozenset[int]
    shared: frozenset[str]
    gpu_bytes: int

    @classmethod
    def now(cls) -> Held:
        """As it is."""
        me = psutil.Process()
        ports = frozenset(each.laddr.port for each in getattr(me, "net_connections", me.connections)("tcp") if each.status == psutil.CONN_LISTEN)
        helper = getattr(resource_tracker._resource_tracker, "_pid", None)  # Python's own, which ends with this process
        children = frozenset(child.pid for child in processes.descendants(me.pid) if child.pid != helper)
        return cls(children, ports, frozenset(processes.shared_memory(me.pid)), _gpu_bytes())

    def beyond(self, before: Held) -> Held:
        """What of this was not there before."""
        return Held(
            self.children - before.children, self.ports - before.ports, self.shared - before.shared, max(0, self.gpu_bytes - before.gpu_bytes)
        )


def left(before: Held, engine: Held) -> list[str]:
    """What of an engine would outlive this process although it was shut down: processes, segments of shared memory. It is waited for, bounded.

    `engine` is what was held while it ran, and not `before`. A segment that this process still has mapped goes with the process;
    whether it does, the agent looks at afterwards.
    """
    end = time.monotonic() + BOUND
    while (found := list(_left(before, engine))) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def lingering(before: Held, engine: Held) -> list[str]:
    """What of an engine this process keeps until it ends, when the kernel and the driver take it back: ports, GPU memory.

    NCCL and the libraries of CUDA keep some of both (a port for NCCL's RAS, workspaces of cuBLAS), so it is no fault by itself.
    """
    now = Held.now().beyond(before)
    ports = [f"port {port}" for port in sorted(now.ports & engine.ports)]
    return [*ports, *([f"{units.bytes_text(now.gpu_bytes)} of GPU memory"] if now.gpu_bytes else [])]


def _left(before: Held, engine: Held) -> Iterator[str]:
    held = Held.now()
    yield from (f"process {pid} ({_command(pid)})" for pid in sorted(held.beyond(before).children))
    yield from sorted(path for path in engine.shared - held.shared if os.path.exists(path) and path in processes.orphaned_shared_memory())


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())[:80]
    return "gone"


def _gpu_bytes() -> int:
    """Bytes that torch's allocator has given out on this process's GPU; without one 0."""
    import torch

    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0

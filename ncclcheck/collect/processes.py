"""What /proc says of a process: its state, what it waits for, what it used, whether it belongs to a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SHARED_NAMES = ("nccl-", "ncclcheck-", "psm_", "torch_", "sem.mp-", "shm_", "[")  # as NCCL, Python, torch and vLLM name them
_MAPPED = re.compile(r"^(?:\S+ ){4}(\d+) +(/dev/shm/.+)$", re.MULTILINE)  # proc_pid_maps(5): address, permissions, offset, device, inode, path
_DELETED = " (deleted)"
_TICKS = os.sysconf("SC_CLK_TCK")
STATES = {"R": "running", "S": "sleeping", "D": "in uninterruptible I/O", "T": "stopped", "t": "stopped by a debugger", "Z": "dead", "X": "dead"}


@dataclass(frozen=True, slots=True)
class Process:
    """One reading of /proc/PID/stat. `start` tells a process from a later one with the same pid."""

    pid: int
    state: str
    ppid: int
    start: int
    cpu_seconds: float
    status: int  # wait status of a zombie, as waitpid gives it; 0 while it lives

    @property
    def stopped(self) -> bool:
        """SIGSTOP, a debugger or a frozen cgroup."""
        return self.state in "Tt"

    @property
    def dead(self) -> bool:
        """A zombie: only its parent has not noticed yet."""
        return self.state in "ZX"

    @property
    def exit_code(self) -> int:
        """How a dead one ended: its exit code, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(self.status)


def read(pid: int) -> Process | None:
    """The process now, or None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    cpu = sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    return Process(pid, fields[0], int(fields[1]), int(fields[19]), cpu, int(fields[49]))


class Exit:
    """How a process that is not our child ends, told by the kernel even after its parent has reaped it (Linux 6.15 and newer)."""

    _GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO with the first, 64 bytes large version of struct pidfd_info (linux/pidfd.h)
    _WITH_EXIT = 1 << 3  # PIDFD_INFO_EXIT

    def __init__(self, pid: int) -> None:
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except OSError:
            self._pidfd = None

    def code(self) -> int | None:
        """Exit code, or minus the signal; None where it is not known."""
        if self._pidfd is None:
            return None
        info = bytearray(64)
        struct.pack_into("<Q", info, 0, self._WITH_EXIT)
        try:
            fcntl.ioctl(self._pidfd, self._GET_INFO, info)
        except OSError:
            return None
        mask, status = struct.unpack_from("<Q", info)[0], struct.unpack_from("<i", info, 60)[0]
        return os.waitstatus_to_exitcode(status) if mask & self._WITH_EXIT else None

    def close(self) -> None:
        """Let the process go."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def wchan(pid: int) -> str:
    """The kernel function a process waits in; empty where that is not told."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/wchan").read_text().strip("0\n")
    return ""


def starved(pid: int) -> float:
    """Seconds in which a process's main thread could have run and was given no CPU; 0.0 where the kernel does not count them."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def variable(pid: int, name: str) -> str:
    """The value of a variable in a process's environment; empty where it has none or may not be read."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{name}=".encode()):
                return entry.partition(b"=")[2].decode("utf-8", "replace")
    return ""


def marked(*marks: str) -> Iterator[Process]:
    """Processes whose environment carries all of these `NAME=value` marks (engine cores and workers inherit them)."""
    wanted = [mark.encode() for mark in marks]
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if all(mark in environ for mark in wanted) and (process := read(int(entry))) and not process.dead:
            yield process


def descendants(pid: int) -> Iterator[Process]:
    """Every living child of a process, their children and so on."""
    parents: dict[int, list[Process]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if process := read(int(entry)):
            parents.setdefault(process.ppid, []).append(process)
    queue = [pid]
    while queue:
        for child in parents.get(queue.pop(), ()):
            queue.append(child.pid)
            if not child.dead:
                yield child


def shared_memory(pid: int) -> set[str]:
    """The files of /dev/shm that a process has mapped.

    A semaphore is mapped under a name that is gone at once (glibc makes it, links it to its own name, and removes the first): its inode tells.
    """
    with contextlib.suppress(OSError):
        mapped = _MAPPED.findall(Path(f"/proc/{pid}/maps").read_text())
        named = {path for _, path in mapped if not path.endswith(_DELETED)}
        if inodes := {int(inode) for inode, path in mapped if path.endswith(_DELETED)}:
            with os.scandir("/dev/shm") as entries:
                named |= {entry.path for entry in entries if entry.inode() in inodes}
        return named
    return set()


def orphaned_shared_memory() -> list[str]:
    """This user's NCCL, torch and vLLM files in /dev/shm that no living process has mapped."""
    found: set[str] = set()
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith(_SHARED_NAMES) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    found.add(entry.path)
    if found:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            found -= shared_memory(int(pid))
    return sorted(found)

"""What the host, or the container, lets the processes of a job use: the limits of this process are those that its ranks inherit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ncclcheck.collect import cgroup_limits, patient, processes, room
from ncclcheck.collect.settings import effective
from ncclcheck.survey import Question

UNLIMITED = "unlimited"
_LIMITS = {"memlock": resource.RLIMIT_MEMLOCK, "nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC, "stack": resource.RLIMIT_STACK}
_WRITTEN = ("TMPDIR", "the run directory")  # where a file is written to see whether it can be; caches are only asked
_IPC_LOCK = 14  # linux/capability.h: CAP_IPC_LOCK
_UNSYNCHRONISED, _TIME_ERROR = 0x40, 5  # sys/timex.h: STA_UNSYNC, TIME_ERROR
_NAMED = 8  # files of /dev/shm that are named


def section(question: Question) -> dict[str, Any]:
    """`rlimits` (name -> [soft, hard], bytes or numbers or "unlimited"), `unlocked` (memlock binds nobody here), `rdma` (its devices), `shm`,
    `memory`, `cgroup`, `cpus`, `folders`, `hugepages`, `clock`; `unread` says why one of them is None.
    """
    unread: dict[str, str] = {}
    environ = effective(question)
    parts: dict[str, Callable[[], Any]] = {
        "rlimits": _rlimits,
        "unlocked": _unlocked,
        "rdma": lambda: sorted(entry.name for entry in Path("/sys/class/infiniband").glob("*")),
        "shm": shared_memory,
        "memory": memory,
        "cgroup": cgroup_limits.read,
        "cpus": lambda: {"allowed": len(os.sched_getaffinity(0)), "online": os.cpu_count()},
        "threads": _threads,
        "folders": lambda: [room.look(what, path, write=what in _WRITTEN) for what, path in room.folders(environ).items()],
        "hugepages": hugepages,
        "clock": _clock,
    }
    found: dict[str, Any] = {}
    for name, read in parts.items():
        try:
            found[name] = read()
        except (OSError, ValueError, KeyError) as error:
            found[name], unread[name] = None, f"{type(error).__name__}: {error}"
    return {**found, "unread": unread}


def _rlimits() -> dict[str, list[int | str]]:
    return {name: [UNLIMITED if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which)] for name, which in _LIMITS.items()}


def _unlocked() -> bool:
    """Whether this process has CAP_IPC_LOCK, and the host's own (the kernel asks for it there): then memlock does not bind it."""
    text = Path("/proc/self/status").read_text()
    able = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:"))
    whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return whole and bool(able >> _IPC_LOCK & 1)


def shared_memory(folder: str = "/dev/shm") -> dict[str, Any]:
    """`size` and `free` (bytes), and the `stale` files: NCCL's, torch's and engines' of this user that no living process has mapped."""
    disk = os.statvfs(folder)
    stale = {}
    for path in next(iter(patient.items(_orphaned, room.BOUND))):
        with contextlib.suppress(OSError):
            stale[path] = os.stat(path).st_blocks * 512
    largest = sorted(stale, key=lambda path: -stale[path])[:_NAMED]
    return {
        "size": disk.f_blocks * disk.f_frsize,
        "free": disk.f_bavail * disk.f_frsize,
        "writable": os.access(folder, os.W_OK | os.X_OK),
        "stale": {"files": len(stale), "bytes": sum(stale.values()), "largest": [path.encode("utf-8", "replace").decode() for path in largest]},
    }


def _orphaned() -> Iterator[list[str]]:
    yield processes.orphaned_shared_memory()


def memory(path: Path = Path("/proc/meminfo")) -> dict[str, int]:
    """`total`, `available`, `swap_total` and `swap_free` of the machine, in bytes."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    names = {"total": "MemTotal", "available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}
    return {name: int(lines[word].split()[0]) * 1024 for name, word in names.items()}


def hugepages(folder: Path = Path("/sys/kernel/mm/transparent_hugepage")) -> dict[str, str]:
    """What is chosen for transparent huge pages (`[madvise]` of the words in the file)."""
    return {name: (folder / name).read_text().partition("[")[2].partition("]")[0] for name in ("enabled", "defrag")}


def _threads() -> int:
    """Threads of this user that run now, as far as this process may see: RLIMIT_NPROC counts them all."""
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count


class _Timex(ctypes.Structure):
    """The beginning of struct timex (sys/timex.h), and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("more", ctypes.c_long * 32),
    )


def _clock() -> dict[str, Any]:
    """Whether the kernel's clock is kept in step with another (NTP, PTP), and by how much it may be wrong, in microseconds."""
    told = _Timex()  # modes = 0: nothing is set
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(told))
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    synchronised = state != _TIME_ERROR and not told.status & _UNSYNCHRONISED
    return {"synchronised": synchronised, "most_wrong": told.maxerror, "status": told.status}

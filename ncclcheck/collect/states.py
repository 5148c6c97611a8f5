"""What the kernel says of a job's processes: states and limits, environments, control groups, open connections."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Taken, refused, sections

_MOST_TASKS = 512  # threads of one process that are listed
_TCP = (
    "",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
    "NEW-SYN-RECV",
)
_CGROUP_V2 = ("memory.events", "memory.max", "memory.current", "cgroup.freeze", "cgroup.events", "cpu.max", "cpu.stat", "pids.max", "pids.current")
_CGROUP_V1 = {
    "memory": ("memory.oom_control", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.failcnt"),
    "freezer": ("freezer.state",),
    "cpu": ("cpu.stat", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "pids": ("pids.max", "pids.current"),
}


def states(members: Sequence[Member]) -> Iterator[Item]:
    """`proc.*` (status, wchan, threads, limits) and `env.*` (NAME=value) of each process."""
    for member in members:
        folder = Path(f"/proc/{member.pid}")
        try:
            status, limits = ((folder / name).read_text() for name in ("status", "limits"))
        except OSError as error:
            yield refused(f"state of process {member.pid}", error)
            continue
        facts = {"Wchan": member.wchan, "Started": member.started, "Command": member.command, "Role": member.role}
        places = {"Rank": member.rank, "LocalRank": member.local_rank, "WorldSize": member.world_size}
        head = "".join(f"{name}:\t{value}\n" for name, value in {**facts, **places}.items() if value not in (None, ""))
        yield Taken(f"proc.{member.label}.txt", f"{status}{head}\n{_tasks(folder)}\n{limits}", str(folder))
        lines = "".join(f"{name}={value}\n" for name, value in member.environment.items())
        yield Taken(f"env.{member.label}.txt", lines, f"{folder}/environ")


def _tasks(folder: Path) -> str:
    """Each thread's state and what it waits for in the kernel; the whole kernel stack where it waits for a device."""
    lines: list[str] = []
    for entry in sorted(os.listdir(folder / "task"), key=int)[:_MOST_TASKS]:
        task = folder / "task" / entry
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            wchan = (task / "wchan").read_text().strip("0\n")
            lines.append(f"task {entry} {name} {rest.split()[0]} {wchan}".rstrip())
            if rest.split()[0] == "D":
                lines += (task / "stack").read_text().splitlines()
        except OSError:
            continue  # a thread that has ended, or a kernel stack that only root may see
    return "\n".join(lines) + "\n"


def cgroups(members: Sequence[Member]) -> Iterator[Item]:
    """`cgroup.txt`: memory events and limits, frozen or not, of each control group that the job runs in."""
    paths: dict[Path, None] = {}
    for member in members:
        for line in Path(f"/proc/{member.pid}/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            place = place.lstrip("/")
            if not controllers:
                paths.update(dict.fromkeys(Path("/sys/fs/cgroup", place, name) for name in _CGROUP_V2))
            for controller in controllers.split(","):
                for name in _CGROUP_V1.get(controller, ()):
                    # inside a container the path is the host's, and the container's own group is the root of what it sees
                    inside = Path("/sys/fs/cgroup", controller, place, name)
                    paths[inside if inside.exists() else Path("/sys/fs/cgroup", controller, name)] = None
    yield from sections("cgroup.txt", "/sys/fs/cgroup", list(paths))


def sockets(members: Sequence[Member]) -> Iterator[Item]:
    """`ss.txt`: the TCP connections of the job, with what waits in their queues, as `ss -tanp` prints them."""
    lines: dict[str, None] = {"State Recv-Q Send-Q Local Address:Port Peer Address:Port Process": None}
    for member in members:
        folder = Path(f"/proc/{member.pid}")
        try:
            owned = _sockets_of(folder)
            table = [
                line for name in ("tcp", "tcp6") if (folder / "net" / name).exists() for line in (folder / "net" / name).read_text().splitlines()[1:]
            ]
        except OSError as error:
            yield refused(f"connections of process {member.pid}", error)
            continue
        name = Path(member.words[0]).name if member.words else "?"
        for line in table:
            fields = line.split()
            if (descriptor := owned.get(fields[9])) is not None:
                sending, receiving = (int(size, 16) for size in fields[4].split(":"))
                ends = f"{_address(fields[1])} {_address(fields[2])}"
                lines[f'{_TCP[int(fields[3], 16)]} {receiving} {sending} {ends} users:(("{name}",pid={member.pid},fd={descriptor}))'] = None
    yield Taken("ss.txt", "\n".join(lines) + "\n", "/proc/PID/net/tcp, /proc/PID/fd")


def _sockets_of(folder: Path) -> dict[str, str]:
    """Inode -> descriptor of the sockets that a process holds."""
    found: dict[str, str] = {}
    for descriptor in os.listdir(folder / "fd"):
        try:
            target = os.readlink(folder / "fd" / descriptor)
        except FileNotFoundError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            found[match[1]] = descriptor
    return found


def _address(text: str) -> str:
    """`0100007F:7295` -> 127.0.0.1:29333: words in the machine's byte order, the port in the network's."""
    words, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    if len(packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{int(port, 16)}"

"""This node's memory, load and file systems."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Taken, sections

_MOST_FILES = 100  # of /dev/shm, the largest ones


def memory() -> Iterator[Item]:
    """`meminfo.txt`: memory, load and pressure."""
    yield from sections(
        "meminfo.txt", "/proc", [Path("/proc", name) for name in ("meminfo", "loadavg", "pressure/memory", "pressure/io", "pressure/cpu", "uptime")]
    )


def shared_memory() -> Iterator[Item]:
    """`shm.txt`: the largest files of /dev/shm: bytes, owner, name."""
    with os.scandir("/dev/shm") as entries:
        files = sorted(((entry.stat(follow_symlinks=False), entry.name) for entry in entries), key=lambda file: -file[0].st_size)
    lines = [f"{status.st_size:>15} uid={status.st_uid} /dev/shm/{name}" for status, name in files[:_MOST_FILES]]
    yield Taken("shm.txt", "\n".join([f"{len(files)} files in /dev/shm", *lines]) + "\n", "/dev/shm")


def disks(members: Sequence[Member]) -> Iterator[Item]:
    """`df.txt`: the file systems that a job needs, as `df -k` prints them."""
    lines = ["Filesystem 1K-blocks Used Available Use% Mounted on"]
    folders = [os.environ.get("TMPDIR", "/tmp"), *(folder for member in members if (folder := _folder(member)))]
    for path in dict.fromkeys(["/", "/dev/shm", *folders]):
        try:
            disk = os.statvfs(path)
        except OSError:
            continue
        total, free, available = (blocks * disk.f_frsize // 1024 for blocks in (disk.f_blocks, disk.f_bfree, disk.f_bavail))
        used = total - free
        lines.append(f"{path} {total} {used} {available} {-(-100 * used // max(used + available, 1))}% {path}")
    yield Taken("df.txt", "\n".join(lines) + "\n", "statvfs")


def _folder(member: Member) -> str:
    try:
        return os.readlink(f"/proc/{member.pid}/cwd")
    except OSError:
        return ""

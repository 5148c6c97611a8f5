"""A memory cgroup with a small limit, in which a process can run out of memory while its machine does not.

`python cgroup.py FOLDER PID` is its janitor: it waits for the end of a process and removes the cgroup. It needs the standard library only.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

LONGEST = 600.0  # seconds that the janitor waits for the end of a process
_LEAVING = 10.0  # seconds that the kernel may take to let go of a cgroup whose processes have ended


def make(limit: int) -> Path:
    """A new cgroup whose processes may use so many bytes more than they do now. Raises OSError where the kernel refuses or has none."""
    parent, version = place(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    folder = parent / f"ncclcheck-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        if version == 1:
            (folder / "memory.oom_control").write_text("0")  # kill, do not pause: the setting is inherited
            (folder / "memory.limit_in_bytes").write_text(str(limit))
            _write_if_there(folder / "memory.memsw.limit_in_bytes", limit)
            _write_if_there(folder / "memory.swappiness", 0)
        else:
            (folder / "memory.max").write_text(str(limit))
            _write_if_there(folder / "memory.swap.max", 0)
    except OSError:
        folder.rmdir()
        raise
    return folder


def enter(folder: Path, pid: int) -> None:
    """Move a process there. What it uses already stays accounted where it was."""
    (folder / "cgroup.procs").write_text(str(pid))


def remove(folder: Path) -> bool:
    """Whether it is gone: waits for its last processes to leave, in bounded time."""
    ends = time.monotonic() + _LEAVING
    while folder.exists():
        try:
            folder.rmdir()
        except FileNotFoundError:
            break
        except OSError:
            if time.monotonic() > ends:
                return False
            time.sleep(0.01)
    return True


def remove_after(folder: Path, pid: int) -> None:
    """Leave a process behind, marked as nobody's, that removes the cgroup when another one has ended. Returns once it watches."""
    janitor = subprocess.Popen(
        [sys.executable, "-I", __file__, str(folder), str(pid)],
        env={}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip
    assert janitor.stdout
    if janitor.stdout.readline() != b"watching\n":
        raise ProcessLookupError(f"the janitor of {folder} did not come up")


def place(mountinfo: str, membership: str) -> tuple[Path, int]:
    """The cgroup in which one with a memory limit can be made, from these two files of /proc/self; version 1 or 2.

    It is our own one; in version 2, where a cgroup has processes or children with limits, the nearest above it that has the latter.
    """
    mounts = _mounts("memory", mountinfo)
    for line in membership.splitlines():
        _, controllers, own = line.split(":", 2)
        if "memory" in controllers.split(",") and "cgroup" in mounts:
            return _folder(mounts["cgroup"], own), 1
        if not controllers and "cgroup2" in mounts:
            top, folder = Path(mounts["cgroup2"][1]), _folder(mounts["cgroup2"], own)
            for parent in (folder, *folder.parents):
                if not parent.is_relative_to(top):
                    break
                if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                    return parent, 2
    raise FileNotFoundError("no cgroup here whose children can have a memory limit")


def levels(controller: str, mountinfo: str, membership: str) -> tuple[list[Path], int]:
    """Our own cgroup for this controller and all above it that can be seen, from these two files of /proc/self; version 1 or 2, 0 for none."""
    mounts = _mounts(controller, mountinfo)
    lines = [line.split(":", 2) for line in membership.splitlines()]
    for kind, version, own in (
        ("cgroup", 1, next((path for _, controllers, path in lines if controller in controllers.split(",")), None)),
        ("cgroup2", 2, next((path for _, controllers, path in lines if not controllers), None)),
    ):
        if own is not None and kind in mounts:
            top, folder = Path(mounts[kind][1]), _folder(mounts[kind], own)
            return [level for level in (folder, *folder.parents) if level.is_relative_to(top)], version
    return [], 0


def _mounts(controller: str, mountinfo: str) -> dict[str, list[str]]:
    """Where the hierarchy of this controller (version 1, "cgroup") and that of version 2 ("cgroup2") are mounted: [root, mount point]."""
    mounts: dict[str, list[str]] = {}
    for line in mountinfo.splitlines():
        words, _, more = line.partition(" - ")
        kind, _, options = more.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            mounts.setdefault(kind, words.split()[3:5])
    return mounts


def _folder(mount: list[str], own: str) -> Path:
    """Where a cgroup is found, seen through a mount that may show only a part of the hierarchy."""
    root, point = mount
    below = os.path.relpath(own, root)
    return Path(point) if below.startswith("..") else Path(point, below)


def _write_if_there(path: Path, value: int) -> None:
    if path.exists():
        path.write_text(str(value))


def main(folder: Path, pid: int) -> int:
    """0 once the cgroup is gone."""
    pidfd = os.pidfd_open(pid)
    print("watching", flush=True)
    select.select([pidfd], [], [], LONGEST)
    return not remove(folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

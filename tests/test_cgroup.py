"""A process runs out of its cgroup's memory and is killed by the kernel; machine, cgroups and bystanders stay as they were."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck import cgroup

ROOT = Path(cgroup.__file__).parents[1]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def parent() -> Iterator[Path]:
    """Where cgroups are made. At the end of a test none of ours is left there."""
    try:
        made = cgroup.make(64 << 20)
        made.rmdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    folder = made.parent
    yield folder
    until(lambda: not list(folder.glob("ncclcheck-*")), SOON, "the cgroup's end")


def test_the_fault_is_killed_by_the_kernel_and_its_cgroup_is_removed(parent: Path) -> None:
    script = "from ncclcheck.faults import host_oom; host_oom.inject()"
    with subprocess.Popen([sys.executable, "-c", script], env=ENVIRON) as victim:
        assert victim.wait(SOON) == -signal.SIGKILL


def test_the_kernel_log_names_the_victim(parent: Path) -> None:
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except PermissionError:
        pytest.skip("the kernel log may not be read here")
    os.lseek(log, 0, os.SEEK_END)
    with subprocess.Popen([sys.executable, "-c", "from ncclcheck.faults import host_oom; host_oom.inject()"], env=ENVIRON) as victim:
        victim.wait(SOON)

    def killed() -> bool:
        try:
            line = os.read(log, 8192).decode()
        except BlockingIOError:
            return False
        print(line)
        return bool(re.search(rf"Memory cgroup out of memory: Killed process {victim.pid} \(", line))

    until(killed, SOON, "the kernel's line")
    os.close(log)


def test_a_process_that_stays_below_the_limit_lives_in_its_cgroup_until_it_ends(parent: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        folder = cgroup.make(64 << 20)
        cgroup.remove_after(folder, process.pid)
        cgroup.enter(folder, process.pid)
        assert (folder / "cgroup.procs").read_text().split() == [str(process.pid)]


def test_the_janitor_outlives_the_process_group_of_the_victim(parent: Path) -> None:
    script = """
import os, sys
from ncclcheck import cgroup
folder = cgroup.make(64 << 20)
cgroup.remove_after(folder, os.getpid())
cgroup.enter(folder, os.getpid())
print("in", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as victim:
        assert victim.stdout and victim.stdout.readline() == b"in\n"
        assert list(parent.glob("ncclcheck-*"))
        os.killpg(victim.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("own", "handing_down", "expected"),
    [
        ("/user.slice/session-1.scope", ["", "user.slice"], "user.slice"),  # with processes in it, a cgroup has no limited children
        ("/user.slice/session-1.scope", [""], ""),
        ("/kubepods/job", ["", "kubepods", "kubepods/job"], "kubepods/job"),
        ("/", [], None),  # in a container that sees only its own cgroup
    ],
)
def test_in_version_2_a_cgroup_is_made_where_limits_are_handed_down(tmp_path: Path, own: str, handing_down: list[str], expected: str | None) -> None:
    for folder in (tmp_path / own[1:], *(tmp_path / own[1:]).parents):
        if folder.is_relative_to(tmp_path):
            folder.mkdir(parents=True, exist_ok=True)
            handed = "cpu memory pids" if str(folder.relative_to(tmp_path)).removeprefix(".") in handing_down else "cpu pids"
            (folder / "cgroup.subtree_control").write_text(handed + "\n")
    mountinfo = f"30 23 0:26 / {tmp_path} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
    if expected is None:
        with pytest.raises(FileNotFoundError, match="whose children can have a memory limit"):
            cgroup.place(mountinfo, f"0::{own}\n")
    else:
        assert cgroup.place(mountinfo, f"0::{own}\n") == (tmp_path / expected, 2)


def test_a_mount_that_shows_a_part_of_the_hierarchy_leads_to_our_own_cgroup() -> None:
    """As in a container with version 1: its cgroup is the root of what it sees."""
    mountinfo = "41 35 0:32 /docker/1f2e /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,memory\n"
    assert cgroup.place(mountinfo, "4:memory:/docker/1f2e/step\n0::/\n") == (Path("/sys/fs/cgroup/memory/step"), 1)
    assert cgroup.place(mountinfo, "4:memory:/\n0::/\n") == (Path("/sys/fs/cgroup/memory"), 1)


def test_without_a_cgroup_no_memory_is_used() -> None:
    """A user without rights to the hierarchy is refused before anything is allocated."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    script = "import os; from ncclcheck.faults import host_oom; from ncclcheck import fault\nos.setgid(65534); os.setuid(65534)\n"
    script += "try: host_oom.inject()\nexcept fault.CannotInject as reason: print(reason)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRON, capture_output=True, text=True, timeout=SOON)
    assert done.stdout.startswith("a memory cgroup: ") and "Permission denied" in done.stdout

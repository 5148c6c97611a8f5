"""`collect` as root gives nobody what only root may read: what a process names is read with that process's rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import SOON, until

from ncclcheck.collect import bundle, files, jobs
from ncclcheck.collect.as_owner import Child, NotAFile, Readers
from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Missing, Taken

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read for others what they may not read")

NOBODY = 65534
SECRET = "what-only-root-may-read"
PR_SET_DUMPABLE = 4  # as a program has it that was started by its user
JOB = f"""
import ctypes, os, sys, time
user, folder, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if root:
    os.chroot(root)
os.chdir(folder)
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, 1)
print("what the job says", flush=True)
sys.stdin.readline()
"""
PATHS = ("../shadow", "../closed/trace_", "{root}/shadow", "{root}/closed/trace_0", "link", "folder/trace_", "/proc/1/environ")
Start = Callable[..., Member]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of nobody's; beside it a file and a folder that only root may read."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o711)  # pytest makes them for root alone
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    shadow, closed = tmp_path / "shadow", tmp_path / "closed"
    closed.mkdir()
    for path in (shadow, closed / "trace_0"):
        path.write_text(SECRET)
        path.chmod(0o600)
    closed.chmod(0o700)
    return own


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """A rank of a job, which runs as `user` in its folder (below `root`, if given) and writes to `stdout`."""
    started: list[subprocess.Popen[bytes]] = []

    def run(user: int = NOBODY, stdout: str = "stdout.log", folder: str = "", root: str = "", **environ: str) -> Member:
        given = {"RANK": "0", "WORLD_SIZE": "2", "PATH": os.environ["PATH"], **environ}
        log = place / stdout
        with open(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", JOB, str(user), folder or str(place), root],
                env=given, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        started.append(process)
        until(lambda: "what the job says" in log.read_text(), SOON, "a job that has become its user")
        return next(member for member in jobs.find(process.pid)[0] if member.pid == process.pid)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def taken(member: Member) -> str:
    """All that is handed over of a process's files."""
    items = [item for source in (files.logs, files.dumps) for item in source([member]) if isinstance(item, Taken)]
    return "".join(item.data.decode("latin-1") if isinstance(item.data, bytes) else item.data for item in items)


@pytest.mark.parametrize("name", ["NCCL_DEBUG_FILE", "TORCHELASTIC_ERROR_FILE", "TORCH_FR_DUMP_TEMP_FILE"])
@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_only_root_may_read_is_not_handed_over_whichever_way_it_is_named(name: str, path: str, place: Path, start: Start) -> None:
    (place / "link").symlink_to("../shadow")
    (place / "folder").symlink_to("../closed")
    member = start(**{name: path.format(root=place.parent)})
    assert SECRET not in taken(member)
    assert "PATH=" not in taken(member)


def test_the_same_is_handed_over_where_the_process_may_read_it(place: Path, start: Start) -> None:
    """Else the tests above would prove nothing: root's own process, and a file of nobody's."""
    assert SECRET in taken(start(user=0, NCCL_DEBUG_FILE="../shadow"))
    assert SECRET in taken(start(user=0, TORCH_FR_DUMP_TEMP_FILE="../closed/trace_", stdout="second.log"))
    (place / "nccl.log").write_text("NCCL INFO Bootstrap")
    (place / "nccl.log").chmod(0o600)
    os.chown(place / "nccl.log", NOBODY, NOBODY)
    assert "NCCL INFO Bootstrap" in taken(start(NCCL_DEBUG_FILE="nccl.log", stdout="third.log"))


def test_what_a_process_may_write_and_not_read_stays_where_it_is(place: Path, start: Start) -> None:
    """Its stdout was opened for it by root: it holds no right to read that file, and a reader of its own gets none."""
    member = start(stdout="log-of-root")
    found = list(files.logs([member]))
    assert [item.what for item in found if isinstance(item, Missing)] == [f"stdout of process {member.pid}"]
    assert taken(member) == ""
    (place / "log-of-root").chmod(0o644)
    assert taken(member) == "what the job says\n"


def test_no_path_of_a_process_leads_out_of_its_root_folder(place: Path, start: Start) -> None:
    """A link in a container begins at the container's root, though its user is root there."""
    inside = place / "container"
    (inside / str(place.parent).lstrip("/")).mkdir(parents=True)
    (inside / "link").symlink_to(place.parent / "shadow")
    (inside / "up").symlink_to("../../../../../../../../.." + str(place.parent / "shadow"))
    for number, path in enumerate(("/link", "/up", "link", f"../../../..{place.parent}/shadow")):
        member = start(user=0, folder="/", root=str(inside), NCCL_DEBUG_FILE=path, stdout=f"{number}.log")
        assert SECRET not in taken(member)
    (inside / str(place.parent).lstrip("/") / "shadow").write_text("the container's own")
    member = start(user=0, folder="/", root=str(inside), NCCL_DEBUG_FILE="/up", stdout="last.log")
    assert "the container's own" in taken(member)


def test_a_pipe_is_not_waited_for_and_a_device_not_read(place: Path, start: Start) -> None:
    os.mkfifo(place / "fifo")
    os.chown(place / "fifo", NOBODY, NOBODY)
    member = start(NCCL_DEBUG_FILE="fifo", TORCH_FR_DUMP_TEMP_FILE="fi")
    assert SECRET not in taken(member)
    with Readers() as readers:
        reader = readers.of(member.pid, member.start)
        assert isinstance(reader, Child)
        for path in ("fifo", "/dev/zero", "."):
            with pytest.raises(NotAFile):
                reader.ends(path, 10, 10)


def test_a_process_with_the_rights_of_two_users_is_given_nothing(start: Start) -> None:
    """As a program has that belongs to root and is started by anybody, with whatever environment they like."""
    script = "import os, sys; os.setresuid(65534, 0, 0); print('ready', flush=True); sys.stdin.readline()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"NCCL_DEBUG_FILE": "/etc/shadow"})
    assert process.stdout and process.stdout.readline() == b"ready\n"
    try:
        (member,) = [member for member in jobs.find(process.pid)[0] if member.pid == process.pid]
        reasons = [item.reason for item in files.logs([member]) if isinstance(item, Missing) and item.what.startswith("nccl")]
        assert reasons == ["it runs with the rights of more than one user or group"]
    finally:
        process.communicate()


def test_who_reads_as_another_user_holds_nothing_of_ours(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCLCHECK_TOKEN", SECRET)
    member = start()
    with Readers() as readers:
        reader = readers.of(member.pid, member.start)
        with pytest.raises(PermissionError):
            reader.ends("../shadow", 10, 10)
        assert isinstance(reader, Child)
        status = Path(f"/proc/{reader._child.pid}/status").read_text()
        held = {line.split(":")[0]: line.split()[1:] for line in status.splitlines()}
        assert (held["Uid"], held["Gid"], held.get("Groups")) == ([str(NOBODY)] * 4, [str(NOBODY)] * 4, [])
        assert {int(held[name][0], 16) for name in ("CapPrm", "CapEff", "CapInh")} == {0}
        assert SECRET.encode() not in Path(f"/proc/{reader._child.pid}/environ").read_bytes()
        assert os.stat(f"/proc/{reader._child.pid}/environ").st_uid == 0  # it cannot be traced by that user
    assert reader._child.returncode is not None


def test_the_bundle_of_a_hostile_process_holds_none_of_it(place: Path, start: Start, tmp_path: Path) -> None:
    (place / "link").symlink_to("../shadow")
    member = start(NCCL_DEBUG_FILE="../shadow", TORCHELASTIC_ERROR_FILE="link", TORCH_FR_DUMP_TEMP_FILE="../closed/trace_")
    into = tmp_path / "into"
    into.mkdir()
    bundle.gather(into, member.pid, lambda text: None)
    held = {path.name: path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert held and not [name for name, data in held.items() if SECRET.encode() in data]

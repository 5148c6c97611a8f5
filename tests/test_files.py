"""What is written lands where its user wants it and for that user only, whatever somebody else has put there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON

from ncclcheck import safe_files
from ncclcheck.safe_files import Refused

PROGRAM = (sys.executable, "-m", "ncclcheck")
MALLORY = 65534
FULL_OF_EVIDENCE = "[rank3]: OSError: [Errno 28] No space left on device\n"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """A careless one: what is private is so by itself."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder into which everybody may write, as /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def link_of_mallory(link: Path, target: Path) -> None:
    link.symlink_to(target)
    os.chown(link, MALLORY, MALLORY, follow_symlinks=False)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], cwd=folder, capture_output=True, text=True, timeout=2 * SOON, umask=0)


def test_a_folder_is_made_for_its_user_alone_and_so_is_each_above_it(tmp_path: Path) -> None:
    made = safe_files.folder(tmp_path / "runs", "20260101-000000-ab12cd", "node0-a")
    assert made == tmp_path / "runs" / "20260101-000000-ab12cd" / "node0-a"
    assert {mode(made), mode(made.parent), mode(made.parent.parent)} == {0o700}
    assert safe_files.folder(made) == made
    with pytest.raises(FileExistsError):
        safe_files.folder(made.parent, made.name, new=True)


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "../up", "a/b", "a\0b"])
def test_a_name_that_somebody_sent_never_leads_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is no name of a folder"):
        safe_files.folder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@as_root
def test_a_link_that_somebody_else_made_is_not_followed_and_ones_own_is(shared: Path, tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    link_of_mallory(shared / "ncclcheck-runs", target)
    for names in ((), ("below",)):
        with pytest.raises(Refused, match=r"ncclcheck-runs is a symbolic link that \w+ made"):
            safe_files.folder(shared / "ncclcheck-runs", *names)
    assert list(target.iterdir()) == []
    (shared / "mine").symlink_to("../target")
    safe_files.folder(shared / "mine", "below")
    assert [path.name for path in target.iterdir()] == ["below"]


@as_root
def test_a_folder_of_somebody_else_is_refused(shared: Path) -> None:
    (shared / "ncclcheck-runs").mkdir()
    os.chown(shared / "ncclcheck-runs", MALLORY, MALLORY)
    with pytest.raises(Refused, match=r"ncclcheck-runs belongs to \w+, not to root"):
        safe_files.folder(shared / "ncclcheck-runs")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        safe_files.folder(tmp_path / "a", "below")


def test_a_file_is_replaced_as_a_whole_and_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    other = tmp_path / "second-name"
    os.link(path, other)
    safe_files.check(path)
    safe_files.write(path, b"new")
    assert (path.read_text(), mode(path), other.read_text()) == ("new", 0o600, "old")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out.json", "second-name"]


def test_an_output_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        safe_files.write(path, "text")  # type: ignore[arg-type]
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["out.json"])


@pytest.mark.parametrize("work", [safe_files.check, lambda path: safe_files.write(path, b"x")])
def test_an_output_is_no_link_and_nobody_elses_file(work: object, tmp_path: Path) -> None:
    assert callable(work)
    (target := tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(Refused, match="is a symbolic link"):
        work(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(target, MALLORY, MALLORY)
        with pytest.raises(Refused, match=r"target belongs to \w+, not to root"):
            work(target)
    assert target.read_text() == "untouched"


def test_a_pipe_gets_what_is_written_once_somebody_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    safe_files.check(pipe)
    writer = threading.Thread(target=safe_files.write, args=(pipe, b"x" * 2**20))
    writer.start()
    assert pipe.read_bytes() == b"x" * 2**20
    writer.join(SOON)
    monkeypatch.setattr(safe_files, "READER_BOUND", 0.2)
    with pytest.raises(Refused, match=r"nobody read the pipe .* within 0.2 s"):
        safe_files.write(pipe, b"x")


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null"])
def test_standard_output_and_the_null_device_are_outputs_by_name(output: str, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(FULL_OF_EVIDENCE)
    done = run(tmp_path, "triage", "a.log", "--format", "json", "--output", output)
    assert done.returncode == 1, done.stderr
    if output != "/dev/null":
        assert json.loads(done.stdout)["status"] == "problem"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(("form", "expected"), [("text", 0o600), ("json", 0o600), ("junit", 0o600), ("prometheus", 0o666)])
def test_an_output_with_evidence_is_for_its_user_alone(form: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(FULL_OF_EVIDENCE)
    assert run(tmp_path, "triage", "a.log", "--format", form, "--output", "out").returncode == 1
    assert mode(tmp_path / "out") == expected


@as_root
@pytest.mark.parametrize(
    "words",
    ["triage a.log --output out", "plan . --nodes 1 --gpus-per-node 1 --gpu H100 --output out", "triage --live --output out", "bench --output out"],
)
def test_no_command_writes_its_result_through_a_planted_link(words: str, shared: Path, tmp_path: Path) -> None:
    (shared / "a.log").write_text(FULL_OF_EVIDENCE)
    (shared / "config.json").write_text("{}")
    (target := tmp_path / "target").write_text("untouched")
    link_of_mallory(shared / "out", target)
    done = run(shared, *words.split())
    assert (done.returncode, done.stdout) == (2, "") and "out is a symbolic link" in done.stderr
    assert target.read_text() == "untouched"


@as_root
@pytest.mark.parametrize("words", ["triage --live", "probe host --nnodes 1 --master 127.0.0.1", "drill hang", "bench"])
def test_a_planted_link_in_place_of_the_run_directory_is_refused_by_every_command(words: str, shared: Path, tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    link_of_mallory(shared / "ncclcheck-runs", target)
    done = run(shared, *words.split())
    assert done.returncode == 2 and "ncclcheck-runs is a symbolic link that" in done.stderr
    assert list(target.iterdir()) == []


def test_what_a_command_leaves_in_a_shared_folder_is_for_its_user_alone_and_it_says_where_that_is(shared: Path) -> None:
    live = run(shared, "triage", "--live", "--pid", str(os.getpid()))
    assert f"everybody may write into {shared}" in live.stderr
    collected = run(shared, "collect", "--pid", str(os.getpid()))
    assert collected.returncode == 0 and "everybody may write into" in collected.stderr
    for path in (path for made in shared.iterdir() for path in (made, *made.rglob("*"))):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert [path.suffixes[-2:] for path in shared.glob("ncclcheck-*.gz")] == [[".tar", ".gz"]]


@pytest.mark.slow
def test_a_run_leaves_nothing_that_others_may_read(tmp_path: Path) -> None:
    """But for what torch and vLLM make inside of folders that are closed."""
    done = run(tmp_path, "probe", "wiring", "--emulate", "2x1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.relative_to(tmp_path): mode(path) for path in tmp_path.rglob("*")}
    opened = [path for path, bits in found.items() if bits & 0o077 and not any(found[above] == 0o700 for above in list(path.parents)[:-1])]
    ours = [path for path, bits in found.items() if bits & 0o077 and not {"torchrun", "inductor"} & set(path.parts)]
    assert (opened, ours) == ([], [])

"""Temporary folders: they go with their maker, and what a killed one left goes when the next is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncclcheck.collect import host
from ncclcheck.scratch import OWNER, Scratch, sweep

MAKER = """
import sys
from ncclcheck.collect import host
from ncclcheck.scratch import Scratch
scratch = Scratch(sys.argv[1])
(scratch.path / "engine.sock").touch()
print(scratch.path, flush=True)
sys.stdin.read()
"""
Maker = tuple[subprocess.Popen[str], Path]


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Callable[[], Maker]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> Maker:
        process = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_its_maker_removes_is_gone(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    (scratch.path / "deep").mkdir()
    assert scratch.path.parent == tmp_path and scratch.path.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    assert list(tmp_path.iterdir()) == []
    scratch.remove()  # once more, and of one that somebody else has removed
    gone = Scratch(str(tmp_path))
    shutil.rmtree(gone.path)
    gone.remove()


def test_the_next_one_removes_what_a_killed_maker_left_and_nothing_of_a_living_one(maker: Callable[[], Maker], tmp_path: Path) -> None:
    killed, left = maker()
    _, alive = maker()
    killed.kill()
    killed.wait()
    assert (left / "engine.sock").exists(), "nobody has looked yet"
    scratch = Scratch(str(tmp_path))
    assert not left.exists() and (alive / "engine.sock").exists()
    assert set(tmp_path.iterdir()) == {alive, scratch.path}
    scratch.remove()


def test_only_folders_with_an_owner_of_this_user_and_no_links_are_taken_for_left(tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "ncclcheck-runs", tmp_path / "elsewhere"
    for folder in (runs, elsewhere):
        folder.mkdir()
    (elsewhere / OWNER).write_text(host.boot_id())
    (tmp_path / "ncclcheck-link").symlink_to(elsewhere)
    other = tmp_path / "ncclcheck-other"
    other.mkdir()
    (other / OWNER).symlink_to(elsewhere / OWNER)
    assert sweep(tmp_path) == []
    assert runs.exists() and other.exists() and (elsewhere / OWNER).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_another_users_folder_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "ncclcheck-theirs"
    theirs.mkdir()
    (theirs / OWNER).write_text(host.boot_id())
    os.chown(theirs, 65534, 65534)
    assert sweep(tmp_path) == [] and theirs.exists()


def test_what_another_machine_may_still_use_stays_and_so_does_what_cannot_be_looked_at(tmp_path: Path) -> None:
    shared = tmp_path / "ncclcheck-shared"
    shared.mkdir()
    (shared / OWNER).write_text("its boot")
    assert sweep(tmp_path / "nowhere") == []
    assert sweep(tmp_path) == [] and shared.exists()
    (shared / OWNER).write_text(host.boot_id())
    assert sweep(tmp_path) == [shared] and not shared.exists()

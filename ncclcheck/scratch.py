"""A temporary folder that goes with its maker, or, where that was killed, when the next one is made in its place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from ncclcheck.collect import host

PREFIX = "ncclcheck-"
OWNER = ".owner"  # locked by the maker for as long as it lives; a folder without it is not one of these


class Scratch:
    """One such folder, in `folder` or where temporary files go. First removes those of this user whose makers are gone."""

    def __init__(self, folder: str | None = None) -> None:
        sweep(folder or tempfile.gettempdir())
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        self._lock = os.open(self.path / f"{OWNER}-new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(self._lock, host.boot_id().encode())
        with contextlib.suppress(OSError):  # a filesystem without locks: then nobody will take the folder for left
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(self.path / f"{OWNER}-new", self.path / OWNER)  # whoever finds it finds it locked

    def remove(self) -> None:
        """The folder with all that is in it."""
        if self._lock >= 0:
            _remove(self.path, self._lock)
            self._lock = -1


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed processes of this user have left in this folder; what that was."""
    removed, ours = [], []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        ours = [Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]  # nothing else is looked at: a dead mount would block
    for path in ours:
        with contextlib.suppress(OSError):  # not one of these, another's, or its owner lives
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            lock = os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                known = os.read(lock, 100).decode("ascii", "replace") == host.boot_id()
            except OSError:
                known = False
            if not known:  # of a machine that shares this folder, perhaps, and not its locks
                os.close(lock)
                continue
            _remove(path, lock)
            removed.append(path)
    return removed


def _remove(path: Path, lock: int) -> None:
    """The owner's file goes last, so that what cannot be removed now is found again, and is closed before: NFS would keep it by another name."""
    with contextlib.suppress(OSError):  # it is gone
        for entry in path.iterdir():
            if not entry.name.startswith(OWNER):
                with contextlib.suppress(OSError):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    os.close(lock)
    with contextlib.suppress(OSError):
        if all(entry.name.startswith(OWNER) for entry in path.iterdir()):
            shutil.rmtree(path)

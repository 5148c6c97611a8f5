"""Makes folders and files where others may write, too: no link of theirs is followed, and nobody else reads what is made."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

READER_BOUND = 60.0  # seconds in which somebody must read a pipe that is to be written
_LOOK = 0.1  # seconds between two looks whether somebody does
_MOST_LINKS = 40  # as the kernel follows
_STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")  # only root makes entries there: /dev/stdout, /dev/null
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # to look at and to go on from
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(OSError):
    """A folder or file that is not safe to write; its only argument is a sentence that says why."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.strerror = sentence


def folder(path: Path, *names: str, new: bool = False) -> Path:
    """The folder `names`, one below the other, in the folder `path`: made where it is missing, for this user only.

    `new`: it must not be there yet. Raises OSError; Refused where it, or a link that leads to it, is another user's.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise Refused(f"{name!r} is no name of a folder")
    whole = path.joinpath(*names)
    with _reached(whole, make=True) as (place, made):
        if new and not made:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(whole))
        if not _ours(place):
            raise Refused(f"{whole} belongs to {_owner(os.fstat(place))}, not to {_called(os.geteuid())}: choose another folder")
    return whole


def exposed(path: Path) -> str:
    """Who else may rename or remove what is made in this folder, as a sentence; empty where nobody may."""
    with _reached(path) as (place, _):
        status = os.fstat(place)
    if status.st_uid not in (0, os.geteuid()) and str(status.st_uid) != os.environ.get("SUDO_UID"):  # who asked for it by sudo
        return f"{path} belongs to {_owner(status)}, who may rename and remove what is made there"
    return f"everybody may write into {path}; what is made there is for you only to read" if status.st_mode & stat.S_IWOTH else ""


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: no link is followed, and what it makes is for this user only."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def check(path: Path) -> None:
    """Raises OSError or Refused where `write` would, as far as that can be known before. A missing folder is made."""
    with _reached(path.parent, make=True) as (place, _):
        if not _is_stream(place, path):
            name = _beside(path)
            os.close(os.open(name, _NEW, 0o600, dir_fd=place))
            os.unlink(name, dir_fd=place)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a file there as a whole, in place of one of this user's. What is a device or a pipe is written into.

    Raises OSError; Refused for a link and for what is another user's.
    """
    with _reached(path.parent) as (place, _):
        if _is_stream(place, path):
            with open(path, "wb", opener=_open_stream) as stream:
                stream.write(data)
            return
        name = _beside(path)
        try:
            with open(os.open(name, _NEW, mode, dir_fd=place), "wb") as file:
                file.write(data)
            os.rename(name, path.name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place)
            raise


def _beside(path: Path) -> str:
    return f".{path.name[:200]}.{secrets.token_hex(8)}"


def _is_stream(place: int, path: Path) -> bool:
    """Whether a device or a pipe is there, not a file. Raises Refused, or OSError for a folder."""
    if os.path.abspath(path.parent) in _STREAMS:
        return True
    try:
        status = os.stat(path.name or ".", dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode):
        raise Refused(f"{path} is a symbolic link: name what it leads to")
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if status.st_uid != os.geteuid() and not stat.S_ISCHR(status.st_mode):
        raise Refused(f"{path} belongs to {_owner(status)}, not to {_called(os.geteuid())}")
    return not stat.S_ISREG(status.st_mode)


def _open_stream(path: str, flags: int) -> int:
    """Waits, bounded, for whoever reads a pipe."""
    end = time.monotonic() + READER_BOUND
    follow = 0 if os.path.abspath(os.path.dirname(path)) in _STREAMS else os.O_NOFOLLOW
    while True:
        try:
            descriptor = os.open(path, (flags & ~os.O_CREAT) | follow | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise Refused(f"nobody read the pipe {path} within {READER_BOUND:g} s") from None
            time.sleep(_LOOK)
            continue
        os.set_blocking(descriptor, True)
        return descriptor


@contextlib.contextmanager
def _reached(path: Path, make: bool = False) -> Iterator[tuple[int, bool]]:
    """A folder, held fast, and whether it was made now; one part of its path after the other, so that nobody can exchange one meanwhile.

    A link is followed only where root or this user made it. Raises OSError, Refused.
    """
    left = deque(path.parts or (".",))
    at, made, links, seen = os.open("/" if path.is_absolute() else ".", _PLACE), False, 0, Path()
    try:
        while left:
            part = left.popleft()
            seen, made = seen / part, False
            try:
                there = os.open(part, _PLACE, dir_fd=at)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):  # somebody was faster: then it must be safe as any other
                    os.mkdir(part, 0o700, dir_fd=at)
                    made = True
                there = os.open(part, _PLACE, dir_fd=at)
            status = os.fstat(there)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                target = Path(os.readlink("", dir_fd=there))
                os.close(there)
                if status.st_uid not in (0, os.geteuid()):
                    raise Refused(f"{seen} is a symbolic link that {_owner(status)} made: it is not followed")
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                left.extendleft(reversed(target.parts))
                continue
            os.close(at)
            at = there
            if not stat.S_ISDIR(status.st_mode):
                code = errno.EEXIST if make and not left else errno.ENOTDIR
                raise OSError(code, os.strerror(code), str(seen))
        yield at, made
    finally:
        os.close(at)


def _ours(place: int) -> bool:
    """Whether a folder belongs to root or to this user, as its file system calls them: some give what root makes to nobody."""
    owner = os.fstat(place).st_uid
    if owner in (0, os.geteuid()):
        return True
    name = f".{secrets.token_hex(8)}"
    try:
        mine = os.open(name, _NEW, 0o600, dir_fd=place)
    except OSError:
        return False
    try:
        return os.fstat(mine).st_uid == owner
    finally:
        os.close(mine)
        with contextlib.suppress(OSError):  # whose folder it is may have removed it
            os.unlink(name, dir_fd=place)


def _owner(status: os.stat_result) -> str:
    return _called(status.st_uid)


def _called(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"

"""Reads the files that a process names as that process could: where root looks, its user must not get by it what only root may read.

Where the process is another user's, or lives in another root folder, a child takes on both for good and reads there. This file is its program, too:
`python -I -S as_owner.py PID START` answers questions on standard input, one JSON line each, with one line and the bytes that it announces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

STREAMS = (1, 2)  # a process's stdout and stderr, which stand for their files
Name = str | int  # a path, or one of STREAMS
_IDENTITY = ("Uid", "Gid")  # of /proc/PID/status: real, effective, saved, of files


class NotAFile(OSError):
    """A pipe, a terminal, a device: to read from it would take from the job what is its own."""

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "it is no regular file")


@dataclass(frozen=True, slots=True)
class Ends:
    """A regular file as it was when it was read: both its ends, which are all of it where `size` is no more."""

    size: int
    modified: float  # seconds since the epoch
    head: bytes
    tail: bytes


class Reader:
    """Reads the files of another process with the rights that this one has."""

    def __init__(self, pid: int, root: str = "", folder: str = "") -> None:
        """`root` and `folder` are where its paths begin, as this process reaches them."""
        self._pid, self._root, self._folder = pid, root, folder

    def ends(self, name: Name, head: int, tail: int) -> Ends:
        """The first `head` and, of what follows these, the last `tail` bytes. Raises NotAFile, OSError; never waits for a pipe."""
        with self._open(name) as file:
            status = os.fstat(file.fileno())
            first = file.read(head)
            if status.st_size > head + tail:
                file.seek(status.st_size - tail)
            return Ends(status.st_size, status.st_mtime, first, file.read(tail))

    def names(self, beginning: str) -> list[str]:
        """The paths that begin so."""
        return sorted(path.removeprefix(self._root) for path in glob.glob(f"{glob.escape(self._path(beginning))}*"))

    def close(self) -> None:
        """Nothing more is read."""

    def _path(self, name: str) -> str:
        return f"{self._root}{name}" if os.path.isabs(name) else os.path.join(self._folder, name)

    def _descriptor(self, name: Name, flags: int) -> int:
        return os.open(f"/proc/{self._pid}/fd/{name}" if isinstance(name, int) else self._path(name), flags)

    def _open(self, name: Name) -> BinaryIO:
        descriptor = self._descriptor(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotAFile
        return os.fdopen(descriptor, "rb")


class Child(Reader):
    """Reads as another process could, by a child."""

    def __init__(self, pid: int, start: int) -> None:
        super().__init__(pid)
        words = [sys.executable, "-I", "-S", __file__, str(pid), str(start)]
        # its user may look into it once it is one of theirs: it gets neither our environment nor our files
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/")

    def ends(self, name: Name, head: int, tail: int) -> Ends:
        told = self._ask(name=name, head=head, tail=tail)
        return Ends(told["size"], told["modified"], self._bytes(told["head"]), self._bytes(told["tail"]))

    def names(self, beginning: str) -> list[str]:
        return list(self._ask(beginning=beginning)["names"])

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            told: dict[str, Any] = json.loads(self._child.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise PermissionError("what reads as its user was ended") from None
        if told.get("kind"):
            raise NotAFile
        if "errno" in told:
            raise OSError(told["errno"], told["text"]) if told["errno"] else PermissionError(told["text"])
        return told

    def _bytes(self, count: int) -> bytes:
        assert self._child.stdout
        data = self._child.stdout.read(count)
        if len(data) < count:
            raise PermissionError("what reads as its user was ended")
        return data


class Readers(AbstractContextManager["Readers"]):
    """One for each process of which something is read; all are closed when this is left."""

    def __init__(self) -> None:
        self._made: dict[int, Reader] = {}

    def of(self, pid: int, start: int) -> Reader:
        """What reads as this process could; `start` tells it from a later one with its pid."""
        if pid not in self._made:
            self._made[pid] = Child(pid, start) if _differs(pid) else _here(pid)
        return self._made[pid]

    def __exit__(self, *raised: object) -> None:
        for reader in self._made.values():
            reader.close()


def _here(pid: int) -> Reader:
    root, folder = f"/proc/{pid}/root", ""
    with contextlib.suppress(OSError):
        folder = os.readlink(f"/proc/{pid}/cwd")
    other = not same_root(root)
    return Reader(pid, root, f"{root}{folder}") if other else Reader(pid, folder=folder)


def same_root(root: str) -> bool:
    """Whether a process's root folder (`/proc/PID/root`) is ours."""
    try:
        return os.path.samestat(os.stat(root), os.stat("/"))
    except OSError:
        return True


def _differs(pid: int) -> bool:
    """Whether this process may read more than that one, and can do something about it: nobody but root can."""
    if os.geteuid() != 0:
        return False
    try:
        user, group, _, _ = _identity(pid)
    except OSError:
        return True  # the child will say why
    return (user, group) != (0, 0) or not same_root(f"/proc/{pid}/root")


def _identity(pid: int) -> tuple[int, int, Sequence[int], int]:
    """User, group, further groups and capabilities of a process. Raises PermissionError where it has the rights of several."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        told = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    users, groups = (set(map(int, told[name].split())) for name in _IDENTITY)
    if len(users) > 1 or len(groups) > 1:
        raise PermissionError("it runs with the rights of more than one user or group")
    return users.pop(), groups.pop(), list(map(int, told["Groups"].split())), int(told["CapEff"], 16)


def become(pid: int, start: int) -> Reader:
    """Take on the root folder, current folder, groups and user of a process, for good. Raises OSError."""
    user, group, groups, capabilities = _identity(pid)
    at = os.O_PATH | os.O_CLOEXEC
    root, folder, own = os.open(f"/proc/{pid}/root", at), os.open(f"/proc/{pid}/cwd", at), os.open("/proc/self/fd", at)
    streams: dict[int, int] = {}
    for number in STREAMS:
        with contextlib.suppress(OSError):  # closed
            streams[number] = os.open(f"/proc/{pid}/fd/{number}", at)
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        if int(file.read().rpartition(")")[2].split()[19]) != start:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(folder)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if user == 0:  # else the kernel has taken them all
        _keep_capabilities(capabilities)
    return _Become(pid, own, streams)


class _Become(Reader):
    """Opens streams anew by what is held of them: whether that may be read is asked now."""

    def __init__(self, pid: int, own: int, streams: Mapping[int, int]) -> None:
        super().__init__(pid)
        self._own, self._held = own, streams

    def _descriptor(self, name: Name, flags: int) -> int:
        if not isinstance(name, int):
            return super()._descriptor(name, flags)
        if name not in self._held:
            raise FileNotFoundError(errno.ENOENT, "it is closed")
        return os.open(str(self._held[name]), flags, dir_fd=self._own)


def _keep_capabilities(kept: int) -> None:
    """None but these (capget(2), version 3)."""
    header, words = struct.pack("Ii", 0x20080522, 0), [(kept >> shift) & 0xFFFFFFFF for shift in (0, 32)]
    if ctypes.CDLL(None, use_errno=True).capset(header, struct.pack("6I", words[0], words[0], 0, words[1], words[1], 0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(pid: int, start: int) -> None:
    """Answer until nobody asks any more."""
    out = sys.stdout.buffer
    reader: Reader | OSError
    try:
        reader = become(pid, start)
    except OSError as error:
        reader = error
    for line in sys.stdin.buffer:
        data: list[bytes] = []
        try:
            if isinstance(reader, OSError):
                raise reader
            question = json.loads(line)
            if "beginning" in question:
                told: dict[str, Any] = {"names": reader.names(question["beginning"])}
            else:
                told = asdict(reader.ends(**question))
                data = [told["head"], told["tail"]]
                told |= {"head": len(data[0]), "tail": len(data[1])}
        except NotAFile:
            told = {"kind": "not a file"}
        except OSError as error:
            told = {"errno": error.errno, "text": error.strerror or str(error)}
        out.write(json.dumps(told).encode() + b"\n" + b"".join(data))
        out.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

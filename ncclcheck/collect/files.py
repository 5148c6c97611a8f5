"""The files that a job writes: its logs, NCCL's, and the dumps of the flight recorder."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Missing, Taken, refused

HEAD = 1 << 20  # bytes of each log that are taken, from its beginning: versions, settings, who is who
TAIL = 4 << 20  # and from its end
_LARGEST_DUMP = 64 << 20  # bytes
_MOST_DUMPS = 64
_STREAMS = {1: "stdout", 2: "stderr"}
_READERS = "kubectl logs POD > POD.log; or docker logs CONTAINER > CONTAINER.log 2>&1; or the file that tee, srun or the launcher writes"


def logs(members: Sequence[Member]) -> Iterator[Item]:
    """`log.*`: the beginning and end of each regular file that is a process's stdout, stderr, NCCL_DEBUG_FILE or error file; each once.

    A file into which several processes write is named after none of them. What goes into a pipe is for its reader to give.
    """
    writers: dict[tuple[int, int], list[tuple[Member, str, str]]] = {}
    piped: dict[str, list[str]] = {}  # pipe -> the streams that go into it
    for member in members:
        for path, stream in _log_paths(member).items():
            try:
                with _regular(path) as file:
                    status = os.fstat(file.fileno())
            except (FileNotFoundError, _NotAFile):
                if _is_pipe(path):
                    piped.setdefault(os.readlink(path), []).append(f"{stream} of process {member.pid}")
                continue
            except OSError as error:
                yield refused(f"{stream} of process {member.pid}", error)
                continue
            writers.setdefault((status.st_dev, status.st_ino), []).append((member, stream, path))
    for streams in piped.values():
        yield Missing(", ".join(streams), "it goes into a pipe, whose reader keeps it", _READERS)
    for found in writers.values():
        member, stream, path = found[0]
        label = member.label if len({writer.pid for writer, _, _ in found}) == 1 else member.host.replace("/", "_")
        try:
            origin = os.readlink(path) if os.path.islink(path) else path
            with _regular(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                data = file.read(min(size, HEAD + TAIL))
                if size > HEAD + TAIL:
                    file.seek(size - TAIL)
                    data = _joined(data[:HEAD], file.read(TAIL), size)
        except OSError as error:
            yield refused(f"{stream} of process {member.pid}", error)
            continue
        if size > HEAD + TAIL:
            origin += f" (the first and the last of {size} bytes)"
        if data:
            yield Taken(f"log.{label}.{stream}.log", data.decode("utf-8", "replace"), origin)


def dumps(members: Sequence[Member]) -> Iterator[Item]:
    """`fr.*`: what the flight recorder of these processes has written since they started."""
    prefixes: dict[str, float] = {}
    for member in members:
        for prefix in _dump_prefixes(member.environ):
            path, started = _as_seen_by(member, prefix), datetime.fromisoformat(member.started).timestamp()
            prefixes[path] = min(prefixes.get(path, started), started)
    taken = 0
    for prefix, since in prefixes.items():
        for path in sorted(glob.glob(f"{glob.escape(prefix)}*")):
            try:
                with _regular(path) as file:
                    status = os.fstat(file.fileno())
                    if status.st_mtime < since:
                        continue
                    if status.st_size > _LARGEST_DUMP or taken == _MOST_DUMPS:
                        yield Missing(path, f"{status.st_size} bytes, after {taken} other dumps", f"copy it: cp {path} .")
                        continue
                    data = file.read(_LARGEST_DUMP)
            except (FileNotFoundError, _NotAFile):
                continue
            except OSError as error:
                yield refused(path, error)
                continue
            taken += 1
            # a pickle is kept as it is; the same as JSON is text
            yield Taken(f"fr.{Path(path).name}", data if data[:1] == b"\x80" else data.decode("utf-8", "replace"), path)


class _NotAFile(Exception):
    """A pipe, a terminal or a device: to read from it would take from the job what is its own."""


def _regular(path: str) -> BinaryIO:
    """The file, opened for reading only if it is a regular one. Raises _NotAFile, OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _NotAFile
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _NotAFile
    return file


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode) and os.path.islink(path)
    except OSError:
        return False


def _joined(head: bytes, tail: bytes, size: int) -> bytes:
    """Both ends of a log in whole lines: a line without its beginning could hide a secret's name."""
    head, tail = head[: head.rfind(b"\n") + 1], tail.partition(b"\n")[2]
    return b"%s[ncclcheck: %d bytes are left out here]\n%s" % (head, size - len(head) - len(tail), tail)


def _log_paths(member: Member) -> dict[str, str]:
    """Path -> what it is. NCCL replaces %h and %p in the name of its log."""
    paths = {f"/proc/{member.pid}/fd/{number}": stream for number, stream in _STREAMS.items()}
    if setting := member.environ.get("NCCL_DEBUG_FILE"):
        place = member.environ.get("HOSTNAME", member.host).partition(".")[0]
        paths[_as_seen_by(member, setting.replace("%h", place).replace("%p", str(member.pid)))] = "nccl"
    if error := member.environ.get("TORCHELASTIC_ERROR_FILE"):
        paths[_as_seen_by(member, error)] = "error"
    return paths


def _dump_prefixes(environ: Mapping[str, str]) -> list[str]:
    """What the names of its dumps begin with: as set, else where torch writes them by itself, now and before 2.9."""
    setting = environ.get("TORCH_FR_DUMP_TEMP_FILE") or environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '')}/.cache"
    return [setting] if setting else [f"{cache}/torch/comm_lib_trace_rank_", "/tmp/nccl_trace_rank_"]


def _as_seen_by(member: Member, path: str) -> str:
    """A path of the process, which may live in a container and in another folder, as this process reaches it."""
    root = f"/proc/{member.pid}/root"
    if not os.path.isabs(path):
        try:
            path = os.path.join(os.readlink(f"/proc/{member.pid}/cwd"), path)
        except OSError:
            return path
    return path if _same_root(root) else f"{root}{path}"


def _same_root(root: str) -> bool:
    try:
        return os.path.samestat(os.stat(root), os.stat("/"))
    except OSError:
        return True

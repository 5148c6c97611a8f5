"""The files that a job writes: its logs, NCCL's, and the dumps of the flight recorder."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ncclcheck.collect.as_owner import STREAMS, Ends, Name, NotAFile, Reader, Readers, same_root
from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Missing, Taken, refused

HEAD = 1 << 20  # bytes of each log that are taken, from its beginning: versions, settings, who is who
TAIL = 4 << 20  # and from its end
_LARGEST_DUMP = 64 << 20  # bytes
_MOST_DUMPS = 64
_MOST_TRIED = 4  # writers of one log by whose rights it is tried
_READERS = "kubectl logs POD > POD.log; or docker logs CONTAINER > CONTAINER.log 2>&1; or the file that tee, srun or the launcher writes"


def logs(members: Sequence[Member]) -> Iterator[Item]:
    """`log.*`: the beginning and end of each regular file that is a process's stdout, stderr, NCCL_DEBUG_FILE or error file; each once.

    A file into which several processes write is named after none of them. What goes into a pipe is for its reader to give.
    """
    writers: dict[tuple[int, int], list[_Log]] = {}
    piped: dict[str, list[str]] = {}  # pipe -> the streams that go into it
    for member in members:
        for log in _logs(member):
            try:
                status = os.stat(log.path)  # as seen from here; whether it may be read is asked when it is
            except FileNotFoundError:
                continue
            except OSError as error:
                yield refused(log.what, error)
                continue
            if stat.S_ISREG(status.st_mode):
                writers.setdefault((status.st_dev, status.st_ino), []).append(log)
            elif stat.S_ISFIFO(status.st_mode) and os.path.islink(log.path):
                piped.setdefault(os.readlink(log.path), []).append(log.what)
    for streams in piped.values():
        yield Missing(", ".join(streams), "it goes into a pipe, whose reader keeps it", _READERS)
    with Readers() as readers:
        for found in writers.values():
            try:
                log, ends = _ends(readers, found)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield _refused(found[0].what, error)
                continue
            origin = os.readlink(log.path) if os.path.islink(log.path) else log.path
            data = ends.head + ends.tail
            if ends.size > HEAD + TAIL:
                origin += f" (the first and the last of {ends.size} bytes)"
                data = _joined(ends.head, ends.tail, ends.size)
            label = log.member.label if len({writer.member.pid for writer in found}) == 1 else log.member.host.replace("/", "_")
            if data:
                yield Taken(f"log.{label}.{log.kind}.log", data.decode("utf-8", "replace"), origin)


def dumps(members: Sequence[Member]) -> Iterator[Item]:
    """`fr.*`: what the flight recorder of these processes has written since they started."""
    prefixes: dict[str, tuple[Member, str, float]] = {}
    for member in members:
        for prefix in _dump_prefixes(member.environ):
            path, started = _as_seen_by(member, prefix), datetime.fromisoformat(member.started).timestamp()
            first, _, since = prefixes.get(path, (member, prefix, started))
            prefixes[path] = first, prefix, min(since, started)
    taken = 0
    with Readers() as readers:
        for member, prefix, since in prefixes.values():
            reader = readers.of(member.pid, member.start)
            for path in _names(reader, prefix):
                try:
                    status = reader.ends(path, 0, 0)
                    if status.modified < since:
                        continue
                    if status.size > _LARGEST_DUMP or taken == _MOST_DUMPS:
                        yield Missing(path, f"{status.size} bytes, after {taken} other dumps", f"copy it: cp {shlex.quote(path)} .")
                        continue
                    data = reader.ends(path, _LARGEST_DUMP, 0).head
                except (FileNotFoundError, NotAFile):
                    continue
                except OSError as error:
                    yield _refused(path, error)
                    continue
                taken += 1
                # a pickle is kept as it is; the same as JSON is text
                yield Taken(f"fr.{Path(path).name}", data if data[:1] == b"\x80" else data.decode("utf-8", "replace"), _as_seen_by(member, path))


@dataclass(frozen=True, slots=True)
class _Log:
    """What a process writes: its path as seen from here, its name as that process has it, and what kind of log it is."""

    member: Member
    path: str
    name: Name
    kind: str

    @property
    def what(self) -> str:
        return f"{self.kind} of process {self.member.pid}"


def _ends(readers: Readers, found: Sequence[_Log]) -> tuple[_Log, Ends]:
    """A log, by the first of its writers that may read it. Raises OSError where none may."""
    for number, log in enumerate(found, 1):
        try:
            return log, readers.of(log.member.pid, log.member.start).ends(log.name, HEAD, TAIL)
        except PermissionError:
            if number in (len(found), _MOST_TRIED):
                raise
    raise FileNotFoundError


def _refused(what: str, error: OSError) -> Missing:
    """Root gives nothing away that the job's user may not read."""
    return refused(what, error, "the job's user may not read it: if it is to be shown, copy it") if os.geteuid() == 0 else refused(what, error)


def _names(reader: Reader, prefix: str) -> list[str]:
    try:
        return reader.names(prefix)
    except OSError:  # the process is gone, or may not be looked at: what it writes elsewhere says so
        return []


def _joined(head: bytes, tail: bytes, size: int) -> bytes:
    """Both ends of a log in whole lines: a line without its beginning could hide a secret's name."""
    head, tail = head[: head.rfind(b"\n") + 1], tail.partition(b"\n")[2]
    return b"%s[ncclcheck: %d bytes are left out here]\n%s" % (head, size - len(head) - len(tail), tail)


def _logs(member: Member) -> Iterator[_Log]:
    """NCCL replaces %h and %p in the name of its log."""
    for number, stream in zip(STREAMS, ("stdout", "stderr"), strict=True):
        yield _Log(member, f"/proc/{member.pid}/fd/{number}", number, stream)
    place = member.environ.get("HOSTNAME", member.host).partition(".")[0]
    named = {
        "nccl": member.environ.get("NCCL_DEBUG_FILE", "").replace("%h", place).replace("%p", str(member.pid)),
        "error": member.environ.get("TORCHELASTIC_ERROR_FILE", ""),
    }
    for kind, path in named.items():
        if path:
            yield _Log(member, _as_seen_by(member, path), path, kind)


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
    return path if same_root(root) else f"{root}{path}"

"""One redacted bundle of what this node knows of its hung jobs, made of the files that people would send themselves."""

from __future__ import annotations

import atexit
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from ncclcheck import __version__, safe_files, secrets
from ncclcheck.collect import files, gpus, host, jobs, kernel_log, network, node, patient, pyspy, ras, states
from ncclcheck.collect.taken import Item, Missing

BOUND = 60.0  # seconds altogether
Progress = Callable[[str], None]
Add = Callable[[str, bytes], None]


@dataclass(slots=True)
class Manifest:
    """What was taken, and what could not be: `manifest.json`."""

    version: str
    host: str
    time: str  # UTC, ISO 8601
    seconds: float = 0.0
    processes: list[dict[str, Any]] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)  # file, bytes, origin
    missing: list[dict[str, Any]] = field(default_factory=list)  # what, reason, remedy


def gather(into: Path, pid: int | None, progress: Progress) -> Manifest:
    """Write the evidence of this node's jobs into a folder of `into` that is named by the host, with its manifest.

    With `pid`: of that process and its descendants. Raises ValueError where there is none, OSError where nothing can be written.
    """

    def add(name: str, data: bytes) -> None:
        *folders, last = name.split("/")
        with open(safe_files.folder(into, *folders) / last, "xb", opener=safe_files.private) as file:
            file.write(data)

    return _collect(add, pid, progress)


def write(folder: Path, pid: int | None, progress: Progress) -> Path:
    """The same as one file, `ncclcheck-<host>-<utc>.tar.gz`, that only its owner may read. Raises as `gather` does."""
    stem = f"ncclcheck-{_place()}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    partial_ = folder / f".{stem}.{token_hex(8)}.partial"
    safe_files.check(partial_)
    left = partial(partial_.unlink, missing_ok=True)
    atexit.register(left)  # where this runs in a thread that nobody waits for, the clean-up below is not reached
    try:
        with open(partial_, "xb", opener=safe_files.private) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:

            def add(name: str, data: bytes) -> None:
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
                archive.addfile(member, io.BytesIO(data))

            _collect(add, pid, progress)
        return _named(partial_, stem)
    finally:
        left()
        atexit.unregister(left)


def _named(path: Path, stem: str) -> Path:
    """The finished file under its name; a further one of the same second gets a number and replaces none."""
    for number in range(1, 1000):
        name = path.with_name(f"{stem}{'' if number == 1 else f'-{number}'}.tar.gz")
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            continue
        return path.replace(name)
    raise FileExistsError(f"{stem}.tar.gz and 998 more are there already")


def _collect(add: Add, pid: int | None, progress: Progress) -> Manifest:
    """Everything through the masks into `add`, as far as the time allows."""
    began = time.monotonic()
    manifest = Manifest(__version__, host.name(), datetime.now(UTC).isoformat(timespec="seconds"))
    names: set[str] = set()

    def keep(item: Item) -> None:
        if isinstance(item, Missing):
            manifest.missing.append(secrets.mask_all(asdict(item)))
            return
        data = secrets.mask_bytes(item.data) if isinstance(item.data, bytes) else secrets.mask(item.data).encode("utf-8", "replace")
        name = f"{_place()}/{_unique(secrets.mask(item.name), names)}"
        add(name, data)
        manifest.taken.append({"file": name, "bytes": len(data), "origin": secrets.mask(item.origin)})

    progress("looking for distributed processes")
    members, missing = jobs.find(pid)
    manifest.processes = [_told(member) for member in members]
    for entry in missing:
        keep(entry)
    if not members:
        keep(Missing("distributed processes", "none was found on this node", "ncclcheck collect --pid PID"))
    for what, bound, source in _sources(members):
        progress(what)
        for item in _answers(what, source, min(bound, BOUND - (time.monotonic() - began))):
            keep(item)
    manifest.seconds = round(time.monotonic() - began, 1)
    add(f"{_place()}/manifest.json", (json.dumps(asdict(manifest), indent=1) + "\n").encode())
    return manifest


def _answers(what: str, source: Callable[[], Iterable[Item]], seconds: float) -> Iterator[Item]:
    """What a source gives in time; one that is late, or cannot read what a foreign system says, does not end the others."""
    if seconds <= 0:
        yield Missing(what, f"not asked: {BOUND:g} s were over")
        return
    try:
        yield from patient.items(source, seconds)
    except OSError as error:  # TimeoutError is one
        yield Missing(what, str(error))
    except Exception as error:
        yield Missing(what, f"{type(error).__name__}: {error}")


def _sources(members: list[jobs.Member]) -> Iterable[tuple[str, float, Callable[[], Iterable[Item]]]]:
    """What is asked, in seconds at most, and how: first what changes soonest, last what only takes long."""
    return (
        ("process states", 10.0, partial(states.states, members)),
        ("NCCL RAS", 10.0, partial(ras.answers, members)),
        ("Python stacks", 30.0, partial(pyspy.stacks, members)),
        ("connections", 10.0, partial(states.sockets, members)),
        ("control groups", 5.0, partial(states.cgroups, members)),
        ("kernel log", 10.0, kernel_log.messages),
        ("interfaces and routes", 10.0, network.interfaces),
        ("InfiniBand", 5.0, network.infiniband),
        ("memory", 5.0, node.memory),
        ("shared memory", 5.0, node.shared_memory),
        ("GPUs", 35.0, gpus.reports),
        ("dumps", 15.0, partial(files.dumps, members)),
        ("logs", 20.0, partial(files.logs, members)),
        ("file systems", 5.0, partial(node.disks, members)),
    )


def _told(member: jobs.Member) -> dict[str, Any]:
    """One process as the manifest lists it."""
    names = ("pid", "role", "rank", "local_rank", "world_size", "command", "state", "wchan", "threads", "started")
    return {name: getattr(member, name) for name in names}


def _unique(name: str, taken: set[str]) -> str:
    """The name, made to differ from those before it."""
    base, number = name, 1
    while name in taken:
        number += 1
        stem, dot, ending = base.rpartition(".")
        name = f"{stem or base}-{number}{dot}{ending if stem else ''}"
    taken.add(name)
    return name


def _place() -> str:
    """This node's name as that of a folder."""
    return host.name().replace("/", "_").lstrip(".") or "node"

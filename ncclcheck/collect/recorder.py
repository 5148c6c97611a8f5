"""Asks the flight recorder of a rank that hangs where it is on its GPU: NCCL's monitor thread answers, whatever the rank itself does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from ncclcheck.evidence import flight_recorder
from ncclcheck.model import Fact
from ncclcheck.recorder import STATES

BOUND = 4.0  # seconds; the monitor thread looks once a second
_PIPE, _DUMP = "recorder-", "recorder-dump-"


def environment(folder: Path) -> dict[str, str]:
    """What torch must be told when a rank starts (torch appends the rank, and `.pipe` to the first)."""
    dump = str(folder / _DUMP)
    return {
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(folder / _PIPE),
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": dump,
        "TORCH_FR_DUMP_TEMP_FILE": dump,  # its newer name
        "TORCH_INCLUDE_STACK_TRACE": "0",  # they take seconds, and Python's lock
        "TORCH_INCLUDE_ONLY_ACTIVE": "1",
    }


def listens(folder: Path) -> bool:
    """Whether NCCL is used there, and its monitor threads listen."""
    return any(folder.glob(f"{_PIPE}*.pipe"))


async def pending(rank: int, pid: int, folder: Path) -> list[Fact]:
    """The oldest collective that has not completed, as a fact of kind "recorded" (group, seq, what, state); none where there is no recorder."""
    pipe, path = folder / f"{_PIPE}{rank}.pipe", folder / f"{_DUMP}{rank}"
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # refused where nobody reads it
    except OSError:
        return []
    before = path.stat().st_mtime_ns if path.exists() else 0
    try:
        os.write(descriptor, b"1")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BOUND):
                while True:
                    await asyncio.sleep(0.1)  # the answer is a file: there is nothing to wait on but its content
                    if path.exists() and path.stat().st_mtime_ns != before:
                        with contextlib.suppress(ValueError):  # not whole yet
                            return _oldest(rank, pid, path.read_bytes(), f"{folder.name}/{path.name}")
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return []


def _oldest(rank: int, pid: int, data: bytes, name: str) -> list[Fact]:
    """Of collectives only: the messages of a batch stay `scheduled` for ever."""
    dump = flight_recorder.read(data, name)
    found = []
    for group in dump.groups.values():
        calls = group.collectives
        if (at := calls.pending()) is not None:
            kind = dump.signatures[calls.kinds[at]]
            what = f"{kind.operation} {kind.text}".rstrip()
            fields = {"group": str(group), "seq": calls.seqs[at], "what": what, "state": STATES[calls.states[at]]}
            found.append((calls.records[at], Fact("recorded", rank=rank, pid=pid, fields=fields, source=dump.quote(calls, at))))
    return [min(found, key=lambda pair: pair[0])[1]] if found else []

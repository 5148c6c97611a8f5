"""What this node is and has, read by a child process that is killed where it does not answer in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

import msgspec

from ncclcheck import documents, interpreter, secrets
from ncclcheck.collect.inventory import Asked
from ncclcheck.survey import Question, Section

BOUND = 15.0  # seconds for the child: its own bound, and what it takes to start where many do
LARGEST = 16 * 2**20  # bytes of its answer
COMMAND = interpreter.module("ncclcheck.collect.inventory")
_REAPED = 0.5  # seconds in which a killed child is gone, unless it hangs in the kernel


async def inventory(
    question: Question, sections: Sequence[str], marks: Mapping[str, str], seconds: float = BOUND, command: Sequence[str] = COMMAND
) -> dict[str, Section]:
    """Section -> what was read there, secrets masked. `marks` is added to the child's environment. Raises OSError where no answer comes of it."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **marks}, start_new_session=True, limit=LARGEST,
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            line = await _answer(process, msgspec.json.encode(Asked(question, sections)))
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    finally:
        await _end(process)
    try:
        found = msgspec.json.decode(line, type=dict[str, dict[str, object]])
    except msgspec.MsgspecError as error:
        raise OSError(f"its answer cannot be read: {error}") from None
    masked: dict[str, Section] = secrets.mask_all(found)
    return masked


def unpack(data: bytes) -> dict[str, Section]:
    """The inventory that arrived. Raises Invalid for what is none."""
    found: dict[str, Section] = documents.unpack(data, dict[str, dict[str, object]], LARGEST)
    return found


async def _answer(process: asyncio.subprocess.Process, asked: bytes) -> bytes:
    """One line: the end of the child's output is not waited for, since a thread that hangs in the kernel keeps it open."""
    assert process.stdin and process.stdout and process.stderr
    with contextlib.suppress(OSError):  # it has ended: its last words say why
        process.stdin.write(asked)
        process.stdin.write_eof()
        await process.stdin.drain()
    try:
        line = await process.stdout.readline()
    except ValueError:
        raise OSError(f"its answer has more than {LARGEST >> 20} MiB") from None
    if not line.endswith(b"\n"):
        said = (await process.stderr.read()).decode("utf-8", "replace").strip().splitlines()
        raise OSError(f"it ended without an answer: {said[-1] if said else await process.wait()}")
    return line


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the child and what it started. One that has left by itself has done so."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAPED):
            await process.wait()

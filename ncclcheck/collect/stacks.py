"""Where a rank is in its code: asked politely (faulthandler, on SIGUSR2), else read from outside (py-spy)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from ncclcheck import safe_files
from ncclcheck.model import Evidence, Fact

BOUND = 3.0  # seconds each way of asking may take
_ANSWER = 1.0  # seconds in which a process that can answer has answered
_WAITING = re.compile(r"\b(threading|selectors|socket|queue)\.py")  # the standard library's waiting: who called it is what matters
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')


async def stack(rank: int, pid: int, folder: Path, stopped: bool) -> Fact:
    """One rank's stack, innermost frame first, as a fact of kind "stack" (or "no-stack" with the reason).

    `folder` holds the file into which the rank's faulthandler writes; only a rank of ours has one.
    """
    path = folder / f"rank{rank}.stack"
    before = path.stat().st_size if path.exists() else None
    if before is not None and not stopped:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGUSR2)
        text = await _grown(path, before)
        if text:
            first_line = path.read_text(errors="replace")[: before or 0].count("\n") + 1
            return _fact(rank, pid, text, "faulthandler", f"{folder.name}/{path.name}", first_line)
    return await _py_spy(rank, pid, folder)


def py_spy() -> str | None:
    """The program: beside this Python, else on the PATH."""
    return shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


async def _grown(path: Path, before: int) -> str:
    """What was appended, once it has stopped growing; empty if nothing came in time."""
    size = before
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ANSWER):
            while True:
                await asyncio.sleep(0.05)  # a signal's answer is a file: there is nothing to wait on but its size
                now = path.stat().st_size
                if now > before and now == size:
                    break
                size = now
    with open(path, "rb") as file:
        file.seek(before)
        return file.read().decode("utf-8", "replace")


async def _py_spy(rank: int, pid: int, folder: Path) -> Fact:
    program = py_spy()
    if not program:
        return Fact("no-stack", rank=rank, pid=pid, fields={"reason": "the process does not answer and py-spy is not installed"})
    process = await asyncio.create_subprocess_exec(
        program, "dump", "--nonblocking", "--pid", str(pid), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(BOUND):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Fact("no-stack", rank=rank, pid=pid, fields={"reason": f"py-spy gave no answer in {BOUND:g} s"})
    text = out.decode("utf-8", "replace")
    if process.returncode or not text.strip():
        reason = (err.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
        hint = " (CAP_SYS_PTRACE is missing)" if "ermission" in reason else ""
        return Fact("no-stack", rank=rank, pid=pid, fields={"reason": f"py-spy: {reason}{hint}"})
    path = folder / f"rank{rank}.py-spy.txt"
    safe_files.write(path, text.encode("utf-8", "replace"))
    return _fact(rank, pid, text, "py-spy", f"{folder.name}/{path.name}", 1)


def _fact(rank: int, pid: int, text: str, source: str, file: str, first_line: int) -> Fact:
    frames = main_thread(text)
    own = next((found for found in frames if not _WAITING.search(found[0])), frames[0] if frames else ("", 0))
    quote = Evidence(file, first_line + own[1], text.split("\n")[own[1]].strip())
    return Fact("stack", rank=rank, pid=pid, fields={"frames": [frame for frame, _ in frames], "own": own[0], "by": source}, source=quote)


def main_thread(text: str) -> list[tuple[str, int]]:
    """The main thread's frames in a faulthandler or py-spy dump, innermost first: `name (file:line)`, and the line it stands at (from 0)."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith(("Thread ", "Current thread "))]
    if text.startswith(("Thread 0x", "Current thread 0x")):
        start = starts[-1]  # faulthandler prints the main thread, the oldest, last
    else:
        start = next((i for i in starts if "MainThread" in lines[i]), starts[0] if starts else 0)
    frames: list[tuple[str, int]] = []
    for index, line in enumerate(lines[start + 1 :], start + 1):
        if line.startswith(("Thread ", "Current thread ")):
            break
        match = _FRAME.match(line)
        frame = f"{match['name']} ({_short(match['file'])}:{match['line']})" if match else line.strip()
        if frame:
            frames.append((frame, index))
    return frames


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])

"""A fault that breaks this node, kept by a process of its own (guard.py) that mends it when it is told to, or when this process is gone."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from ncclcheck import interpreter
from ncclcheck.fault import Place

STRIKE_BOUND = 10.0  # seconds in which a fault has struck
UNDO_BOUND = 10.0  # seconds in which it is mended


class Guard:
    """One fault on this node, from `struck` to `undo`."""

    def __init__(self, name: str, place: Place) -> None:
        self._name = name
        self._place = place
        self._process: asyncio.subprocess.Process | None = None
        self._over = False

    async def struck(self) -> str:
        """Break it; why that cannot be done here, or nothing."""
        self._process = await asyncio.create_subprocess_exec(
            *interpreter.module("ncclcheck.guard", self._name), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        if self._over:  # what it was for has ended meanwhile
            await self.undo()
            return "the launch had ended before it could strike"
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._process.stdin.write(msgspec.json.encode(self._place) + b"\n")
        try:
            async with asyncio.timeout(STRIKE_BOUND):
                said = (await self._process.stdout.readline()).decode().strip()
                if said != "struck":
                    return said.removeprefix("skip ") or (await self._process.stderr.read()).decode("utf-8", "replace").strip()[-500:]
        except TimeoutError:
            return f"it had not struck after {STRIKE_BOUND:g} s"
        return ""

    async def undo(self) -> None:
        """Mend it. Returns when it is mended, or when UNDO_BOUND is over."""
        self._over = True
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNDO_BOUND):
                await self._process.wait()

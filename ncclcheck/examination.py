"""Looking at a running job on all nodes at once: every agent bundles what it sees, node 0 triages all the bundles."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ncclcheck.model import Report

BUNDLE_BOUND = 75.0  # seconds in which a node's bundle must be written (its own bound is 60)
SENT_BOUND = 90.0  # seconds in which every node's bundle must have come
TRIAGE_BOUND = 120.0  # seconds for reading them all
PART = 1 << 19  # bytes of a bundle that travel in one message
LARGEST = 256 << 20  # bytes of a bundle that travel at all


def parts(bundle: bytes) -> list[bytes]:
    """A bundle as it travels; at least one part. Raises ValueError for one that is too large to travel."""
    if len(bundle) > LARGEST:
        raise ValueError(f"the bundle has {len(bundle) >> 20} MiB and only {LARGEST >> 20} MiB travel")
    return [bundle[at : at + PART] for at in range(0, len(bundle), PART)] or [b""]


class Bundles:
    """The bundles as they arrive: node number -> its parts."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[int, bytes]] = {}
        self._counts: dict[int, int] = {}
        self.failed: dict[int, str] = {}  # who could make none, and why

    def add(self, node: int, part: int, count: int, data: bytes, error: str) -> None:
        """One part has come; with `error`, there will be none from this node."""
        if error:
            self.failed[node] = error
        self._counts[node] = count
        self._parts.setdefault(node, {})[part] = data

    def done(self) -> set[int]:
        """The nodes of which nothing more is awaited."""
        return {node for node, count in self._counts.items() if len(self._parts[node]) >= count} | set(self.failed)

    def write(self, folder: Path, hosts: Mapping[int, str]) -> list[Path]:
        """The bundles that have come whole, as files in the folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = []
        for node in sorted(self.done() - set(self.failed)):
            path = folder / f"node{node}-{hosts[node]}.tar.gz"
            path.write_bytes(b"".join(self._parts[node][part] for part in range(self._counts[node])))
            paths.append(path)
        return paths


async def judge(paths: Sequence[Path]) -> Report:
    """The verdict on these bundles, by a process of its own: this one has threads and reads no foreign text."""
    command = [sys.executable, "-m", "ncclcheck", "triage", "--format", "json", *map(str, paths)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(TRIAGE_BOUND):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not out:
        raise RuntimeError(f"triage of the bundles failed: {errors.decode(errors='replace').strip()[-500:]}")
    return msgspec.json.decode(out, type=Report)

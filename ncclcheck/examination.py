"""Looking at a running job on all nodes at once: every agent bundles what it sees, node 0 triages all the bundles."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ncclcheck import interpreter, safe_files
from ncclcheck.model import Culprit, Evidence, Finding, Outcome, Report
from ncclcheck.safe_text import word

BUNDLE_BOUND = 75.0  # seconds in which a node's bundle must be written (its own bound is 60)
SENT_BOUND = 90.0  # seconds in which every node's bundle must have come
TRIAGE_BOUND = 120.0  # seconds for reading them all
TRIAGE_DEADLINE = 100.0  # seconds after which triage itself ends: what it read by then is better than nothing
PART = 1 << 19  # bytes of a bundle that travel in one message
LARGEST = 256 << 20  # bytes of a bundle that travel at all


def parts(bundle: bytes) -> list[bytes]:
    """A bundle as it travels; at least one part. Raises ValueError for one that is too large to travel."""
    if len(bundle) > LARGEST:
        raise ValueError(f"the bundle has {len(bundle) >> 20} MiB and only {LARGEST >> 20} MiB travel")
    return [bundle[at : at + PART] for at in range(0, len(bundle), PART)] or [b""]


class Bundles:
    """The bundles as they arrive, each in a file of the run's folder: node 0's memory must not hold them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._come: dict[int, set[int]] = {}  # node -> numbers of the parts that are there
        self._counts: dict[int, int] = {}
        self.failed: dict[int, str] = {}  # who could make none, and why

    def add(self, node: int, part: int, count: int, data: bytes, error: str) -> None:
        """One part has come; with `error`, or where it is none of a bundle, nothing more is taken from this node. Each part is taken once."""
        last = part == count - 1
        whole = len(data) == PART or (last and len(data) <= PART)
        if not error and not (0 <= part < count <= LARGEST // PART and count == self._counts.get(node, count) and whole):
            error = f"part {part} of {count} with {len(data)} bytes is none of a bundle"
        if error:
            self.failed[node] = error
            self._come.pop(node, None)
        elif node not in self.failed and part not in self._come.get(node, ()):
            self._counts[node] = count
            safe_files.folder(self._folder)
            with open(safe_files.private(str(self._path(node)), os.O_WRONLY | os.O_CREAT), "wb") as file:
                file.seek(part * PART)
                file.write(data)
            self._come.setdefault(node, set()).add(part)

    def whole(self) -> set[int]:
        """The nodes whose bundle has come."""
        return {node for node, parts in self._come.items() if len(parts) == self._counts[node]}

    def done(self) -> set[int]:
        """The nodes of which nothing more is awaited."""
        return self.whole() | set(self.failed)

    def name(self, hosts: Mapping[int, str]) -> list[Path]:
        """The bundles that have come whole, each under the name of its node; what came of others is removed."""
        paths = []
        for node in sorted(self._counts):
            if node in self.whole():
                path = self._folder / f"node{node}-{re.sub(r'[^A-Za-z0-9.-]', '_', hosts[node])[:128]}.tar.gz"
                paths.append(self._path(node).rename(path))
            else:
                self._path(node).unlink(missing_ok=True)
        return paths

    def _path(self, node: int) -> Path:
        return self._folder / f"node{node}.part"


def unseen(number: int, host: str | None, reason: str) -> Finding:
    """A node of which nothing came: it says nothing against the job, and leaves a question open."""
    name = f"node {number}" + (f" ({host})" if host else "")
    return Finding(
        "agent-lost",
        f"nothing is known of {name}: {reason}",
        Culprit(hosts=[host] if host else None),
        0.95,
        [Evidence("", 0, f"{name}: {reason}")],
        f"on {host or f'node {number}'}, while the job hangs: ncclcheck triage --live; or, for one verdict on all nodes, the same command as here "
        f"with --node-rank {number}, started on every node within --roll-call-timeout of each other",
    )


def unjudged(paths: Sequence[Path], error: Exception) -> Finding:
    """The bundles came, and triage of them gave no verdict."""
    title = f"the bundles of {len(paths)} node{'s' * (len(paths) != 1)} could not be judged: {error or type(error).__name__}"
    return Finding(
        "insufficient-evidence", title, confidence=0.3, evidence=[Evidence("", 0, title)], remedy=f"ncclcheck triage {word(paths[0].parent)}"
    )


def completed(examined: Report, absent: Sequence[Finding]) -> Report:
    """The verdict on the bundles that came, and after it what is not known of the others: without them nothing is healthy."""
    if not absent or examined.status is not Outcome.HEALTHY:
        return replace(examined, findings=[*examined.findings, *absent])
    return replace(examined, status=Outcome.UNKNOWN, summary=f"{examined.summary}; but {absent[0].title}", findings=[*absent, *examined.findings])


async def judge(paths: Sequence[Path]) -> Report:
    """The verdict on these bundles, by a process of its own: this one has threads and reads no foreign text.

    Raises TimeoutError, or RuntimeError or msgspec.MsgspecError where it gives none.
    """
    command = interpreter.module("ncclcheck", "triage", "--format", "json", "--deadline", f"{TRIAGE_DEADLINE:g}s", *map(str, paths))
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(TRIAGE_BOUND):
            out, errors = await process.communicate()
    except TimeoutError:
        raise TimeoutError(f"no verdict in {TRIAGE_BOUND:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not out:
        raise RuntimeError(f"triage of the bundles failed: {errors.decode(errors='replace').strip()[-500:]}")
    return msgspec.json.decode(out, type=Report)

"""What node 0 takes for so many nodes: time, delay of its loop, CPU and memory, from roll call to the verdict on a rank that stopped.

python tests/bench/control_plane.py [NODESxRANKS...] [--late COUNT] [--probes NAMES] [--profile FILE]      1024x8 and 4096x1 if not said

Node 0 is a process with a real coordinator; the agents of all nodes are simulated (see tests/simulated.py) by other processes of this
machine, and connect over loopback. docs/scale.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import simulated  # noqa: E402
from running import free_port  # noqa: E402

from ncclcheck import node, transport  # noqa: E402
from ncclcheck.cluster import Cluster  # noqa: E402
from ncclcheck.coordinator import Coordinator  # noqa: E402
from ncclcheck.options import Options  # noqa: E402

SHAPES = ("1024x8", "4096x1")
EACH = 1024  # agents of one process
HISTORY = 500.0  # seconds for which the ranks have issued calls when they are first seen
STEADY = 6.0  # seconds for which all ranks go on well before one stops
LOOK = 0.01  # seconds between two looks at how late the loop is
BOUND = 300.0  # seconds for everything


class Lag:
    """How late the loop wakes a task that only sleeps: the largest since it was last asked for, in seconds."""

    def __init__(self) -> None:
        self._largest = 0.0

    async def keep(self) -> None:
        """Look, for ever."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOK)
            self._largest = max(self._largest, time.monotonic() - before - LOOK)

    def take(self) -> float:
        """The largest so far; from now on it is counted afresh."""
        largest, self._largest = self._largest, 0.0
        return round(largest, 3)


class Agents:
    """The processes of the simulated agents."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    def say(self, line: str, to: int | None = None) -> None:
        """Tell all of them something, or one."""
        for process in self._processes if to is None else [self._processes[to]]:
            assert process.stdin
            process.stdin.write(line.encode() + b"\n")

    def end(self) -> None:
        """Nothing more is said to them."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()

    async def heard(self, of: int | None = None) -> list[dict[str, Any]]:
        """The next line of each of them, or of one."""
        chosen = self._processes if of is None else [self._processes[of]]
        return [json.loads(await process.stdout.readline()) for process in chosen if process.stdout]


@contextlib.asynccontextmanager
async def agents(port: int, nodes: int, ranks: int) -> AsyncIterator[Agents]:
    """Simulated agents of so many nodes, which wait for `go`."""
    started = []
    try:
        for first in (*range(0, nodes, EACH), nodes):  # the last process has no agents but those that come too late
            words = [str(word) for word in (port, first, min(EACH, nodes - first), nodes, ranks)]
            started.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, str(TESTS / "simulated.py"), *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
                )
            )  # fmt: skip
        yield Agents(started)
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def measure(nodes: int, ranks: int, late: int = 0, probes: Sequence[str] = ("training",), steady: float = STEADY) -> dict[str, Any]:
    """One run, from roll call to verdict."""
    lag, marks, row = Lag(), {}, {"nodes": nodes, "ranks": nodes * ranks}
    met, launched = asyncio.Event(), asyncio.Event()
    cpu = time.process_time

    def say(text: str) -> None:
        if "all" in text and "here after" in text:
            marks["met"] = time.monotonic()
            met.set()

    def show(text: str) -> None:
        if "starting" in text:
            launched.set()

    port, server = free_port(), transport.Server(simulated.KEY, node.MOST_EACH * nodes + node.MOST_MORE)
    server.bind(simulated.MASTER, port)
    options = Options(probes=probes, force=True, roll_call_timeout=BOUND, deadline=BOUND)
    async with agents(port, nodes, ranks) as others:
        await others.heard()
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(nodes, 0, simulated.MASTER, port, ranks)
            watching = asyncio.create_task(lag.keep())
            await asyncio.sleep(0.1)
            lag.take()
            coordinator, began, used = Coordinator(server, cluster, options, Path(folder), say, show), time.monotonic(), cpu()
            deciding = asyncio.create_task(coordinator.run())
            others.say(f"go {began - HISTORY}")
            await _either(met, deciding)
            row |= {"roll call, s": marks["met"] - began, "lag then, s": lag.take(), "CPU then, s": cpu() - used}
            used = cpu()
            await _either(launched, deciding)
            if len(probes) > 1:
                row |= {"the other probes, s": time.monotonic() - marks["met"], "lag with them, s": lag.take(), "CPU for them, s": cpu() - used}
            used = cpu()
            await asyncio.sleep(steady)
            row |= {"lag while ranks run, s": lag.take(), "CPU a second then": (cpu() - used) / steady}
            if late:
                used = cpu()
                others.say(f"late {late}", to=-1)
                (told,) = await others.heard(of=-1)
                if "late" not in told:
                    raise RuntimeError(f"node 0 has ended: {(await deciding).summary}")
                row |= {"late hellos": told["late"], "told so": told["told"], "their time, s": told["seconds"], "lag with these, s": lag.take()}
                row |= {"CPU for these, s": cpu() - used}
            used, stall = cpu(), time.monotonic() + 0.5
            others.say(f"stall {stall}")
            report = await deciding
            row |= {"lag to the verdict, s": lag.take(), "CPU to the verdict, s": cpu() - used}
            others.end()
            seen = await others.heard()
            watching.cancel()
    row |= {
        "noticed, s": min(one["asked"] for one in seen[:-1]) - stall,
        "judged, s": min(one["told"] for one in seen[:-1]) - max(one["stopped"] for one in seen),
        "verdict there, s": min(one["told"] for one in seen[:-1]) - stall,
        "verdict everywhere, s": max(one["all_told"] for one in seen) - stall,
        "agents told": sum(one["ended"] for one in seen),
        "lost": sum(one["lost"] for one in seen),
        "longest silence, s": max(one["silence"] for one in seen),
        "peak, MB": _peak(),
        "CPU of agents, s": sum(one["cpu"] for one in seen),
        "cause": ", ".join(dict.fromkeys(finding.cause for finding in report.findings)),
        "right": report.findings[0].cause == "rank-stuck-in-python" and list(report.findings[0].culprit.ranks or ()) == [nodes * ranks - 1],
    }
    await server.close()
    return row


async def _either(event: asyncio.Event, task: asyncio.Task[Any]) -> None:
    """Until something happened; what is to make it happen must not have ended."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        raise RuntimeError(f"node 0 has ended: {task.result().summary}")


def _peak() -> float:
    """Megabytes of memory that this process had at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _rows(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Node 0 in a process of its own for each shape: its memory is its own then."""
    for shape in asked.shapes:
        words = [sys.executable, __file__, shape, "--one", f"--late={asked.late}", f"--probes={asked.probes}", f"--profile={asked.profile}"]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
        yield json.loads(done.stdout)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--late", type=int, default=0, help="agents that come when the roll is complete")
    parser.add_argument("--probes", default="training", help="training, after any that look at the nodes: host,reachability,training")
    parser.add_argument("--profile", default="", help="write what cProfile saw of node 0 into this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        nodes, ranks = (int(part) for part in asked.shapes[0].split("x"))
        with cProfile.Profile() if asked.profile else contextlib.nullcontext() as profile:
            row = asyncio.run(measure(nodes, ranks, asked.late, asked.probes.split(",")))
        if profile:
            profile.dump_stats(asked.profile)
        print(json.dumps({name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}))
        return
    rows = list(_rows(asked))
    names = list(rows[0])
    print(tabulate([[name, *(row[name] for row in rows)] for name in names], headers=["", *asked.shapes], floatfmt=".2f"))


if __name__ == "__main__":
    main()

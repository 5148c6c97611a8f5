"""Put a vLLM server that is spread over the nodes under load, and time it (`ncclcheck bench` is made of this).

What it checks
    Each node of a layout starts its part of `vllm serve` (several nodes: vLLM's own --nnodes mode, --headless on all but
    node 0); when the server answers, vLLM's own client (vllm bench serve) puts it under each load in turn, and the server
    is asked meanwhile how full its KV cache and its queue are. Nothing of it is a pass or a fail but whether it could be
    measured: times to the first token, per token and per request, requests and tokens per second.

What a failure means
    tp-not-divisible, kv-cache-or-memory-too-small, model-not-on-node, ...: vLLM's own words when the server did not start.
    probe-crashed: it ended, or was not ready in time, and its log (vllm-serve.log in the run's folder) names no cause.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_bench
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import triage, vllm_model, vllm_server, vllm_tokenizer
from ncclcheck.bench.cells import Cell, Layout, Load
from ncclcheck.bench.cells import Server as Asked
from ncclcheck.bench.client import Client, measured
from ncclcheck.bench.reading import Unreadable
from ncclcheck.bench.store import Store
from ncclcheck.collect import host
from ncclcheck.meeting import Meeting
from ncclcheck.model import Fact
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone
from ncclcheck.vllm_server import NotReady, Place, Server

TIMEOUT = 7200.0  # --deadline bounds it
MIN_RANKS = 1
ORDER = 95
NEEDS = ("vllm",)
GROUP = False

START_BOUND = 600.0  # seconds for a server of the model that we make; of another one it may take
START_BOUND_WITH_MODEL = 3600.0
CELL_BOUND = 1800.0
OVER = "over"  # the word that node 0 leaves for the others
LAST_WORD = 10.0  # seconds in which it must have come where a node's part has ended
LOOK = 0.3  # seconds between two looks at whether it has come
QUIET = "--disable-uvicorn-access-log"  # one line for each request would cost time


class Task(msgspec.Struct, frozen=True):
    """What `ncclcheck bench` asks for. `store`: the folder in which results are kept; `left`: how many runs come after this one."""

    server: Asked
    loads: list[Load]
    store: str = ""
    where: dict[str, Any] = {}
    made_for: int = 1
    left: int = 0


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds bench, cell, cell-failed and fail."""
    task = _task(rank)
    layout = task.server.layout
    with Meeting(rank) as meeting:
        if rank.rank == 0:
            yield Fact("bench", fields={"layout": str(layout), "left": task.left})
        if rank.identity.local_rank == 0 and (rank.identity.node_rank or 0) < layout.nodes:
            yield from _serve(rank, task, meeting)
        else:
            with rank.local("wait for the load", bound=TIMEOUT, opaque=True):
                meeting.wait(OVER, TIMEOUT)


def _task(rank: Rank) -> Task:
    """What was asked for; alone, one load on all ranks."""
    if told := rank.options.get("bench"):
        return msgspec.convert(told, Task)
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    settings = [("kv-cache-memory-bytes", str(64 * 2**20)), ("max-model-len", "1024")]
    if rank.device.index is None:
        settings += [("dtype", "float32"), ("enforce-eager", "true")]
    server = Asked(Layout(rank.world_size, 1, rank.world_size // each), tuple(sorted(settings)))
    return Task(server, [Load(4, 128, 32, 32)], made_for=rank.world_size)


def _serve(rank: Rank, task: Task, meeting: Meeting) -> Iterator[Fact]:
    """This node's part of the server."""
    node, layout = rank.identity.node_rank or 0, task.server.layout
    told = os.environ.get("NCCLCHECK_DIR") or tempfile.mkdtemp(prefix="ncclcheck-bench-")
    folder = Path(told).resolve()  # the server works in a folder of its own
    environ, added = vllm_server.environment(folder, os.environ, on_cpu=rank.device.index is None)
    yield Fact("environment", fields={"added": added})
    with tempfile.TemporaryDirectory(prefix="model-", dir=folder) as scratch:
        model = _model(rank, task, Path(scratch))
        address, meet, port = meeting.place(node == 0)
        place = Place(model, layout.nodes, node, address, meet, port, layout.tp, layout.pp, options=[*task.server.arguments(), QUIET])
        with Server(vllm_server.command(place), environ, folder / "vllm-serve.log", [port] if node == 0 else []) as server:
            try:
                if node == 0:
                    yield from _head(rank, task, server, place, environ, folder)
                    meeting.say(OVER)
                else:
                    _follow(rank, server, meeting)
            except NotReady as error:
                yield from _failures(error)
                raise
            with rank.local("end vllm serve", bound=60.0, opaque=True):
                server.end()


def _model(rank: Rank, task: Task, scratch: Path) -> Path:
    """The folder of the model: what --model says, or one that is made on the spot."""
    if asked := rank.options.get("model"):
        return Path(asked)
    with rank.local("write model"):
        shape = vllm_model.config(task.made_for)
        vllm_model.write(scratch, task.made_for)
        vllm_tokenizer.write(scratch, shape["vocab_size"], shape["max_position_embeddings"])
    return scratch


def _head(rank: Rank, task: Task, server: Server, place: Place, environ: dict[str, str], folder: Path) -> Iterator[Fact]:
    """Node 0: wait for the server, put it under each load, keep and tell what was measured."""
    store = Store(Path(task.store), task.where) if task.store else None
    bound = START_BOUND_WITH_MODEL if rank.options.get("model") else START_BOUND
    with Client(environ, folder / "vllm-bench.log") as client:
        with rank.local("vllm serve start", bound=bound, opaque=True):
            server.ready(bound)
        startup = time.monotonic() - server.began
        with rank.local("vllm bench import", bound=bound, opaque=True):
            client.ready(bound)
        for number, load in enumerate(task.loads):
            with rank.local(f"load: {load}", bound=CELL_BOUND, opaque=True):
                try:
                    result = measured(client, server, place.port, place.model, load, folder, f"load{number}", CELL_BOUND)
                except Unreadable as error:
                    yield Fact("cell-failed", fields={"load": str(load), "why": str(error)})
                    continue
            result = replace(result, startup=startup)
            if store:
                store.put(Cell(task.server, load), result)
            yield Fact("cell", fields={"load": str(load), "result": asdict(result)})


def _follow(rank: Rank, server: Server, meeting: Meeting) -> None:
    """Another node: until node 0 has measured. Raises NotReady where this node's part ends, or fails, before."""
    with rank.local("serve", bound=TIMEOUT, opaque=True):
        while not meeting.said(OVER):
            server.poll()
            if server.raised() or (server.exit_code is not None and not meeting.heard_within(OVER, LAST_WORD)):
                server.check()
            time.sleep(LOOK)


def _failures(error: NotReady) -> list[Fact]:
    """The causes that vLLM's own words name, as failures; else that it did not serve."""
    found = [
        Fact("fail", fields={"cause": finding.cause, "title": finding.title, "remedy": finding.remedy})
        for finding in triage.stated_by(error.lines, "vLLM")
    ]
    return found or [Fact("fail", fields={"cause": "probe-crashed", "title": f"{error!s:.500} ({host.name()})"})]


if __name__ == "__main__":
    run_alone(__file__)

"""The nouns of a measurement: a server (its layout and settings), a load, a cell that joins the two, and what was measured in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

SCHEMA = 1  # of a cell's key: with another one nothing that was kept is taken for measured


@dataclass(frozen=True, slots=True)
class Layout:
    """How a server lies on the nodes; `link` is what the ways between them are limited to (`1Gbit,2ms`), empty for nothing."""

    tp: int = 1
    pp: int = 1
    nodes: int = 1
    link: str = ""

    @property
    def ranks(self) -> int:
        """GPUs, or processes on CPUs."""
        return self.tp * self.pp

    @property
    def each(self) -> int:
        """Ranks on a node."""
        return self.ranks // self.nodes

    def __str__(self) -> str:
        stages = f" PP={self.pp}" if self.pp > 1 else ""
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"TP={self.tp}{stages}{nodes}" + (f", {self.link}" if self.link else "")


@dataclass(frozen=True, slots=True)
class Server:
    """A layout and vLLM's options, each as (name without leading dashes, value), sorted; true and false switch one on and off."""

    layout: Layout
    settings: tuple[tuple[str, str], ...] = ()

    def changed(self, name: str, value: str) -> Server:
        """The same with one setting more, or another value for it."""
        return Server(self.layout, tuple(sorted({**dict(self.settings), name: value}.items())))

    def arguments(self) -> list[str]:
        """The settings as `vllm serve` takes them."""
        words = []
        for name, value in self.settings:
            match value:
                case "true":
                    words.append(f"--{name}")
                case "false":
                    words.append(f"--no-{name}")
                case _:
                    words += [f"--{name}", value]
        return words


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests, `concurrency` of them at once, each of so many tokens in and out."""

    concurrency: int
    input: int
    output: int
    requests: int

    def __str__(self) -> str:
        return f"concurrency {self.concurrency}, {self.input} in, {self.output} out"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement to be made."""

    server: Server
    load: Load

    def key(self, where: Mapping[str, Any]) -> str:
        """What it is kept under: another model, version, machine, setting or load is another cell."""
        told = msgspec.json.encode([SCHEMA, sorted(where.items()), self.server, self.load])
        return hashlib.sha256(told).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    p50: float
    p99: float
    mean: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one cell gave. Times in seconds, rates per second; `cache` and the like were read from the server while it worked."""

    ttft: Spread  # from a request to its first token
    tpot: Spread  # for each token after the first
    itl: Spread  # between two tokens that arrive
    e2e: Spread  # of a whole request
    duration: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    tokens_per_second: float  # out
    cache: float | None = None  # the largest share of the KV cache in use
    running: int | None = None  # most requests in a step
    waiting: int | None = None  # most requests that waited for a place in it
    preempted: int | None = None  # requests thrown out of the cache
    startup: float | None = None  # of the server

    @property
    def per_request(self) -> float:
        """Tokens per second that one request sees."""
        return 1 / self.tpot.p50 if self.tpot.p50 else 0.0

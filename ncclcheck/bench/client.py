"""vLLM's own load (vllm_load.py) as a process beside the server, and the server's gauges meanwhile."""

from __future__ import annotations

import http.client
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from ncclcheck import interpreter
from ncclcheck.bench import reading
from ncclcheck.bench.cells import Load, Result
from ncclcheck.bench.reading import Gauges, Unreadable
from ncclcheck.vllm_server import NAME, NotReady, Server

LOOKS = 0.2  # seconds between two looks at the server's gauges
LOOK_BOUND = 2.0  # seconds for one of them
MOST_METRICS = 2**22  # bytes of them
LOCAL = "127.0.0.1"
END_BOUND = 10.0  # seconds in which the client has ended


class Client(AbstractContextManager["Client"]):
    """The process that sends requests; it has ended when this is left."""

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        self._log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                interpreter.module("ncclcheck.vllm_load"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                env={**environ, "NCCLCHECK_CLIENT_OF": str(os.getpid())},
            )  # fmt: skip

    def ready(self, seconds: float) -> None:
        """Wait until it has imported vLLM's benchmark. Raises NotReady."""
        if (said := self._answer(seconds, lambda: None)) != "ready":
            raise NotReady("load", f"is up, and its client is not: {said}", self._log.read_text(errors="replace").splitlines()[-12:])

    def run(self, arguments: Sequence[str], seconds: float, meanwhile: Callable[[], None]) -> None:
        """One benchmark. Raises Unreadable where it failed. `meanwhile` is called again and again."""
        assert self._process.stdin
        try:
            self._process.stdin.write(msgspec.json.encode(list(arguments)) + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unreadable(f"vllm bench serve is gone: {error.strerror}") from None
        if (said := self._answer(seconds, meanwhile)) != "done":
            raise Unreadable(said.removeprefix("failed "))

    def _answer(self, seconds: float, meanwhile: Callable[[], None]) -> str:
        assert self._process.stdout
        end = time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], LOOKS)[0]:
            meanwhile()
            if time.monotonic() > end:
                return f"no answer within {seconds:g} s"
        return self._process.stdout.readline().decode("utf-8", "replace").strip() or f"it ended; see {self._log.name}"

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(END_BOUND)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def measured(client: Client, server: Server, port: int, model: Path, load: Load, folder: Path, name: str, seconds: float) -> Result:
    """One cell, as the server at this port of this node gives it. Raises Unreadable; NotReady where the server has ended."""
    seed = int.from_bytes(os.urandom(3))  # prompts that no server has in its cache yet
    url = f"http://{LOCAL}:{port}"
    arguments = reading.arguments(url, NAME, str(model), load, seed, folder, f"{name}.json")
    seen: list[Gauges] = []
    before = _look(port)

    def look() -> None:
        server.poll()
        server.check()
        if found := _look(port):
            seen.append(found)

    try:
        client.run(arguments, seconds, look)
    except Unreadable:
        server.poll()
        server.check()
        raise
    return reading.loaded(reading.result(folder / f"{name}.json", load), before, seen)


def _look(port: int) -> Gauges | None:
    """What the server does at this moment, by its own account."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=LOOK_BOUND)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return reading.gauges(answer.read(MOST_METRICS).decode("utf-8", "replace")) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()

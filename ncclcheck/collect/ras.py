"""Asks NCCL itself: the RAS service of a job's ranks says which ranks each communicator misses."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence

from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Missing, Taken

BOUND = 5.0  # seconds for one service
_PATIENCE = 3  # seconds that the service may wait for the other nodes, so that its answer comes within ours
_LARGEST = 16 << 20  # bytes of an answer
DEFAULT = ("127.0.0.1", 28028)


def answers(members: Sequence[Member]) -> Iterator[Item]:
    """`ncclras.txt` of each service that the job's ranks name (NCCL_RAS_ADDR), or of NCCL's default one."""
    ranks = [member for member in members if member.role in ("rank", "worker")]
    places = dict.fromkeys(address(member.environ.get("NCCL_RAS_ADDR", "")) for member in ranks)
    for number, (host, port) in enumerate(places):
        try:
            text = ask(host, port)
        except (OSError, ValueError) as error:
            remedy = "NCCL 2.24 or newer, without NCCL_RAS_ENABLE=0, listens there once a communicator is made"
            yield Missing("NCCL RAS", f"{host}:{port}: {error}", remedy)
        else:
            yield Taken(f"ncclras.{port}.txt" if number else "ncclras.txt", text, f"{host}:{port} (NCCL RAS: verbose status)")


def address(setting: str) -> tuple[str, int]:
    """NCCL_RAS_ADDR (`host:port`, `[v6]:port`, as NCCL reads it) -> where to ask on this node."""
    host, _, port = setting.rpartition(":")
    return (host.strip("[]") or DEFAULT[0], int(port)) if port.isdecimal() and host else DEFAULT


def ask(host: str, port: int) -> str:
    """The service's own text. Raises OSError (TimeoutError after 5 s), or ValueError where something else listens there."""
    until = time.monotonic() + BOUND
    with socket.create_connection((host, port), timeout=1.0) as stream:
        _say(stream, "CLIENT PROTOCOL 2", until)
        if not (said := _line(stream, until)).startswith(b"SERVER PROTOCOL "):
            raise ValueError(f"it is not NCCL RAS that answers ({said[:40]!r})")
        _say(stream, f"TIMEOUT {_PATIENCE}", until)
        _line(stream, until)
        _say(stream, "VERBOSE STATUS", until)
        answer = bytearray()
        while len(answer) < _LARGEST and (piece := _receive(stream, until)):
            answer += piece
    return answer.decode("utf-8", "replace")


def _say(stream: socket.socket, command: str, until: float) -> None:
    stream.settimeout(_left(until))
    stream.sendall(f"{command}\n".encode())


def _line(stream: socket.socket, until: float) -> bytes:
    """One line; the service sends nothing more before it is asked again."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 1024 and (piece := _receive(stream, until)):
        line += piece
    return line


def _receive(stream: socket.socket, until: float) -> bytes:
    stream.settimeout(_left(until))
    return stream.recv(1 << 16)


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError(f"no answer in {BOUND:g} s")
    return left

"""Watches one node's `vllm serve` and what the other nodes say of theirs, and announces every phase with its own bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ncclcheck import vllm_board
from ncclcheck.probe import Announced, Rank
from ncclcheck.vllm_board import Board
from ncclcheck.vllm_process import LOOK
from ncclcheck.vllm_server import BOUNDS, SERVING, NotReady, Server

ANSWER_BOUND = 60.0  # seconds in which requests must be answered
END_BOUND = 60.0  # seconds in which node 0's server has ended
SETTLE = 5.0  # seconds in which the node on which something happened has said so
SLACK = 20.0  # seconds that the agents wait longer than we do: who looks at the processes knows more
ENDING, ENDED = "ending", "ended"

T = TypeVar("T")


class Elsewhere(Exception):
    """Another node has said what failed, or all of them can see it."""


class Still(Exception):
    """No node made progress for so many seconds."""


class Watch:
    """The server of this node, once there is one, and the notes of all nodes."""

    def __init__(self, rank: Rank, board: Board, host: str) -> None:
        self.rank, self.board, self.host = rank, board, host
        self.node = rank.identity.node_rank or 0
        self.head = self.node == 0
        self.server: Server | None = None
        self.notes: dict[int, dict[str, Any]] = {}
        self.beat = 0
        self.moved = time.monotonic()  # when any node made progress

    def follow(self, done: Callable[[], bool]) -> None:
        """Watch the server until `done`, each phase announced with its own bound."""
        assert self.server
        while not done():
            phase = self.server.phase
            with self.rank.local(f"vllm serve: {phase}", bound=BOUNDS[phase] + SLACK) as announced:
                while self.server.phase == phase and not done():
                    self.look(announced)
                    time.sleep(LOOK)
        self.look(None)

    def look(self, announced: Announced | None) -> None:
        """One look at the server and at the board. Raises NotReady, Still or Elsewhere."""
        assert self.server
        if self.server.poll():
            self.beat += 1
            if announced:
                announced.next()
        self.board.post(phase=self.server.phase, beat=self.beat, workers=sorted(self.server.workers()))
        before = [note.get("beat") for note in self.notes.values()]
        self.read()
        if before != [note.get("beat") for note in self.notes.values()]:
            self.moved = time.monotonic()
        if self.notes.get(0, {}).get("phase") in (ENDING, ENDED):
            return  # what ends now may end because of that
        self.server.check()
        quiet = time.monotonic() - self.moved
        phases = [str(note.get("phase")) for note in vllm_board.underway(self.notes).values()]
        if SERVING not in phases and quiet > max(BOUNDS.get(phase, 0.0) for phase in phases) + (0.0 if self.head else SETTLE):
            raise Still(f"vllm serve made no progress on any node for {quiet:.0f} s in phase {self.server.phase}")

    def read(self) -> dict[int, dict[str, Any]]:
        self.notes = self.board.read()
        if vllm_board.failed(self.notes, self.node):
            raise Elsewhere
        return self.notes

    def await_end(self, done: Callable[[], bool]) -> None:
        """Until other nodes have ended their servers; whether they did is told by themselves."""
        deadline = time.monotonic() + END_BOUND
        with self.rank.local("vllm serve: other nodes' shutdown", bound=END_BOUND + SLACK):
            while not done() and time.monotonic() < deadline:
                self.read()
                time.sleep(LOOK)

    def ask(self, what: str, requests: Sequence[Callable[[], T]]) -> tuple[list[T], float]:
        """The answers to requests that are sent at once, and the seconds until the last; meanwhile the server is watched."""
        began = time.monotonic()
        pool = ThreadPoolExecutor(len(requests))
        try:
            answers = [pool.submit(request) for request in requests]

            def done() -> bool:
                if time.monotonic() - began > ANSWER_BOUND:
                    raise NotReady(SERVING, f"gave no answer to {what} within {ANSWER_BOUND:g} s", self.server.errors() if self.server else [])
                return all(answer.done() for answer in answers)

            self.watched(what, done)
            return [answer.result() for answer in answers], time.monotonic() - began
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def watched(self, what: str, done: Callable[[], bool]) -> None:
        with self.rank.local(f"vllm serve: {what}", bound=ANSWER_BOUND + SLACK) as announced:
            looked = 0.0
            while not done():
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    self.look(announced)
                time.sleep(0.01)

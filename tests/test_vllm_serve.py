"""vLLM's own multi-node server: its command and phases, what its silence means, its client, and real servers on two nodes that pass and fail."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from cpus import within_a_node
from running import SOON, Job, environments, free_port, until

from ncclcheck import cli, session, vllm_board, vllm_cpu, vllm_http, vllm_model, vllm_ray, vllm_server, vllm_trouble
from ncclcheck.collect import processes
from ncclcheck.model import Fact, Outcome, ProbeResult, Report, Status
from ncclcheck.ports import listens
from ncclcheck.report import text
from ncclcheck.vllm_process import Tree
from ncclcheck.vllm_server import BOUNDS, Place, Server
from ncclcheck.vllm_trouble import Seen

ROOT = Path(__file__).parent.parent
HEAD = """\
(APIServer pid=70) INFO 11-22 12:03:29 [api_utils.py:286] non-default args: {'model_tag': 'm'}
(EngineCore pid=77) INFO 11-22 12:03:40 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m'
(Worker pid=91) INFO 11-22 12:03:47 [parallel_state.py:1906] world_size=2 rank=0 local_rank=0 distributed_init_method=tcp://10.7.0.1:2982 backend=gloo
(Worker pid=91) INFO 11-22 12:03:48 [cpu_communicator.py:47] CPU SHM communicator disabled for group tp:0: ranks do not share the same SHM group name
(Worker_TP0 pid=91) INFO 11-22 12:03:49 [cpu_model_runner.py:68] Starting to load model m...
(Worker_TP0 pid=91) INFO 11-22 12:03:49 [default_loader.py:501] Loading weights took 0.01 seconds
(EngineCore pid=77) INFO 11-22 12:03:50 [core.py:402] init engine (profile, create kv cache, warmup model) took 0.09 s
INFO:     Waiting for application startup.
INFO:     Application startup complete.
""".splitlines()


def place(node: int, nodes: int = 2) -> Place:
    return Place(Path("/m"), nodes, node, "10.0.0.1", 29501, 8000, 2)


def test_the_command_is_what_users_type_and_differs_by_node_only_where_it_must() -> None:
    head, other = vllm_server.command(place(0)), vllm_server.command(place(1))
    assert head[1:6] == ["-P", "-m", "vllm.entrypoints.cli.main", "serve", "/m"]
    text = " ".join(head)
    wiring = "--nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 29501"
    split = "--tensor-parallel-size 2 --pipeline-parallel-size 1"
    for part in (wiring, split, "--distributed-executor-backend mp", "--distributed-timeout-seconds ", "--host 127.0.0.1 --port 8000"):
        assert part in text
    assert "--headless" in other and "--port" not in other and "--headless" not in head
    assert "--nnodes" not in vllm_server.command(place(0, nodes=1))


def test_the_server_gets_what_the_user_has_set_and_nothing_of_a_launcher_around_us(tmp_path: Path) -> None:
    given = {
        "VLLM_HOST_IP": "10.0.0.1",
        "OMP_NUM_THREADS": "7",
        "RANK": "1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "PATH": "/bin",
    }
    environ, added = vllm_server.environment(tmp_path, given | {"NCCLCHECK_RUN": "x", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, on_cpu=True)
    assert environ["VLLM_HOST_IP"] == "10.0.0.1" and environ["OMP_NUM_THREADS"] == "7" and environ["NCCLCHECK_RUN"] == "x"
    assert not {"RANK", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "VLLM_ENABLE_V1_MULTIPROCESSING"} & environ.keys()
    assert "OMP_NUM_THREADS" not in added and added.items() <= environ.items()


def test_missing_metadata_of_vllm_are_made_and_no_others(tmp_path: Path) -> None:
    _, added = vllm_server.environment(tmp_path, {"PYTHONPATH": "/mine"}, on_cpu=True)
    script = "import importlib.metadata as m; print(m.version('vllm'))"
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": added.get("PYTHONPATH", "/mine")}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, timeout=SOON)
    assert done.returncode == 0, done.stderr
    assert "/mine" in clean["PYTHONPATH"]


def test_a_start_goes_through_its_phases_in_their_order_however_its_log_comes() -> None:
    phases, phase = [], vllm_server.SPAWN
    for line in HEAD:
        phase = vllm_server.phase_of(phase, [line])
        phases.append(phase)
    assert list(dict.fromkeys(phases)) == ["configuration", "rendezvous", "groups", "weights", "kv-cache", "api", "serving"]
    assert vllm_server.phase_of(vllm_server.SPAWN, HEAD) == "serving"
    assert vllm_server.phase_of("api", ["INFO: nothing"]) == "api"
    assert set(phases) <= set(BOUNDS)
    assert vllm_server.workers(HEAD) == {0: 91}


def test_a_start_on_ray_has_a_phase_for_its_nodes_and_one_for_their_places() -> None:
    up = "2026-11-29 08:29:31,375 SUCC scripts.py:1085 -- Ray runtime started."
    asks = "(EngineCore pid=77) INFO 11-29 08:29:52 [ray_utils.py:607] No current placement group found. Creating a new placement group."
    phases, phase = [], vllm_server.SPAWN
    for line in [up, ":job_id:01000000", *HEAD[:2], asks, *HEAD[2:]]:
        phase = vllm_server.phase_of(phase, [line])
        phases.append(phase)
    assert list(dict.fromkeys(phases))[:5] == ["ray", "configuration", "placement", "rendezvous", "groups"]
    assert phases[:2] == ["ray", "ray"] and set(phases) <= set(BOUNDS)


def test_a_node_of_ray_runs_the_server_only_where_it_is_the_first_and_knows_the_model_by_its_name_alone(tmp_path: Path) -> None:
    head, other = vllm_ray.command(replace(place(0), model=Path("/models/m"), ranks=4)), vllm_ray.command(replace(place(1), model=Path("/m/m")))
    assert head[1:9] == ["-P", "-m", "ncclcheck.vllm_ray", "10.0.0.1", "29501", "0", "4", "/models/m"]
    assert "serve model --tensor-parallel-size 2" in " ".join(head) and "--distributed-executor-backend ray" in " ".join(head)
    assert "--nnodes" not in head and other[3:] == ["ncclcheck.vllm_ray", "10.0.0.1", "29501", "1", "1", "/m/m"]
    given = {"RAY_ADDRESS": "10.0.0.9:6379", "RAY_AUTH_TOKEN_PATH": "/root/token", "RAY_DEDUP_LOGS": "0"}
    environ, added = vllm_ray.environment(tmp_path, given, on_cpu=False)
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & environ.keys() and environ["RAY_DEDUP_LOGS"] == "0"
    assert environ["RAY_AUTH_MODE"] == "token" and added.items() <= environ.items() and vllm_ray.SECRET not in added


def test_what_workers_of_ray_write_is_told_line_by_line_with_who_wrote_it(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "session_2026_1" / "logs").mkdir(parents=True)
    log = tmp_path / "session_2026_1" / "logs" / "worker-0a1b-01000000-403.err"
    logs = vllm_ray._Logs(tmp_path)
    log.write_bytes(b"INFO 11-29 08:36:12 [parallel_state.py:1906] world_size=2 rank=1 local_rank=0 distributed_init_method=tcp://10.7.0.1:1\nhalf a")
    logs.print()
    with open(log, "ab") as file:
        file.write(b" line\n")
    logs.print()
    logs.print()
    with open(log, "ab") as file:
        file.write(b"its last words")
    logs.print()
    logs.print(last=True)
    first, second, third = capsysbinary.readouterr().out.decode().splitlines()
    assert vllm_server.workers([first]) == {1: 403} and second == "(RayWorker pid=403) half a line"
    assert third == "(RayWorker pid=403) its last words"


def test_a_worker_whose_end_vllm_tells_is_known_by_its_pid() -> None:
    line = "(EngineCore pid=77) ERROR 03-02 10:09:00 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly (exit code: {}), shutting"
    assert vllm_server.killed_workers([*HEAD, line.format(-9)]) == {91: -9}
    assert vllm_server.killed_workers([*HEAD, line.format("None")]) == {}


def test_a_killed_worker_is_named_by_its_rank_and_what_ended_with_it_is_not() -> None:
    seen = Seen("gpu-b", 1, "serving", killed={50: -9, 91: -9}, workers={1: 91})
    (fact,) = vllm_trouble.seen_here(seen)
    assert (fact.get("cause"), fact.get("ranks")) == ("rank-killed", [1])
    assert fact.get("title") == "vLLM's worker of rank 1 (gpu-b, pid 91) was killed by SIGKILL in phase serving"


def test_a_worker_that_ray_numbered_otherwise_is_blamed_on_the_rank_in_whose_place_it_is() -> None:
    seen = Seen("c", 2, "serving", killed={93: -9}, workers={2: 92, 3: 93}, ranks=range(4, 6))
    (fact,) = vllm_trouble.seen_here(seen)
    assert "vLLM's worker of rank 3 (c, pid 93)" in fact.get("title") and fact.get("ranks") == [5]


def test_a_node_that_waits_for_ray_is_not_behind_the_first() -> None:
    notes = {0: note("placement", "a"), 1: note("ray", "b")}
    assert vllm_board.behind(notes, tuple(BOUNDS)) == [] and list(vllm_board.underway(notes)) == [0]
    assert vllm_board.behind({0: note("ray", "a"), 1: note("ray", "b")}, tuple(BOUNDS)) == []


def test_a_stopped_process_is_named_and_a_mere_consequence_is_not() -> None:
    (fact,) = vllm_trouble.seen_here(Seen("gpu-b", 1, "weights", stopped=[91], workers={1: 91}))
    assert (fact.get("cause"), fact.get("ranks")) == ("process-stopped", [1])
    reset = "(Worker_TP0 pid=9) ERROR RuntimeError: [pair.cc:537] Read error [10.77.0.2]:20177: Connection reset by peer"
    assert vllm_trouble.seen_here(Seen("gpu-a", 0, "serving", lines=[reset])) == []
    assert vllm_trouble.stated(Seen("gpu-a", 0, "serving", lines=[reset])) == []


RAISED = [
    "(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] WorkerProc hit an exception.",
    "(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] Traceback (most recent call last):",
    "(Worker_TP0 pid=90) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] ValueError: another worker's, which says of none that it raised it",
    '(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063]   File "worker.py", line 7, in f: raise KeyError(Error)',
    "(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] torch.AcceleratorError: CUDA error: an illegal memory access",
    "(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] ",
    "(Worker_TP1 pid=91) ERROR 03-02 10:09:00 [multiproc_executor.py:1063] RuntimeError: what came of it",
]


def test_a_worker_that_raised_and_lives_is_named_with_the_exception_that_came_first() -> None:
    assert vllm_server.raised(RAISED) == {91: "torch.AcceleratorError: CUDA error: an illegal memory access"}
    assert vllm_server.raised(RAISED[1:]) == {} and vllm_server.raised(RAISED[:1]) == {91: "an exception"}
    seen = Seen("gpu-b", 1, "compile", raised={91: "SomeError: no"}, workers={1: 91})
    fact = vllm_trouble.guessed(seen, "whatever")
    assert (fact.get("cause"), fact.get("ranks")) == ("rank-died-exception", [1])
    assert fact.get("title") == "vLLM's worker of rank 1 (gpu-b, pid 91) raised SomeError: no in phase compile"


def test_what_vllm_states_is_the_cause_with_its_phase() -> None:
    line = "ValueError: Total number of attention heads (12) must be divisible by tensor parallel size (8)."
    (fact,) = vllm_trouble.stated(Seen("gpu-a", 0, "spawn", lines=[line]))
    assert fact.get("cause") == "tp-not-divisible" and fact.get("title").endswith("(vllm serve on gpu-a, phase spawn)")


def note(phase: str, host: str) -> dict[str, object]:
    return {"phase": phase, "host": host}


@pytest.mark.parametrize(
    "phases, mine, cause, hosts",
    [
        (("rendezvous", "configuration"), "rendezvous", "missing-rank-at-rendezvous", ["b"]),
        (("spawn", "rendezvous"), "spawn", "missing-rank-at-rendezvous", ["a"]),
        (("rendezvous", "rendezvous"), "rendezvous", "blocked-port", None),
        (("groups", "groups"), "groups", "wrong-interface", None),
        (("weights", "weights"), "weights", "model-load-slow", ["a"]),
        (("compile", "compile"), "compile", "rank-stuck-in-python", ["a"]),
    ],
)
def test_where_nothing_moves_the_phases_of_all_nodes_say_what_it_means(
    phases: tuple[str, str], mine: str, cause: str, hosts: list[str] | None
) -> None:
    notes = {0: note(phases[0], "a"), 1: note(phases[1], "b")}
    fact = vllm_trouble.still(notes, tuple(BOUNDS), Seen("a", 0, mine), 61.0)
    assert (fact.get("cause"), fact.get("hosts")) == (cause, hosts)
    assert "61 s" in fact.get("title") and phases[0] in fact.get("evidence")[0] and phases[1] in fact.get("evidence")[0]


@pytest.mark.parametrize(
    "mode, names, probes",
    [
        (None, (), ["hang", "vllm_engine"]),
        ("serve", (), ["hang", "vllm_serve"]),
        ("external", (), ["hang", "vllm_engine"]),
        ("ray", (), ["hang", "vllm_ray"]),
        ("all", (), ["hang", "vllm_engine", "vllm_serve", "vllm_ray"]),
        ("serve", ("wiring",), ["wiring", "vllm_serve"]),
        (None, ("vllm_serve",), ["vllm_serve"]),
    ],
)
def test_the_mode_says_which_probes_stand_for_vllm(mode: str | None, names: tuple[str, ...], probes: list[str]) -> None:
    given = cli.probe.make_context("probe", [*names, *(["--vllm-mode", mode] if mode else [])]).params
    options = session._options(given.pop("names"), given)
    assert list(options.probes)[-len(probes) :] == probes
    assert ("vllm_engine" in options.not_asked) == ("vllm_engine" not in probes)
    assert list(options.spared) == (["vllm_ray"] if mode == "all" else [])


def test_what_a_server_took_is_a_table_with_its_phases() -> None:
    fields = {"nodes": 2, "tensor_parallel": 2, "pipeline_parallel": 1, "api_seconds": 39.3, "first_token_seconds": 0.41, "ttft_seconds": 0.02,
              "token_seconds": 0.009, "tokens_equal": True, "phase_seconds": {"spawn": 9.0, "weights": 0.5}}  # fmt: skip
    probe = ProbeResult("vllm_serve", Status.PASS, facts=[Fact("served", fields=fields)])
    report = Report(1, Outcome.READY, "ready", 50.0, [], True, {}, [probe], [], [], {})
    shown = text.render(report)
    assert "API up" in shown and "39.3 s" in shown and "phases: spawn 9 s, weights 500 ms" in shown


class Shelf:
    """A store as torch's is used."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.held[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.held[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)


def test_nodes_read_each_others_notes_and_hear_of_failures_elsewhere() -> None:
    shelf = Shelf()
    boards = [vllm_board.Board(shelf, node, 2) for node in range(2)]
    assert boards[0].read() == {}
    boards[0].post(phase="spawn")
    boards[1].post(phase="rendezvous")
    boards[1].post(failed="it broke")
    assert boards[0].read() == {0: {"phase": "spawn"}, 1: {"phase": "rendezvous", "failed": "it broke"}}
    assert vllm_board.failed(boards[0].read(), 0) == "node 1: it broke" and vllm_board.failed(boards[1].read(), 1) == ""
    assert vllm_board.behind(boards[0].read(), tuple(BOUNDS)) == [0]


class Answers(BaseHTTPRequestHandler):
    """Says what the test wants, in the words of an OpenAI-compatible server."""

    bodies: ClassVar[list[bytes]] = []
    status = 200
    asked: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()
        for body in self.bodies:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[tuple[type[Answers], vllm_http.Client]]:
    class Fresh(Answers):
        asked: ClassVar[list[dict[str, object]]] = []

    with HTTPServer(("127.0.0.1", 0), Fresh) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield Fresh, vllm_http.Client("127.0.0.1", listening.server_address[1], "m", timeout=SOON)
        listening.shutdown()
        thread.join()


def test_token_ids_come_back_whole_and_streamed(server: tuple[type[Answers], vllm_http.Client]) -> None:
    says, client = server
    says.bodies = [b'{"choices": [{"token_ids": [7, 8]}]}']
    assert client.complete([1, 2], 2) == [7, 8]
    assert says.asked[0]["prompt"] == [1, 2] and says.asked[0]["max_tokens"] == 2 and says.asked[0]["return_token_ids"] is True
    says.bodies = [b'data: {"choices": [{"token_ids": [7]}]}\n\n', b'data: {"choices": [{"token_ids": [8]}]}\n\n', b"data: [DONE]\n\n"]
    assert [chunk.tokens for chunk in client.stream([1, 2], 2)] == [[7], [8]]


@pytest.mark.parametrize(
    "status, body", [(500, b"engine dead"), (200, b"no json"), (200, b"[]"), (200, b'{"choices": [{"token_ids": "x"}]}'), (200, b'{"error": "x"}')]
)
def test_what_is_no_answer_is_refused(status: int, body: bytes, server: tuple[type[Answers], vllm_http.Client]) -> None:
    says, client = server
    says.status, says.bodies = status, [body]
    with pytest.raises(vllm_http.Refused):
        client.complete([1], 1)


def test_a_stream_that_breaks_off_is_refused(server: tuple[type[Answers], vllm_http.Client]) -> None:
    says, client = server
    says.bodies = [b'data: {"choices": [{"token_ids": [7]}]}\n\n']
    with pytest.raises(vllm_http.Refused):
        list(client.stream([1], 2))


EVERYTHING = {**os.environ, "PYTHONPATH": str(ROOT)}
LOADING = "import time; print('INFO 11-22 15:06:24 [cpu_model_runner.py:68] Starting to load model /tmp/m...', flush=True)"
WORKS = "    pass"
IDLES = """
    open("/proc/meminfo").read()
    end = time.process_time() + 0.018
    while time.process_time() < end:
        pass
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("loop", "moves"), [(WORKS, True), (IDLES, False)], ids=["computes", "idles"])
def test_a_start_that_computes_makes_progress_and_daemons_that_idle_make_none(loop: str, moves: bool, tmp_path: Path) -> None:
    """A standstill under Ray, whose daemons never sleep for long, is still one."""
    script = f"{LOADING}\nwhile True:\n{loop}"
    with Server([sys.executable, "-c", script], EVERYTHING, tmp_path / "log") as server:
        until(lambda: server.poll() and server.phase == "weights", SOON, "the load of weights")
        seen: list[float] = []

        def known() -> bool:
            if server.poll():
                seen.append(server.progress)
            return len(seen) == 4 or server.idle > 10.0  # seconds in which the idling one uses more than one of CPU time

        until(known, SOON, "progress, or none for ten seconds")
        assert (len(seen) == 4) == moves
        server.end(0.0)


ORPHAN = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); {end}"


def test_orphans_of_a_killed_server_are_found_and_ended(tmp_path: Path) -> None:
    tree = Tree([sys.executable, "-c", ORPHAN.format(end="time.sleep(600)")], EVERYTHING, tmp_path / "log")

    def both() -> list[int]:
        tree.look()
        return list(tree.alive()) if len(tree.alive()) == 2 else []

    first, orphan = until(both, SOON, "the command and its child")  # the parent comes first
    os.kill(first, signal.SIGKILL)

    def told() -> bool:
        tree.look()
        return bool(tree.killed()) and tree.exit_code is not None

    until(told, SOON, "the death to be seen")
    assert tree.killed() == {first: -9} and tree.exit_code == -9
    end = tree.end(0.1, [])
    assert len(end.killed) == 1 and end.left == []
    assert processes.read(orphan) is None


def test_nothing_outlives_who_started_it_even_if_that_is_killed(tmp_path: Path) -> None:
    mark = f"KEPT={tmp_path.name}-{os.getpid()}"
    script = "import sys, time\nfrom pathlib import Path\nfrom ncclcheck.vllm_process import Tree\n"
    script += f"import os\nTree([sys.executable, '-c', {ORPHAN.format(end='time.sleep(600)')!r}], os.environ, Path('log'))\ntime.sleep(600)"
    name, _, value = mark.partition("=")
    starter = subprocess.Popen([sys.executable, "-c", script], env={**EVERYTHING, name: value}, cwd=tmp_path)

    def marked() -> list[int]:
        return [pid for pid, environ in environments() if mark.encode() in environ]

    try:
        until(lambda: len(marked()) == 4, SOON, "the starter, the keeper, the command and its child")
    finally:
        starter.kill()
        starter.wait()
    until(lambda: not marked(), SOON, "the end of all of them")


def started(folder: Path, script: str) -> vllm_server.Server:
    return vllm_server.Server([sys.executable, "-uc", script], EVERYTHING, folder / "serve.log")


def test_a_server_that_ends_says_in_which_phase_and_with_which_words(tmp_path: Path) -> None:
    script = f"print({HEAD[1]!r}); print({HEAD[4]!r}); print('ValueError: no such weights'); raise SystemExit(3)"
    with started(tmp_path, script) as server, pytest.raises(vllm_server.NotReady) as raised:
        server.ready(SOON)
    assert str(raised.value) == "vllm serve ended with exit code 3 in phase weights: ValueError: no such weights"
    assert list(server.phases) == ["spawn", "configuration", "weights"]
    assert server.over


def test_phases_that_passed_between_two_looks_have_their_beginnings_too(tmp_path: Path) -> None:
    with started(tmp_path, f"print({chr(10).join(HEAD)!r})") as server:
        until(lambda: server.poll() and server.phase == "serving", SOON, "all its lines")
    assert list(server.phases) == ["spawn", "configuration", "rendezvous", "groups", "weights", "kv-cache", "api", "serving"]


def test_semaphores_of_a_server_that_is_killed_go_with_it(tmp_path: Path) -> None:
    script = "import multiprocessing, time; lock = multiprocessing.get_context('spawn').Lock(); print(lock._semlock.name); time.sleep(600)"
    with started(tmp_path, script) as server:
        until(lambda: server.poll() and server.lines, SOON, "its semaphore")
        semaphore = f"/dev/shm/sem.{server.lines[0].strip().lstrip('/')}"
        assert os.path.exists(semaphore) and semaphore not in processes.orphaned_shared_memory()  # somebody has it
        end = server.end(0.0)  # and Python's own helper, which would remove it, is killed as well
    assert not os.path.exists(semaphore) and end.left == []


def test_a_server_that_takes_too_long_is_told_from_one_that_ended(tmp_path: Path) -> None:
    with started(tmp_path, f"import time; print({HEAD[2]!r}); time.sleep(600)") as server, pytest.raises(vllm_server.NotReady) as raised:
        until(lambda: server.poll() and server.phase == "rendezvous", SOON, "its first line")
        server.ready(0.5)
    assert str(raised.value).startswith("vllm serve took no requests within 0.5 s in phase rendezvous")
    assert server.workers() == {0: 91}


def test_a_server_that_is_stopped_is_noticed(tmp_path: Path) -> None:
    with started(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)") as server, pytest.raises(vllm_server.NotReady) as raised:
        server.ready(SOON)
    assert "is stopped (process " in str(raised.value) and "state T" in str(raised.value)


def test_a_server_that_heeds_sigterm_ends_by_it_and_one_that_does_not_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, "import time; print('up'); time.sleep(600)") as server:
        until(lambda: server.poll() and list(server.lines), SOON, "its first line")
        assert server.end(SOON).killed == []
    assert server.exit_code == -signal.SIGTERM
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    (tmp_path / "serve.log").unlink()
    with started(tmp_path, deaf) as server:
        until(lambda: server.poll() and list(server.lines), SOON, "its first line")
        end = server.end(0.3)
    assert len(end.killed) == 1 and end.left == []


def test_a_port_that_is_listened_on_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert listens(port)
    assert not listens(port)


# -- real servers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    yield tmp_path


@pytest.fixture
def emulated(here: Path) -> Iterator[Callable[..., Job]]:
    if os.geteuid() != 0:
        pytest.skip("only root may look into emulated nodes")
    jobs = []

    def start(probe: str, *words: str, **environ: str) -> Job:
        if probe == "vllm_ray" and find_spec("ray") is None:
            pytest.skip("Ray is not installed")
        whole = ("probe", probe, *words, "--emulate", "2x1", "--format", "json", "--deadline", "400s")
        jobs.append(Job(here, *whole, env={"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environ}))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
    until(lambda: not any(job.left() for job in jobs), SOON, "the end of all that was started")


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("probe", "words", "layout", "corrected"),
    [
        ("vllm_serve", (), "TP=2", []),
        ("vllm_serve", ("--pp", "2"), "TP=1 PP=2", [vllm_cpu.BUFFERED]),
        ("vllm_ray", (), "TP=2", [vllm_cpu.SCHEDULED]),
        ("vllm_ray", ("--pp", "2"), "TP=1 PP=2", [vllm_cpu.BUFFERED, vllm_cpu.SCHEDULED]),
    ],
    ids=["TP", "PP", "Ray-TP", "Ray-PP"],
)
def test_two_nodes_serve_the_tokens_of_one_rank_over_http_and_leave_nothing(
    probe: str, words: tuple[str, ...], layout: str, corrected: list[str], emulated: Callable[..., Job]
) -> None:
    job = emulated(probe, *words)
    code = job.wait(410)
    (result,) = job.report["probes"]
    assert (code, result["status"]) == (0, "pass"), job.out
    facts = {kind: [fact for fact in result["facts"] if fact["kind"] == kind] for kind in ("participant", "served", "shutdown", "note")}
    assert sorted((fact["fields"]["rank"], fact["fields"]["host"]) for fact in facts["participant"]) == [(0, "node0"), (1, "node1")]
    (served,) = (fact["fields"] for fact in facts["served"])
    assert served["tokens_equal"] and served["nodes"] == 2
    assert f"TP=1 with vllm serve {layout}" in served["compared"] and served["chunks"] > 8
    assert {"spawn", "rendezvous", "weights"} <= served["phase_seconds"].keys()
    assert len(facts["shutdown"]) == 2 and all(fact["fields"]["left"] == [] for fact in facts["shutdown"])
    named = [vllm_cpu.NAMED] if within_a_node("this CPU") == "shared memory" else []
    assert {fact["fields"]["text"] for fact in facts["note"]} & set(vllm_cpu.SENTENCES) == {*named, *corrected}
    assert job.left() == []


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("probe", "sent", "cause", "said"),
    [
        ("vllm_serve", signal.SIGKILL, "rank-killed", "was killed by SIGKILL"),
        ("vllm_serve", signal.SIGSTOP, "process-stopped", "is stopped (process state T)"),
        ("vllm_ray", signal.SIGKILL, "rank-killed", "was killed by SIGKILL"),
    ],
    ids=["killed", "stopped", "Ray-killed"],
)
def test_a_worker_that_is_lost_while_it_serves_is_blamed_by_its_rank(
    probe: str, sent: int, cause: str, said: str, emulated: Callable[..., Job]
) -> None:
    job = emulated(probe)
    until(lambda: job.announced(0, "vllm serve: requests at once"), 300, "the first requests")
    workers = [worker(job, rank) for rank in (0, 1)]
    if probe == "vllm_ray":  # each loaded the model of its own node, though the first node said which
        assert len({os.readlink(f"/proc/{pid}/cwd") for pid in workers}) == 2
        assert "authentication is disabled" not in "".join(log.read_text() for log in job.folder.glob("ncclcheck-runs/*/*/*/vllm-node0.log"))
    os.kill(workers[1], sent)
    assert job.wait(2 * SOON) == 1
    best = job.report["findings"][0]
    assert (best["cause"], best["culprit"]["ranks"], best["culprit"]["hosts"]) == (cause, [1], ["node1"]), job.out
    assert re.search(r"vLLM's worker of rank 1 \(node1, pid \d+\) " + re.escape(said) + " in phase", best["title"])
    assert job.left() == []


def worker(job: Job, rank: int) -> int:
    """The pid, as seen from here, of the worker of a rank that is alone on its node; the server's log has its pid in the node."""
    (log,) = job.folder.glob(f"ncclcheck-runs/*/*/*/vllm-node{rank}.log")
    inside = vllm_server.workers(log.read_text().splitlines())[rank]
    node = os.readlink(f"/proc/{job.ranks()[rank]}/ns/pid")
    for child in psutil.Process(job.process.pid).children(recursive=True):
        with contextlib.suppress(OSError):  # it has just ended
            numbers = re.search(r"^NSpid:\s.*\b(\d+)$", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)
            if numbers and int(numbers[1]) == inside and os.readlink(f"/proc/{child.pid}/ns/pid") == node:
                return child.pid
    raise AssertionError(f"no process {inside} on node {rank}")


PLUGIN = """
import socket

def fail(self, *args, **options):
    raise ArithmeticError("the weights are no numbers")

def plugin():
    if socket.gethostname() == "node1":
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner
        CPUModelRunner.execute_model = fail
"""


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_worker_that_fails_where_the_engine_does_not_hear_of_it_is_blamed_by_its_rank(emulated: Callable[..., Job], here: Path) -> None:
    (here / "site" / "failing-1.dist-info").mkdir(parents=True)  # a plugin of vLLM's, by which one node's worker fails at its first token
    (here / "site" / "failing.py").write_text(PLUGIN)
    (here / "site" / "failing-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (here / "site" / "failing-1.dist-info" / "entry_points.txt").write_text("[vllm.general_plugins]\nfailing = failing:plugin\n")
    job = emulated("vllm_serve", PYTHONPATH=os.pathsep.join((str(here / "site"), str(ROOT))))
    assert job.wait(400) == 1, job.out
    best = job.report["findings"][0]
    assert (best["cause"], best["culprit"]["ranks"], best["culprit"]["hosts"]) == ("rank-died-exception", [1], ["node1"]), job.out
    said = r"vLLM's worker of rank 1 \(node1, pid \d+\) raised ArithmeticError: the weights are no numbers in phase serving"
    assert re.search(said, best["title"]), best
    assert job.left() == []


class Ranks:
    """Two processes of one job on this machine, each the first rank of a node."""

    def __init__(self, folder: Path, *options: dict[str, str]) -> None:
        port = free_port()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NCCLCHECK_", "TORCHELASTIC_"))}
        wiring = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(options)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        place = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
        shared = {**clean, **wiring, **place, "PYTHONPATH": str(ROOT)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "ncclcheck.probes.vllm_serve"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**shared, "RANK": str(rank), "GROUP_RANK": str(rank), "NCCLCHECK_OPTIONS": json.dumps(asked)},
            )
            for rank, asked in enumerate(options)
        ]  # fmt: skip

    def outputs(self, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        try:
            return [process.communicate(timeout=max(0.1, end - time.monotonic()))[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


@pytest.mark.slow
@pytest.mark.timeout(140)
def test_a_node_without_the_model_is_named_and_no_server_is_started(here: Path) -> None:
    vllm_model.write(here / "model", tp=2)
    outputs = Ranks(here, {"model": str(here / "model")}, {"model": "/nonexistent/model"}).outputs(130)
    failures = [line for output in outputs for line in output.splitlines() if ": fail " in line]
    assert len(failures) == 1 and failures[0].startswith("rank 1: fail cause=model-not-on-node"), outputs
    assert "/nonexistent/model" in failures[0]
    assert not list(here.glob("**/vllm-node*.log"))


@pytest.mark.slow
@pytest.mark.timeout(140)
def test_a_node_with_other_weights_is_named_before_any_wrong_token(here: Path) -> None:
    for seed in (0, 1):
        vllm_model.write(here / f"model{seed}", tp=2, seed=seed)
    outputs = Ranks(here, {"model": str(here / "model0")}, {"model": str(here / "model1")}).outputs(130)
    failures = [line for output in outputs for line in output.splitlines() if ": fail " in line]
    assert len(failures) == 1 and failures[0].startswith("rank 0: fail cause=weights-differ"), outputs

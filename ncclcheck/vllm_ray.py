"""One node's part of a deployment by Ray: a node of a Ray cluster of our own and, on the first, `vllm serve` on it. No other Ray is touched.

`python -m ncclcheck.vllm_ray ADDRESS PORT NODE GPUS MODEL COMMAND...` starts both, prints what they and the node's workers say, and ends them, vLLM
first, when it is asked to by SIGTERM or one of them ends. Ray keeps files in TMPDIR, whose path must be short: it makes sockets below it.
The workers take the model's path from the first node, and their working directory from Ray: there, each node has its own model by the same name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ncclcheck import interpreter, vllm_server
from ncclcheck.collect import processes
from ncclcheck.collect.master import address_towards
from ncclcheck.ports import free_port
from ncclcheck.vllm_server import Place

SECRET = "RAY_AUTH_TOKEN"  # else anyone in the network may run code as this user
OBJECTS = 100_000_000  # bytes of Ray's object store; of an engine only small messages pass through it, if any
NAME = "model"  # of the model in the working directory
SERVER_GRACE, RAY_GRACE = 10.0, 5.0  # seconds for an orderly end
LOOK = 0.1  # seconds between looks at the processes and their logs
CONNECT = 2.0  # seconds for one try to reach the head
MOST_BYTES = 2**20  # of a log that are taken over at once


def command(place: Place) -> list[str]:
    """What is run on this node. Pure."""
    numbers = map(str, (place.master_port, place.node_rank, place.ranks))
    words = interpreter.module("ncclcheck.vllm_ray", place.master, *numbers, str(place.model))
    return words if place.node_rank else [*words, *vllm_server.serve(replace(place, model=Path(NAME)), "ray", vllm_server.api(place))]


def environment(folder: Path, environ: Mapping[str, str], on_cpu: bool) -> tuple[dict[str, str], dict[str, str]]:
    """As vllm_server.environment; a Ray cluster that the user has is not the one that is meant."""
    kept = {name: value for name, value in environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")}
    whole, added = vllm_server.environment(folder, kept, on_cpu)
    wanted = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_LOG_TO_DRIVER": "0"}
    wanted["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # it would wait for a head that is gone
    if on_cpu:
        whole.pop("CUDA_VISIBLE_DEVICES", None)  # it hides the GPUs that there only seem to be
        # in Ray's workers vLLM asks for the platform's resource before it calls its plugins
        hook = {"runtime_env": {"worker_process_setup_hook": "ncclcheck.vllm_cpu.plugin"}}
        wanted["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(hook)
    return {**whole, **wanted}, {**added, **wanted}


def main(arguments: Sequence[str]) -> int:
    """The exit code of what ended first; 0 where the end was asked for."""
    asked = _Asked()
    address, port, node, gpus, model, *server = arguments
    temporary = Path(os.environ["TMPDIR"])
    os.environ.pop("VLLM_RPC_BASE_PATH", None)  # older vLLM would tell the other nodes ours; TMPDIR says the same
    own = os.environ.get("VLLM_HOST_IP") or address_towards(address)
    if not own.startswith("127."):  # for which Ray takes another
        os.environ["VLLM_HOST_IP"] = own  # vLLM looks for a node of Ray's with this address
    here = temporary / "here"
    here.mkdir()
    (here / NAME).symlink_to(model)
    os.chdir(here)
    gcs = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    words = interpreter.module("ray.scripts.scripts", "start", "--block", "--disable-usage-stats", f"--node-ip-address={own}")
    words += [f"--num-gpus={gpus}", "--num-cpus=1", f"--object-store-memory={OBJECTS}", f"--temp-dir={temporary}"]
    words += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port('')}"]
    if node == "0":
        words += ["--head", f"--port={port}", "--include-dashboard=false", f"--dashboard-port={free_port('')}"]
        words += [f"--ray-client-server-port={free_port('')}"] if find_spec("grpc") else []  # a server that is there only with grpc
    else:
        words += [f"--address={gcs}"]
        _reach(address, int(port), asked)
    if asked.yes:
        return 0
    logs, running = _Logs(temporary), [subprocess.Popen(words)]
    code: int | None = None
    while not asked.yes and code is None:
        if server and len(running) == 1 and _answers(address, int(port)):
            running.append(subprocess.Popen(server, env=os.environ | {"RAY_ADDRESS": gcs}))
        logs.print()
        time.sleep(LOOK)
        code = next((ended for process in running if (ended := process.poll()) is not None), None)
    ray, *servers = running
    for process in servers:
        _end(process, SERVER_GRACE)
    agents = processes.descendants(ray.pid)
    _end(ray, RAY_GRACE)
    for agent in agents:  # some wait for a raylet that is gone
        if (now := processes.read(agent.pid)) and now.start == agent.start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent.pid, signal.SIGKILL)
    logs.print(last=True)
    return 0 if code is None else code or 1


class _Asked:
    """Whether the end was asked for."""

    def __init__(self) -> None:
        self.yes = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.yes = True


class _Logs:
    """What Ray's workers on this node write, printed line by line, each with the pid of who wrote it, as Ray does for a driver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def print(self, last: bool = False) -> None:
        """What was added; the `last` time also a line that has not ended."""
        for path in sorted(self._folder.glob("session_*_*/logs/worker-*")):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                while block := file.read(MOST_BYTES):
                    whole = block if last or (len(block) == MOST_BYTES and b"\n" not in block) else block[: block.rfind(b"\n") + 1]
                    if not whole:
                        break
                    file.seek(self._read.get(path, 0) + len(whole))
                    self._read[path] = file.tell()
                    writer = f"(RayWorker pid={path.stem.rpartition('-')[2]}) ".encode()
                    sys.stdout.buffer.writelines(writer + line + b"\n" for line in whole.removesuffix(b"\n").split(b"\n"))
        sys.stdout.buffer.flush()


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), CONNECT).close()
        return True
    except OSError:
        return False


def _reach(address: str, port: int, asked: _Asked) -> None:
    """Until the head takes connections: Ray itself gives up after some tries."""
    while not asked.yes and not _answers(address, port):
        time.sleep(LOOK)


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask it; one that does not heed it is left to the keeper of this process, who tells of it."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Emulated nodes are hosts of their own, and nothing of them outlives the process that made them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ncclcheck import emulate

ROOT = Path(emulate.__file__).parents[1]
BOUND = 60.0  # seconds for anything here to happen
ORDINARY = ["unshare", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []  # turns root into a user without any capability

PRELUDE = """
import json, os, signal, socket, subprocess, sys, time
from ncclcheck import emulate
from ncclcheck.emulate import EmulationRefused, Node, run
read, write = os.pipe()  # joins the nodes beside the network

def say(**fields):
    os.write(1, (json.dumps(fields) + "\\n").encode())

def stay():  # until a handler raises; in naps, since a signal that comes just before a nap is noticed after it
    while True:
        time.sleep(0.02)
"""


@pytest.fixture(params=["root", "user"])
def account(request: pytest.FixtureRequest) -> list[str]:
    """What to put before a command to run it as root, or as a user without capabilities."""
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("not root")
        return []
    trial = subprocess.run([*ORDINARY, "unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"users may not make namespaces here: {trial.stderr.strip()}")
    return ORDINARY


@pytest.fixture
def mark() -> Iterator[str]:
    """An environment entry of everything a test starts; at its end none of that may run any more."""
    entry = f"NCCLCHECK_TEST={uuid.uuid4().hex}"
    yield entry
    try:
        until(lambda: not marked(entry))
    finally:
        for pid in marked(entry):
            os.kill(pid, signal.SIGKILL)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(mark: str) -> Iterator[Start]:
    """Starts a script, or with arguments the command line."""
    started = []
    name, _, value = mark.partition("=")
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = os.environ | {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "", name: value}

    def launch(prefix: list[str], script: str = "", *arguments: str, **added: str) -> subprocess.Popen[str]:
        python = ["-m", "ncclcheck.emulate", *arguments] if arguments else ["-c", PRELUDE + script]
        process = subprocess.Popen(
            [*prefix, sys.executable, *python],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ | added, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate(timeout=BOUND)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"not within {BOUND:g} s"
        time.sleep(0.002)


def marked(entry: str) -> list[int]:
    """Every live process with this entry in its environment, in whatever namespace."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if entry.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # gone, or not ours
    return found


def said(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The JSON lines of a script that ends well."""
    out, err = process.communicate(timeout=BOUND)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def said_next(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    return json.loads(process.stdout.readline() or "null")


@pytest.mark.parametrize(("text", "shape"), [("2x1", (2, 1)), ("2", (2, 1)), ("1x8", (1, 8)), ("64x64", (64, 64))])
def test_a_shape_is_nodes_times_ranks(text: str, shape: tuple[int, int]) -> None:
    assert emulate.parse(text) == shape


@pytest.mark.parametrize("text", ["", "x", "0x1", "2x0", "65x1", "1x65", "-2", "2x", "2x1x1", "2 x 1", "two"])
def test_another_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 2x1"):
        emulate.parse(text)


def test_a_node_adds_only_interface_and_address_to_the_environment() -> None:
    added = emulate.environment(emulate.Node(1, "node1", "10.201.0.2"))
    assert added == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0", "VLLM_HOST_IP": "10.201.0.2"}


@pytest.mark.parametrize("visible", ["", "0,1,2,3,4", "0,1,2"])
def test_too_few_gpus_are_the_callers_mistake(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match="2x2 needs 4 GPUs, one for each rank; there are 3"):
        emulate.run(2, 2, lambda node: 0, gpus=3)


def test_a_caller_with_threads_is_refused_before_anything_is_forked() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="before any thread"):
            emulate.run(1, 1, lambda node: 0)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(("visible", "owned"), [("", ["0,1", "2,3"]), ("7,GPU-ab,5,4,3", ["7,GPU-ab", "5,4"])])
def test_each_node_owns_its_share_of_the_gpus_the_caller_may_use(start: Start, visible: str, owned: list[str]) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "NCCL_HOSTID", "VLLM_CACHE_ROOT")
    script = f"run(2, 2, lambda node: say(rank=node.rank, own=[os.environ[name] for name in {names}]) or 0, gpus=5)"
    lines = said(start(ORDINARY, script, CUDA_VISIBLE_DEVICES=visible, VLLM_CACHE_ROOT="", XDG_CACHE_HOME="/c"))
    caches = [f"/c/vllm/emulated-node{number}" for number in (0, 1)]  # code that is compiled for one node's GPUs is not another's
    assert {line["rank"]: line["own"] for line in lines} == {0: [owned[0], "node0", caches[0]], 1: [owned[1], "node1", caches[1]]}


def test_nodes_reach_each_other_by_name(start: Start, account: list[str]) -> None:
    script = """
def body(node):
    if node.rank == 0:
        with socket.create_server((node.host, 0)) as server:
            server.settimeout(50)
            os.write(write, server.getsockname()[1].to_bytes(2, "big"))
            peer, address = server.accept()
            peer.sendall(socket.gethostname().encode())
            say(from_=address[0])
    else:
        with socket.create_connection(("node0", int.from_bytes(os.read(read, 2), "big")), 50) as peer:
            say(heard=peer.recv(100).decode(), mine=peer.getsockname()[0], named=socket.gethostbyname(socket.gethostname()))
    return 0

run(2, 1, body)
"""
    lines = {key: value for line in said(start(account, script)) for key, value in line.items()}
    assert lines == {"from_": "10.201.0.2", "heard": "node0", "mine": "10.201.0.2", "named": "10.201.0.2"}


def test_a_node_sees_nothing_of_another(start: Start, account: list[str]) -> None:
    script = """
looked, done = os.pipe()

def body(node):
    if node.rank == 0:
        with socket.create_server(("127.0.0.1", 0)) as server, open("/dev/shm/mine", "w"), socket.socket(socket.AF_UNIX) as local:
            local.bind("\\0mine")
            os.write(write, server.getsockname()[1].to_bytes(2, "big"))
            return os.read(looked, 1) != b"."
    port = int.from_bytes(os.read(read, 2), "big")
    with socket.socket() as client, socket.socket(socket.AF_UNIX) as local:
        say(host=socket.gethostname(), session=os.getsid(0), shm=os.listdir("/dev/shm"), mode=oct(os.stat("/dev/shm").st_mode),
            pids=[name for name in os.listdir("/proc") if name.isdigit()], interfaces=sorted(os.listdir("/sys/class/net")),
            loopback=os.strerror(client.connect_ex(("127.0.0.1", port))), abstract=os.strerror(local.connect_ex("\\0mine")))
    os.write(done, b".")
    return 0

sys.exit(any(run(2, 1, body)))
"""
    assert said(start(account, script)) == [
        {"host": "node1", "session": 1, "shm": [], "mode": "0o41777", "pids": ["1"], "interfaces": ["eth0", "lo"],
         "loopback": "Connection refused", "abstract": "Connection refused"}
    ]  # fmt: skip


def test_the_machine_sees_nothing_of_the_nodes(start: Start, account: list[str], mark: str) -> None:
    def machine() -> tuple[Any, ...]:
        named = Path("/run/netns")
        return socket.if_nameindex(), Path("/proc/self/mountinfo").read_text(), socket.gethostname(), named.exists() and os.listdir(named)

    before = machine()
    segment = mark.partition("=")[2]
    process = start(account, f"run(2, 1, lambda node: open('/dev/shm/{segment}', 'w') and say() or stay())")
    assert said_next(process) == said_next(process) == {}
    assert len(marked(mark)) == 3  # the caller and two nodes: what made them is gone
    assert machine() == before
    assert not Path("/dev/shm", segment).exists()
    process.terminate()
    process.wait(BOUND)
    assert machine() == before


def test_the_rest_of_the_world_refuses_at_once(start: Start) -> None:
    script = """
def body(node):
    try:
        socket.create_connection(("192.0.2.1", 80), 5)
    except OSError as error:
        say(error=type(error).__name__)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 80))
        say(mine=probe.getsockname()[0])
    return 0

run(1, 1, body)
"""
    assert said(start(ORDINARY, script)) == [{"error": "ConnectionRefusedError"}, {"mine": "10.201.0.1"}]


def test_killing_the_parent_kills_every_process_of_every_node(start: Start, account: list[str], mark: str) -> None:
    script = """
def body(node):
    say(child=subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        signal.sigwait(set(signal.Signals))

run(3, 1, body)
"""
    process = start(account, script)
    assert all(said_next(process) for _ in range(3))
    until(lambda: len(marked(mark)) == 7)  # a child that has just been started shows no environment yet
    process.kill()
    until(lambda: not marked(mark))


@pytest.mark.parametrize("processes", [1, 2, 5, 9])
def test_a_parent_killed_while_nodes_are_made_leaves_none(start: Start, mark: str, processes: int) -> None:
    process = start(ORDINARY, "run(8, 1, lambda node: stay())")
    until(lambda: len(marked(mark)) >= processes)
    process.kill()
    until(lambda: not marked(mark))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_to_every_node_once(start: Start, number: signal.Signals) -> None:
    script = """
def body(node):
    both = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    say(ready=node.rank)
    say(caught=signal.sigwait(both))
    say(again=signal.sigtimedwait(both, 0.3) is not None)
    return 5 + node.rank

say(codes=run(2, 1, body))
"""
    process = start(ORDINARY, script)
    assert sorted(said_next(process)["ready"] for _ in range(2)) == [0, 1]
    os.killpg(process.pid, number)  # as a terminal does
    assert said_next(process) == said_next(process) == {"caught": number}
    os.killpg(process.pid, number)
    assert said(process) == [{"again": False}, {"again": False}, {"codes": [5, 6]}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_body_without_handlers_ends_on_a_signal(start: Start, number: signal.Signals) -> None:
    process = start(ORDINARY, "say(codes=run(2, 1, lambda node: say(ready=1) or stay()))")
    assert said_next(process) == said_next(process) == {"ready": 1}
    process.send_signal(number)
    assert said(process) == [{"codes": [128 + number] * 2}]


def test_a_node_that_ignores_a_signal_is_killed_after_a_grace(start: Start) -> None:
    script = """
def body(node):
    if node.rank:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(ready=1)
    stay()

emulate.GRACE = 5.0  # for node 0, which ends by it
say(codes=run(2, 1, body))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    say(left="none")
"""
    process = start(ORDINARY, script)
    assert said_next(process) == said_next(process) == {"ready": 1}
    process.terminate()
    assert said(process) == [{"codes": [128 + signal.SIGTERM, -signal.SIGKILL]}, {"left": "none"}]


def test_exit_codes_come_back_in_the_order_of_the_nodes(start: Start) -> None:
    script = """
def body(node):
    print(node.rank, file=sys.stderr)
    return [lambda: 0, lambda: 3, lambda: sys.exit(4), lambda: 1 / 0][node.rank]()

print("written once", end="")
codes = run(4, 1, body)
print(codes, os.listdir("/proc/self/task") == [str(os.getpid())])
"""
    out, err = start(ORDINARY, script).communicate(timeout=BOUND)
    assert out == "written once[0, 3, 4, 70] True\n"
    assert err.count("Traceback") == 1 and "ZeroDivisionError" in err


def test_one_process_can_make_nodes_again(start: Start, account: list[str]) -> None:
    assert said(start(account, "for code in (1, 2): say(codes=run(2, 1, lambda node: code))")) == [{"codes": [1, 1]}, {"codes": [2, 2]}]


def limited(kind: str, most: int) -> list[str]:
    """What to put before a command to run it where only so many namespaces can be made."""
    return ["unshare", "-r", "sh", "-c", f'echo {most} >/proc/sys/user/max_{kind}_namespaces; exec "$@"', "sh"]


# Containers hide a part of /proc; then the kernel lets no user mount one that shows it.
MASKED = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /proc/fs && exec unshare --map-user=1000 --map-group=1000 "$@"', "sh"]
BARE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.parametrize(
    ("prefix", "refused", "remedy"),
    [
        (limited("net", 0), "here: unshare network: No space left", "sudo sysctl user.max_net_namespaces=1024"),
        (limited("net", 2), "here: node1: unshare network, UTS", "sudo sysctl user.max_net_namespaces=1024"),
        (limited("pid", 0), "here: node0: unshare network, UTS", "sudo sysctl user.max_pid_namespaces=1024"),
        (MASKED, "here: node0: mount /proc: Operation not permitted", "docker run --privileged"),
        pytest.param(BARE, "here: write uid_map: Operation not permitted", "sudo", marks=pytest.mark.skipif(os.geteuid() != 0, reason="not root")),
    ],
)
def test_a_refusal_says_what_was_refused_and_what_to_type(start: Start, prefix: list[str], refused: str, remedy: str) -> None:
    script = """
try:
    run(2, 1, lambda node: 0)
except EmulationRefused as error:
    say(message=str(error), remedy=error.remedy, permission=isinstance(error, PermissionError))
"""
    (line,) = said(start(prefix, script))
    assert refused in line["message"] and remedy in line["remedy"] and line["permission"]


def test_the_command_runs_on_each_node_and_returns_the_first_failure(start: Start) -> None:
    process = start(ORDINARY, "", "3", "--", "sh", "-c", "echo $NODE_RANK/$NNODES $(cat /proc/sys/kernel/hostname); exit $((NODE_RANK * 3))")
    out, _ = process.communicate(timeout=BOUND)
    assert sorted(out.splitlines()) == ["0/3 node0", "1/3 node1", "2/3 node2"]
    assert process.returncode == 3


@pytest.mark.parametrize("arguments", [("2",), ("2", "--"), ("--", "true"), ("two", "--", "true"), ("2", "--", "no-such-command")])
def test_the_command_line_refuses_what_it_cannot_run(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert emulate.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage:" in err


def test_the_command_exits_3_with_the_remedy_where_namespaces_are_refused(start: Start) -> None:
    process = start(limited("net", 0), "", "2", "--", "true")
    _, err = process.communicate(timeout=BOUND)
    assert (process.returncode, err.splitlines()[-1]) == (3, "sudo sysctl user.max_net_namespaces=1024")


@pytest.mark.slow
@pytest.mark.parametrize("account", ["user"], indirect=True)
def test_gloo_reduces_across_two_nodes(start: Start, account: list[str]) -> None:
    pytest.importorskip("torch")
    rank = """
import os, torch, torch.distributed as dist
os.environ |= {"RANK": os.environ["NODE_RANK"], "WORLD_SIZE": os.environ["NNODES"], "MASTER_ADDR": "node0", "MASTER_PORT": "29555"}
dist.init_process_group("gloo")
ones = torch.full((1000,), dist.get_rank() + 1.0)
dist.all_reduce(ones)
os.write(1, f"{os.uname().nodename} {ones.unique().tolist()}\\n".encode())
dist.destroy_process_group()
"""
    process = start(account, "", "2", "--", sys.executable, "-c", rank)
    out, err = process.communicate(timeout=2 * BOUND)
    assert sorted(out.splitlines()) == ["node0 [3.0]", "node1 [3.0]"], err

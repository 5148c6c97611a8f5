"""What a user types wrong is said in one line, what he types right does not change unnoticed, and he may leave at any moment."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SOON, Job, environments, free_port, until

from ncclcheck.cli import cli

HEAVY = ("torch", "cryptography", "psutil", "pyroute2", "pynvml", "vllm")
HERE = ("--nnodes", "1", "--nproc-per-node", "1")  # one rank on this machine, nothing emulated
ON_NODES = ("--nnodes", "--node-rank", "--master", "--hosts", "--token", "--token-file", "--insecure", "--roll-call-timeout")
OPTIONS = {
    "probe": [
        "names", "--skip", *ON_NODES, "--nproc-per-node", "--emulate", "--simulate-link", "--deadline", "--budget", "--max-bytes", "--model",
        "--max-model-len", "--tp", "--pp", "--vllm-mode", "--inject", "--allow-network-faults", "--force", "--run-dir", "--format", "--output",
        "--allow-degraded",
    ],
    "bench": [
        "model", "--tp", "--pp", "--concurrency", "--input-len", "--output-len", "--requests", "--set", "--vary", "--simulate-link", "--again",
        *ON_NODES, "--nproc-per-node", "--emulate", "--deadline", "--force", "--run-dir", "--format", "--output",
    ],
    "drill": [
        "names", "--repeat", "--seed", *ON_NODES, "--nproc-per-node", "--emulate", "--allow-network-faults", "--force", "--run-dir",
        "--format", "--output",
    ],
    "plan": [
        "model", "--run", "--nodes", "--gpus-per-node", "--gpu", "--inside", "--network", "--requests", "--prompt", "--answer", "--max-model-len",
        "--dtype", "--tp", "--pp", "--hosts", "--node-rank", "--emit", "--format", "--output",
    ],
    "triage": [
        "paths", "--live", "--pid", *ON_NODES, "--deadline", "--run-dir", "--format", "--output",
    ],
    "collect": ["--pid", "--output"],
    "token": [],
    "list": [],
    "explain": ["words"],
}  # fmt: skip


@pytest.fixture
def mark() -> Iterator[str]:
    """A value that every process of the test carries in its environment; at its end none of them may run any more."""
    value = uuid.uuid4().hex
    yield value
    until(lambda: not carrying(value), SOON, "the end of all that was started")


def carrying(mark: str) -> dict[int, list[bytes]]:
    """pid -> arguments of the processes that carry a mark."""
    found = {}
    for pid, environ in environments():
        if f"NCCLCHECK_TEST={mark}".encode() in environ:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return found


def ncclcheck(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ncclcheck", *words], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words, said",
    [
        ("bandwith", "there is no probe 'bandwith'; choose from bandwidth, collectives, "),
        ("--skip bandwith", "there is no probe 'bandwith'; choose from bandwidth, collectives, "),
        ("wiring --skip wiring", "no probe is left to run"),
        ("--format yaml", "--format yaml is not known; choose from "),
        ("--max-bytes -1", "'--max-bytes': a size must be at least 1 byte, not '-1'"),
        ("--max-bytes 3parsec", "'--max-bytes': '3parsec' is not a size such as 8, 64KiB or 1GiB"),
        ("--deadline -1s", "'--deadline': a time must be above zero, not '-1s'"),
        ("--roll-call-timeout 0", "'--roll-call-timeout': a time must be above zero, not '0'"),
        ("--budget soon", "'--budget': 'soon' is not a time such as 90, 90s or 1.5m"),
        ("--nnodes 0", "'--nnodes'"),
        ("--nnodes 2", "add --master ADDR"),
        ("--nnodes 2 --node-rank 2 --master 127.0.0.1", "node rank 2 is not one of the 2"),
        ("--nnodes 2 --node-rank 0 --master 127.0.0.1:99999", "99999"),
        (f"--nnodes 2 --master {'a' * 64}", "not a host's name: each part between dots has 1 to 63 characters"),
        ("--nnodes 2 --master a..b:29600", "not a host's name: each part between dots has 1 to 63 characters"),
        (f"--nnodes 2 --master {'.'.join(['abcdefghi'] * 30)}", "not a host's name: it has more than 253 characters"),
        ("--nnodes 2 --master a\x1bb", "not a host's name: there is a blank or a control character in it"),
        ("--nnodes 2 --master fe80::1%eth0", "a link-local address means something on one link only"),
        ("--nnodes 2 --master [fe80::1]:29600", "a link-local address means something on one link only"),
        ("--nnodes 2 --master 127.0.0.1 --hosts a,b,c", "3 hosts are named, but 2 take part"),
        ("--model nowhere", "--model nowhere: no readable config.json there"),
        ("--model .", "--model .: no readable config.json there"),
        ("--run-dir file", "cannot write to file: File exists"),
        ("--run-dir file/inside", "cannot write to file/inside: Not a directory"),
        ("--run-dir /proc/inside", "cannot write to /proc/inside: "),
        ("--output file/inside", "/file: File exists"),
        ("wiring --output .", "Is a directory"),
        ("--emulate 2x1 --nnodes 2", "--emulate makes its own nodes: leave --nnodes out"),
        ("--emulate 2x1 --master a --hosts a", "leave --master and --hosts out"),
        ("wiring --emulate 2x", "--emulate: "),
        ("--emulate 0x1", "--emulate: "),
        ("--emulate 2x2 --tp 3", "--tp 3 does not make 4 ranks; TP times PP must: --tp 1 --pp 4, --tp 2 --pp 2, --tp 4 --pp 1"),
        ("--emulate 2x1 --tp 2 --pp 2", "--tp 2 --pp 2 does not make 2 ranks; TP times PP must: --tp 1 --pp 2, --tp 2 --pp 1"),
        ("--nnodes 1 --nproc-per-node 2 --pp 4", "--pp 4 does not make 2 ranks; TP times PP must: --tp 1 --pp 2, --tp 2 --pp 1"),
        ("wiring --tp 2 --emulate 2x1", "--tp and --pp are for vLLM's probes"),
        ("--emulate twoxone", "--emulate: "),
        ("--inject hang", "--inject: "),
        ("--inject hang@rank=x", "--inject: "),
        ("host --inject hang@rank=1,after=20", "--inject: hang can only be planted in "),
        ("--inject explode@rank=1,after=20", "--inject: there is no fault 'explode'; choose from abort, address_change, "),
        ("--unknown", "No such option"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_anything_is_started(words: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ncclcheck(tmp_path, "probe", *words.split())
    usage, *rest = done.stderr.splitlines()
    if usage.startswith("Usage: "):  # click's own errors come with a hint of two lines
        assert rest.pop(0).startswith("Try ")
        assert rest.pop(0) == ""
        (usage,) = rest
    else:
        assert rest == []
        assert usage.startswith("ncclcheck: ")
    assert said in usage
    assert (done.returncode, done.stdout) == (2, "")
    assert [path.name for path in tmp_path.glob("ncclcheck-runs/*")] == []


def test_a_word_that_nobody_knows_is_answered_with_those_like_it(tmp_path: Path) -> None:
    done = ncclcheck(tmp_path, "explain", "busbandwidth")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ncclcheck: nothing is called 'busbandwidth'; did you mean ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["--help", "--version", "probe --help", "plan --help", "list", "explain busbw", "explain bandwidth"])
def test_what_only_prints_text_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    script = "import sys; from ncclcheck.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout
    assert set(done.stderr.split()).isdisjoint(HEAVY)
    assert "click" in done.stderr.split()


def test_the_options_of_each_command_are_the_known_ones() -> None:
    given = {name: [param.opts[0] for param in command.params] for name, command in cli.commands.items()}
    assert given == OPTIONS


@pytest.mark.parametrize("words", ["list", "explain rank"])
def test_who_closes_the_pipe_has_read_enough(words: str, tmp_path: Path) -> None:
    assert closed_pipe(tmp_path, *words.split()) == (0, "")


@pytest.mark.slow
def test_who_closes_the_pipe_of_a_run_gets_its_exit_code_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    code, errors = closed_pipe(tmp_path, "probe", "wiring", *HERE, "--master", f"127.0.0.1:{free_port()}")
    assert code == 0, errors
    assert "Traceback" not in errors and "Broken pipe" not in errors


def closed_pipe(folder: Path, *words: str) -> tuple[int, str]:
    """Run with a standard output that nobody reads; exit code and standard error."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-m", "ncclcheck", *words], cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True, timeout=200)
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("node_rank", [0, 1])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_roll_call_that_is_interrupted_ends_at_once(number: signal.Signals, code: int, node_rank: int, tmp_path: Path, mark: str) -> None:
    words = ("probe", "wiring", "--nnodes", "2", "--node-rank", str(node_rank), "--master", f"127.0.0.1:{free_port()}", "--nproc-per-node", "1")
    job = Job(tmp_path, *words, env={"NCCLCHECK_TEST": mark})
    try:
        until(lambda: handles(job.process.pid, signal.SIGTERM), SOON, "its signal handlers")
        if node_rank == 0:
            until(lambda: "waiting for node 1" in job.err, SOON, "the roll call")
        job.process.send_signal(number)
        assert job.wait(SOON) == code  # it would wait for minutes
    finally:
        job.kill()
    assert "interrupted" in job.err
    assert "Traceback" not in job.err
    assert job.out == ""


def waits(port: int) -> tuple[str, ...]:
    """A node that waits for another one."""
    return "probe", "wiring", "--nnodes", "2", "--node-rank", "0", "--master", f"127.0.0.1:{port}", "--nproc-per-node", "1"


def test_a_terminal_that_is_closed_ends_a_run_in_order(tmp_path: Path, mark: str) -> None:
    command = ["setsid", "--ctty", sys.executable, "-m", "ncclcheck", *waits(free_port())]
    terminal, end = pty.openpty()
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "NCCLCHECK_TEST": mark}, stdin=end, stdout=end, stderr=end)
    try:
        os.close(end)
        said = b""
        while b"waiting for node 1" not in said:
            said += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(SOON) == 129
    finally:
        process.kill()
        process.wait()


def test_under_nohup_a_run_outlives_the_terminal(tmp_path: Path, mark: str) -> None:
    job = Job(tmp_path, *waits(free_port()), command=("nohup", sys.executable, "-m", "ncclcheck"), env={"NCCLCHECK_TEST": mark})
    try:
        until(lambda: "waiting for node 1" in job.err, SOON, "the roll call")
        job.process.send_signal(signal.SIGHUP)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(SOON) == 143
    finally:
        job.kill()


COLLECT_WITH_A_SLOW_COMMAND = """
import sys
from ncclcheck import postmortem
from ncclcheck.collect import bundle, patient

bundle._sources = lambda members: (("a slow command", 60.0, lambda: [patient.output(("sleep", "60"), 60.0)]),)
sys.exit(postmortem.collect(None, "bundles"))
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_bundle_that_is_interrupted_leaves_no_file_and_no_command(number: signal.Signals, code: int, tmp_path: Path, mark: str) -> None:
    job = Job(tmp_path, "-c", COLLECT_WITH_A_SLOW_COMMAND, command=(sys.executable,), env={"NCCLCHECK_TEST": mark})
    try:
        until(lambda: any(words[0] == b"sleep" for words in carrying(mark).values()), SOON, "the command")
        job.process.send_signal(number)
        assert job.wait(SOON) == code
    finally:
        job.kill()
    assert (job.out, job.err) == ("", "")
    assert os.listdir(tmp_path / "bundles") == []


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_who_waits_for_a_pipes_writer_says_so_and_can_be_interrupted(number: signal.Signals, code: int, tmp_path: Path, mark: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    job = Job(tmp_path, "triage", "pipe", env={"NCCLCHECK_TEST": mark})
    try:
        until(lambda: handles(job.process.pid, signal.SIGTERM), SOON, "its signal handler")
        job.process.send_signal(number)
        assert job.wait(SOON) == code
    finally:
        job.kill()
    assert job.err == "ncclcheck: 'pipe' is a pipe: waiting for what is written into it (at most 60 s)\n" and job.out == ""


@pytest.mark.parametrize("words", ["triage a.log", "list", "explain rank"])
def test_what_cannot_be_written_is_said_and_is_no_success(words: str, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("hello\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ncclcheck", *words.split()], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1) and "No space left on device" in done.stderr


def test_a_name_that_is_not_there_reaches_the_terminal_without_its_control_characters(tmp_path: Path) -> None:
    done = ncclcheck(tmp_path, "triage", "gone\x1b[31m")
    assert (done.returncode, done.stdout) == (2, "") and "\x1b" not in done.stderr and "gone" in done.stderr


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


@pytest.mark.slow
def test_the_agents_of_a_run_never_load_torch_though_their_ranks_do(tmp_path: Path, mark: str) -> None:
    job = Job(tmp_path, "probe", "wiring", "--emulate", "2x1", "--format", "json", env={"NCCLCHECK_TEST": mark, "CUDA_VISIBLE_DEVICES": ""})
    agents: set[int] = set()
    with_torch: dict[int, list[bytes]] = {}
    try:

        def look() -> bool:
            for pid, words in carrying(mark).items():
                if b"ncclcheck" in words and b"probe" in words:
                    agents.add(pid)
                with contextlib.suppress(OSError):
                    if "libtorch" in Path(f"/proc/{pid}/maps").read_text():
                        now = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # it may have become another program since
                        with_torch[pid] = now if any(now) else words
            return job.process.poll() is not None

        until(look, 250, "the end of the run")
    finally:
        job.kill()
    assert job.report["status"] == "ready"
    assert len(agents) >= 2
    assert len([pid for pid, words in with_torch.items() if b"ncclcheck.rank" in words]) >= 2
    assert not [words for words in with_torch.values() if b"probe" in words]  # as each was seen last: torchrun begins as a copy of an agent

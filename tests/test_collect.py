"""A real job that hangs is collected into one bundle: nothing of the job is disturbed, and no secret leaves with it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from running import SOON, until
from test_jobs import as_nobody

from ncclcheck.collect import bundle, files, jobs, kernel_log, network, node, patient, processes, pyspy, ras, states
from ncclcheck.collect.jobs import Member
from ncclcheck.collect.taken import Item, Missing, Taken

SECRETS = ("hf_Zq7Xw9Lk3Pm5Rt8Vb2Nc4Jd6", "Gf5Hs8Ka2Ld9Qw3Er7Ty", "Mn4Bv6Cx8Za1Sd3Fg5Hj")
JOB = """
import os, pickle, sys
import torch, torch.distributed as dist

dist.init_process_group("gloo")
rank, ones = dist.get_rank(), torch.ones(1)
dist.all_reduce(ones)
prefix = os.environ["TORCH_FR_DUMP_TEMP_FILE"]
with open(f"{prefix}{rank}", "wb") as file:
    file.write(pickle.dumps({"version": "2.10", "rank": rank}) if rank == 0 else b'{"version": "2.10", "api_key": "' + sys.argv[2].encode() + b'"}')

def reads_what_nobody_writes():
    print(f"rank 1 reads, with token={sys.argv[2]}", flush=True)
    open(os.environ["TEST_FIFO"]).read()

if rank == 1:
    reads_what_nobody_writes()
dist.all_reduce(ones)
dist.destroy_process_group()  # without it, gloo's threads sometimes abort the process at its end
print(f"rank {rank} ends", flush=True)
"""


@dataclass(frozen=True)
class Hang:
    """A job of two ranks: rank 1 is in reads_what_nobody_writes, rank 0 waits for it in all_reduce."""

    folder: Path
    process: subprocess.Popen[bytes]
    ranks: dict[int, Member]

    def kernel(self) -> dict[str, str]:
        """What a signal, a debugger or a restart would change, of every thread of the job."""
        kept = re.compile(r"^(?:TracerPid|Sig(?:Pnd|Blk|Ign|Cgt)|ShdPnd):.*$|^State:\tT.*$|^State:\tt.*$", re.M)
        tasks = [task for member in self.ranks.values() for task in sorted(Path(f"/proc/{member.pid}/task").iterdir())]
        return {str(task): "\n".join(kept.findall((task / "status").read_text())) for task in tasks}


@pytest.fixture(scope="module")
def hang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hang]:
    folder = tmp_path_factory.mktemp("job")
    (folder / "train.py").write_text(JOB)
    os.mkfifo(folder / "fifo")
    given = {"HF_TOKEN": SECRETS[0], "DATABASE_PASSWORD": SECRETS[1], "VLLM_API_KEY": SECRETS[1], "NCCL_SOCKET_IFNAME": "eth0"}
    env = {**os.environ, **given, "TEST_FIFO": str(folder / "fifo"), "TORCH_FR_DUMP_TEMP_FILE": str(folder / "trace_")}
    words = (
        "--standalone",
        "--nproc-per-node",
        "2",
        "--redirects",
        "3",
        "--log-dir",
        str(folder / "logs"),
        str(folder / "train.py"),
        "--api-key",
        SECRETS[2],
    )
    with open(folder / "torchrun.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *words], env=env, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: any("rank 1 reads" in path.read_text() for path in folder.glob("logs/**/stdout.log")), SOON, "rank 1 at its place")
        ranks = {member.rank: member for member in jobs.find(process.pid)[0] if member.role == "rank" and member.rank is not None}
        until(lambda: all((state := processes.read(member.pid)) and state.state == "S" for member in ranks.values()), SOON, "both ranks asleep")
        yield Hang(folder, process, ranks)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def collected(hang: Hang, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bundle.Manifest]:
    into = tmp_path_factory.mktemp("gathered")
    return into, bundle.gather(into, hang.process.pid, lambda text: None)


def _switches(status: Path) -> list[str]:
    """How often a thread was scheduled: a signal or an attached debugger wakes one that sleeps."""
    return re.findall(r"^\w*ctxt_switches:\s+\d+$", status.read_text(), re.M)


def texts(into: Path, pattern: str) -> list[str]:
    return [path.read_text() for path in sorted(into.glob(f"*/{pattern}"))]


def test_the_ranks_of_a_torchrun_job_are_found_without_being_told(hang: Hang) -> None:
    members = {member.pid: member for member in jobs.find()[0]}
    assert {rank: (members[own.pid].rank, members[own.pid].world_size) for rank, own in hang.ranks.items()} == {0: (0, 2), 1: (1, 2)}
    assert members[hang.process.pid].role == "launcher"


def test_the_stack_file_of_the_stuck_rank_names_the_function_in_which_it_is_stuck(hang: Hang, collected: tuple[Path, bundle.Manifest]) -> None:
    (stack,) = texts(collected[0], f"pyspy.*.rank1.{hang.ranks[1].pid}.txt")
    assert "reads_what_nobody_writes (" in stack
    (other,) = texts(collected[0], f"pyspy.*.rank0.{hang.ranks[0].pid}.txt")
    assert "all_reduce (" in other


def test_the_state_environment_connections_and_logs_of_each_rank_are_there(hang: Hang, collected: tuple[Path, bundle.Manifest]) -> None:
    into, manifest = collected
    (state,) = texts(into, "proc.*.rank1.*.txt")
    assert "State:\tS (sleeping)" in state and "Max open files" in state and f"task {hang.ranks[1].pid} " in state
    (environment,) = texts(into, "env.*.rank1.*.txt")
    assert {"RANK=1", "WORLD_SIZE=2", "NCCL_SOCKET_IFNAME=eth0", "HF_TOKEN=[masked]"} <= set(environment.splitlines())
    assert "DATABASE_PASSWORD" not in environment
    (sockets,) = texts(into, "ss.txt")
    assert re.search(rf'^ESTAB \d+ \d+ \S+:\d+ \S+:\d+ users:\(\("\S+",pid={hang.ranks[1].pid},fd=\d+\)\)$', sockets, re.M)
    (log,) = texts(into, "log.*.rank1.*.stdout.log")
    assert log == "rank 1 reads, with token=[masked]\n"
    assert {entry["rank"] for entry in manifest.processes} == {0, 1, None}


def test_a_binary_dump_is_kept_as_it_is_and_one_in_json_is_masked(hang: Hang, collected: tuple[Path, bundle.Manifest]) -> None:
    (binary,) = collected[0].glob("*/fr.trace_0")
    assert binary.read_bytes() == (hang.folder / "trace_0").read_bytes()
    assert texts(collected[0], "fr.trace_1") == ['{"version": "2.10", "api_key": "[masked]"}']


def test_the_manifest_lists_every_file_and_says_why_others_are_missing(collected: tuple[Path, bundle.Manifest]) -> None:
    into, manifest = collected
    written = {str(path.relative_to(into)): path.stat().st_size for path in into.glob("*/*") if path.name != "manifest.json"}
    assert {entry["file"]: entry["bytes"] for entry in manifest.taken} == written
    assert all(entry["origin"] for entry in manifest.taken)
    assert any(entry["what"] == "NCCL RAS" and entry["reason"] and entry["remedy"] for entry in manifest.missing)
    (listed,) = into.glob("*/manifest.json")
    assert json.loads(listed.read_text())["taken"] == manifest.taken


def test_nothing_of_the_job_is_disturbed(hang: Hang, tmp_path: Path) -> None:
    stuck = Path(f"/proc/{hang.ranks[1].pid}/task/{hang.ranks[1].pid}/status")
    before, switches = hang.kernel(), _switches(stuck)
    bundle.gather(tmp_path, hang.process.pid, lambda text: None)
    assert hang.kernel() == before
    assert _switches(stuck) == switches, "the stuck thread was woken"
    assert {rank: (found := processes.read(member.pid)) and found.start for rank, member in hang.ranks.items()} == {
        rank: member.start for rank, member in hang.ranks.items()
    }
    assert hang.process.poll() is None


def test_the_bundle_is_its_owners_alone_and_holds_no_secret(hang: Hang, tmp_path: Path) -> None:
    said: list[str] = []
    path = bundle.write(tmp_path, hang.process.pid, said.append)
    assert re.fullmatch(r"ncclcheck-.+-\d{8}T\d{6}Z\.tar\.gz", path.name) and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [path.name] and said
    with tarfile.open(path) as archive:
        content = {member.name: file.read() for member in archive if (file := archive.extractfile(member))}
    assert len({name.split("/")[0] for name in content}) == 1 and all(name.count("/") == 1 for name in content)
    kinds = ("manifest.json", "pyspy.", "proc.", "env.", "log.", "fr.", "ss.txt", "ip.txt", "route.txt")
    assert not [kind for kind in kinds if not any(name.split("/")[1].startswith(kind) for name in content)]
    assert not [(name, secret) for name, data in content.items() for secret in SECRETS if secret.encode() in data]


def test_two_bundles_of_one_second_do_not_replace_each_other(tmp_path: Path) -> None:
    def finished() -> Path:
        path = tmp_path / ".partial"
        path.write_text("x")
        return bundle._named(path, "ncclcheck-a-1")

    assert [finished().name, finished().name] == ["ncclcheck-a-1.tar.gz", "ncclcheck-a-1-2.tar.gz"]


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(hang: Hang, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        bundle.write(tmp_path / "file", hang.process.pid, lambda text: None)


def test_a_source_that_hangs_or_fails_is_named_and_the_others_go_on() -> None:
    def hangs() -> Iterator[Item]:
        yield Taken("a.txt", "a", "here")
        threading.Event().wait()

    def fails() -> Iterator[Item]:
        yield Taken("b.txt", "b", "here")
        raise KeyError("c")

    assert list(bundle._answers("x", hangs, 3)) == [Taken("a.txt", "a", "here"), Missing("x", "no answer in 3 s")]
    assert list(bundle._answers("x", fails, SOON)) == [Taken("b.txt", "b", "here"), Missing("x", "KeyError: 'c'")]
    assert list(bundle._answers("x", fails, -1)) == [Missing("x", "not asked: 60 s were over")]


def test_a_command_that_does_not_end_is_ended_and_one_that_fails_says_why() -> None:
    with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
        patient.output(("sleep", "1234.5"), 0.2)
    assert not [child for child in processes.descendants(os.getpid()) if b"1234.5" in Path(f"/proc/{child.pid}/cmdline").read_bytes()]
    with pytest.raises(OSError, match="the reason"):
        patient.output(("sh", "-c", "echo first >&2; echo the reason >&2; exit 3"), SOON)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_refused_ptrace_is_recorded_with_what_would_allow_it(hang: Hang) -> None:
    (entry,) = as_nobody(lambda: list(pyspy.stacks([hang.ranks[1]])))
    assert isinstance(entry, Missing)
    assert "(rank 1)" in entry.what and "py-spy: " in entry.reason
    assert "sudo ncclcheck collect" in entry.remedy and "SYS_PTRACE" in entry.remedy


def test_what_a_process_writes_into_a_pipe_is_left_in_it(hang: Hang) -> None:
    code = "import sys; print('for its reader', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        until(lambda: (state := processes.read(process.pid)) and state.state == "S", SOON, "the line written")
        (entry,) = files.logs([replace(hang.ranks[1], pid=process.pid, environ={})])
        assert isinstance(entry, Missing) and entry.what == f"stdout of process {process.pid}" and "kubectl logs" in entry.remedy
        out, _ = process.communicate()
    assert out == b"for its reader\n"


def test_of_a_long_log_both_ends_are_taken_in_whole_lines_and_a_shared_one_is_nobodys(hang: Hang, tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_bytes(b"".join(b"line %09d of a long log\n" % number for number in range(300_000)))
    ranks = [replace(member, environ={"NCCL_DEBUG_FILE": str(path)}) for member in hang.ranks.values()]
    (log,) = [item for item in files.logs(ranks) if isinstance(item, Taken) and ".nccl." in item.name]
    assert isinstance(log.data, str) and files.HEAD + files.TAIL - 100 < len(log.data) <= files.HEAD + files.TAIL + 100
    assert log.data.startswith("line 000000000 of") and log.data.endswith("line 000299999 of a long log\n")
    (cut,) = [line for line in log.data.splitlines() if not re.fullmatch(r"line \d{9} of a long log", line)]
    left_out = path.stat().st_size - len(log.data) + len(cut) + 1
    assert cut == f"[ncclcheck: {left_out} bytes are left out here]"
    assert ".rank" not in log.name and str(path) in log.origin and "the last" in log.origin


def test_an_older_jobs_dump_is_not_taken_for_this_ones(hang: Hang, tmp_path: Path) -> None:
    for name, age in (("old_0", 86400), ("old_1", 0)):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    member = replace(hang.ranks[0], environ={"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(tmp_path / "old_")})
    assert [item.name for item in files.dumps([member]) if isinstance(item, Taken)] == ["fr.old_1"]


@contextlib.contextmanager
def service(answers: dict[bytes, bytes]) -> Iterator[int]:
    """The port of a service that answers each line that it knows, and closes after VERBOSE STATUS as NCCL does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                stream, _ = listener.accept()
                with stream, stream.makefile("rwb") as file:
                    for line in file:
                        file.write(answers.get(line, b""))
                        file.flush()
                        if line == b"VERBOSE STATUS\n":
                            return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_nccls_own_service_is_asked_for_its_status(hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ras, "BOUND", SOON)
    report = b"NCCL version 2.28.9 compiled with CUDA 13.0\n\nJob summary\n"
    with service({b"CLIENT PROTOCOL 2\n": b"SERVER PROTOCOL 2\n", b"TIMEOUT 3\n": b"OK\n", b"VERBOSE STATUS\n": report}) as port:
        ranks = [replace(member, environ={"NCCL_RAS_ADDR": f"localhost:{port}"}) for member in hang.ranks.values()]
        (item,) = ras.answers(ranks)
    assert isinstance(item, Taken) and (item.name, item.data) == ("ncclras.txt", report.decode())


def test_another_service_on_that_port_is_told_nothing_more() -> None:
    with service({b"CLIENT PROTOCOL 2\n": b"HTTP/1.1 400 Bad Request\n"}) as port, pytest.raises(ValueError, match="not NCCL RAS"):
        ras.ask("127.0.0.1", port)


def test_a_service_that_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ras, "BOUND", 0.3)
    with service({}) as port, pytest.raises(TimeoutError):
        ras.ask("127.0.0.1", port)


@pytest.mark.parametrize(
    ("setting", "place"),
    [("", ras.DEFAULT), ("localhost:31000", ("localhost", 31000)), ("[::1]:31000", ("::1", 31000)), ("nonsense", ras.DEFAULT)],
)
def test_the_address_of_nccls_service_is_read_as_nccl_reads_it(setting: str, place: tuple[str, int]) -> None:
    assert ras.address(setting) == place


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7"])
def test_an_address_in_the_kernels_table_is_read_back(text: str) -> None:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    words = "".join(f"{struct.unpack('=I', packed[at : at + 4])[0]:08X}" for at in range(0, len(packed), 4))
    assert states._address(f"{words}:733D") == f"{f'[{text}]' if ':' in text else text}:29501"


def test_the_nodes_interfaces_and_disks_are_told_as_usual_tools_do() -> None:
    found = {
        item.name: item.data for item in (*network.interfaces(), *network.infiniband(), *node.disks([]), *node.memory()) if isinstance(item, Taken)
    }
    assert re.search(r"^\d+: lo: <(?=[^>]*UP)(?=[^>]*LOOPBACK)[^>]*> mtu \d+ state \w+", str(found["ip.txt"]), re.M)
    assert "    inet 127.0.0.1/8 scope host lo" in str(found["ip.txt"])
    assert re.search(r"^/ \d+ \d+ \d+ \d+% /$", str(found["df.txt"]), re.M)
    assert "MemAvailable:" in str(found["meminfo.txt"])


def test_the_kernel_log_is_there_or_it_is_said_how_to_get_it() -> None:
    (item,) = kernel_log.messages()
    if isinstance(item, Taken):
        line = rf"[A-Z][a-z]{{2}} \d\d \d\d:\d\d:\d\d {re.escape(socket.gethostname())} kernel: .*"
        assert all(re.fullmatch(line, text) for text in str(item.data).split("\n")[:-1])
    else:
        assert "journalctl -k" in item.remedy


def test_after_it_was_collected_the_job_goes_on_and_ends_in_order(hang: Hang, collected: tuple[Path, bundle.Manifest]) -> None:
    with open(hang.folder / "fifo", "w"):
        pass
    assert hang.process.wait(60) == 0
    assert sorted(line for path in hang.folder.glob("logs/**/stdout.log") for line in path.read_text().splitlines() if line.endswith(" ends")) == [
        "rank 0 ends",
        "rank 1 ends",
    ]

"""The processes of a distributed job are found, with their place in it, by what real launchers leave in /proc."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SOON, until

from ncclcheck import secrets
from ncclcheck.collect import jobs, processes, roles
from ncclcheck.collect.jobs import Member

WAITS = "import sys; sys.stdin.read()"
PLACED = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu-01"}
SECRET = "Zq7Xw9Lk3Pm5Rt8Vb2Nc4"
Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that waits; its pid. It has nothing but the given environment."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, env: dict[str, str] | None = None, **given: Any) -> int:
        command = words or (sys.executable, "-c", WAITS)
        started.append(subprocess.Popen(command, env={"PATH": os.environ["PATH"], **(env or {})}, stdin=subprocess.PIPE, **given))
        until(Path(f"/proc/{started[-1].pid}/environ").read_bytes, SOON, "its environment")  # it comes a moment after the program
        return started[-1].pid

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def found(pid: int) -> Member | None:
    return next((member for member in jobs.find()[0] if member.pid == pid), None)


@pytest.mark.parametrize(
    "env",
    [
        PLACED,
        {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"},
        {"PMI_RANK": "3", "MPI_LOCALRANKID": "1", "PMI_SIZE": "8"},
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"},
        {**PLACED, "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
    ],
    ids=["torchrun", "open-mpi", "pmi", "slurm", "torchrun-below-slurm"],
)
def test_a_rank_is_found_by_its_launchers_variables(start: Start, env: dict[str, str]) -> None:
    member = found(start(env=env))
    assert member is not None
    assert (member.role, member.rank, member.local_rank, member.world_size) == ("rank", 3, 1, 8)
    assert member.python and member.threads >= 1 and member.state in "RSD"


def test_a_shell_in_a_pod_that_says_a_rank_is_no_rank(start: Start) -> None:
    assert found(start("sleep", "100", env=PLACED)) is None


def test_a_script_that_only_shares_a_batch_jobs_variables_is_no_rank(start: Start) -> None:
    assert found(start(env={"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})) is None
    assert found(start(env={"RANK": "0"})) is None


@pytest.mark.parametrize(
    ("title", "rank"),
    [
        ("VLLM::Worker_TP1", 1),
        ("VLLM::Worker_PP1_TP0", None),
        ("VLLM::EngineCore_DP0", None),
        ("sglang::scheduler_TP3", 3),
        ("ray::RayWorkerWrapper.execute_method", None),
    ],
)
def test_an_engines_worker_is_found_by_its_title(start: Start, title: str, rank: int | None) -> None:
    member = found(start(title, "-c", WAITS, executable=sys.executable))
    assert member is not None
    assert (member.role, member.rank) == ("worker", rank)


def test_an_idle_worker_of_ray_is_left_out(start: Start) -> None:
    assert found(start("ray::IDLE", "-c", WAITS, executable=sys.executable)) is None


def test_a_worker_that_wrote_its_title_over_its_environment_is_read_by_its_parents(start: Start) -> None:
    code = f"import subprocess, sys; subprocess.run(['VLLM::Worker_TP0', '-c', {WAITS!r}], executable=sys.executable, env={{}})"
    parent = start(sys.executable, "-c", code, env={**PLACED, "NCCL_DEBUG": "INFO"})
    child = until(
        lambda: next((child for child in processes.descendants(parent) if (m := found(child.pid)) and m.role == "worker"), None), SOON, "its worker"
    )
    member = found(child.pid)
    assert member is not None and member.environment["NCCL_DEBUG"] == "INFO"


def test_torchrun_itself_is_a_launcher(start: Start, tmp_path: Any) -> None:
    (tmp_path / "torchrun").write_text(WAITS)
    member = found(start(sys.executable, str(tmp_path / "torchrun"), "--nproc-per-node", "2", env=PLACED))
    assert member is not None and (member.role, member.rank) == ("launcher", None)


def test_a_child_that_inherits_its_ranks_variables_is_a_helper_of_it(start: Start) -> None:
    parent = start(sys.executable, "-c", f"import os, sys; os.fork(); {WAITS}", env=PLACED)
    child = until(lambda: next(processes.descendants(parent), None), SOON, "the rank's child")
    rank, helper = found(parent), found(child.pid)
    assert rank is not None and helper is not None
    assert (rank.role, helper.role) == ("rank", "helper")
    assert ".rank3." in rank.label and ".rank" not in helper.label


def test_with_a_pid_exactly_that_process_and_its_descendants_are_found(start: Start) -> None:
    other = start(env=PLACED)
    parent = start(sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '100'])")
    child = until(lambda: next((child for child in processes.descendants(parent) if child.state == "S"), None), SOON, "its child")
    members, _ = jobs.find(parent)
    assert {member.pid for member in members} == {parent, child.pid}
    assert other not in {member.pid for member in members}
    os.kill(child.pid, 9)


def test_a_pid_that_is_none_is_the_callers_mistake() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(ValueError, match=f"--pid {gone.pid}"):
        jobs.find(gone.pid)


def test_what_is_shown_of_a_process_has_no_secret_and_no_variable_that_is_nobodys_business(start: Start) -> None:
    env = {
        **PLACED,
        "HF_TOKEN": SECRET,
        "VLLM_API_KEY": SECRET,
        "NCCL_SOCKET_IFNAME": "eth0",
        "SHOPPING_LIST": "milk",
        "TOKENIZERS_PARALLELISM": "false",
    }
    member = found(start(sys.executable, "-c", WAITS, "--api-key", SECRET, "--max-tokens", "2560", env=env))
    assert member is not None
    shown = {**PLACED, "HF_TOKEN": secrets.MASK, "VLLM_API_KEY": secrets.MASK, "NCCL_SOCKET_IFNAME": "eth0", "TOKENIZERS_PARALLELISM": "false"}
    assert {name: value for name, value in member.environment.items() if not name.startswith("PYTHON")} == shown
    assert SECRET not in member.command and member.command.endswith("--max-tokens 2560")
    assert SECRET not in repr(member)


def as_nobody(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child that has given up every right."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_may_not_be_read_is_reported_with_the_remedy(start: Start) -> None:
    pid = start(env=PLACED)
    members, missing = as_nobody(jobs.find)
    assert pid not in {member.pid for member in members}
    entry = next(entry for entry in missing if str(pid) in entry.what.split())
    assert entry.reason == "Permission denied" and "root" in entry.remedy


@pytest.mark.parametrize(
    ("command", "launcher"),
    [
        ("python3 -m torch.distributed.run --nnodes 2 train.py", True),
        ("/usr/bin/python3.12 -u -X faulthandler -m torch.distributed.launch train.py", True),
        ("/opt/venv/bin/python /opt/venv/bin/accelerate launch train.py", True),
        ("/opt/venv/bin/python /opt/venv/bin/vllm serve /models/m -tp 8", True),
        ("python -m sglang.launch_server --model-path /models/m", True),
        ("python -m vllm.entrypoints.openai.api_server --model /models/m", True),
        ("python -u train.py --launcher torchrun", False),
        ("python -c pass torchrun", False),
        ("python -m my.torchrun", False),
        ("python", False),
    ],
)
def test_a_launcher_is_known_by_what_its_command_line_runs(command: str, launcher: bool) -> None:
    assert roles.is_launcher(command.split()) is launcher


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("python /opt/venv/bin/ncclcheck collect", True),
        ("python -m ncclcheck triage --live", True),
        ("python -m ncclcheck.rank", False),
        ("python ncclcheck.py", False),
    ],
)
def test_ncclcheck_itself_is_no_part_of_a_job_but_the_ranks_that_it_starts_are(command: str, ours: bool) -> None:
    assert roles.is_ours(command.split()) is ours

"""What a host lets a job use is read from the kernel, and judged by what the job would need of it."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ncclcheck.causes import CAUSES
from ncclcheck.collect import cgroup_limits, room
from ncclcheck.collect import limits as collected
from ncclcheck.model import Fact
from ncclcheck.preflight import limits
from ncclcheck.survey import Job, Node, Question

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
JOB = Job(2, 2, "10.0.0.1")
PORTS = {"infiniband": {"ports": [{"device": "mlx5_0", "port": 1, "state": "active"}], "verbs": ["uverbs0"], "settings": {}}}
STALE = {"files": 0, "bytes": 0, "largest": []}


def folder(what: str = "TMPDIR", **more: Any) -> dict[str, Any]:
    found = {"what": what, "path": "/tmp", "exists": True, "at": "/tmp", "device": 1, "size": 100 * GIB, "free": 50 * GIB, "inodes_free": 10**6}
    return {**found, "writable": True, "why": "", **more}


def judged(job: Job = JOB, *, others: Mapping[str, Any] | None = None, **more: Any) -> list[Fact]:
    """What is said of a node that has everything, but for what is given; `others`: further sections."""
    unlimited = ["unlimited", "unlimited"]
    section = {
        "rlimits": {"memlock": unlimited, "nofile": [1 << 20, 1 << 20], "nproc": unlimited},
        "unlocked": False,
        "rdma": [],
        "shm": {"size": 64 * GIB, "free": 64 * GIB, "writable": True, "stale": STALE},
        "memory": {"total": 512 * GIB, "available": 500 * GIB, "swap_total": 0, "swap_free": 0},
        "cgroup": {"version": 2, "memory_limit": None, "memory_used": None, "cpus": None, "pids_limit": None, "pids_used": None},
        "cpus": {"allowed": 64, "online": 64},
        "threads": 1000,
        "folders": [folder()],
        "hugepages": {"enabled": "madvise", "defrag": "madvise"},
        "clock": {"synchronised": True, "most_wrong": 100, "status": 0},
        "unread": {},
    }
    for name, value in more.items():
        section[name] = {**section[name], **value} if isinstance(section[name], Mapping) and isinstance(value, Mapping) else value
    found = list(limits.judge(Node(1, "b", "10.0.0.2", {"limits": section, **(others or {})}), job))
    for fact in found:
        assert fact.get("hosts") == ["b"]
        assert fact.kind in ("note", "unread") or (fact.get("cause") in CAUSES and fact.get("remedy") and fact.get("evidence"))
    return found


def told(facts: list[Fact]) -> list[tuple[str, str]]:
    return [(fact.kind, fact.get("cause", "")) for fact in facts]


def test_a_node_that_has_everything_is_left_alone() -> None:
    assert judged() == []


@pytest.mark.parametrize(
    "size, free, job, kind",
    [
        (64 * MIB, 64 * MIB, Job(2, 1, ""), "degraded"),
        (64 * MIB, 64 * MIB, Job(1, 2, ""), "fail"),
        (64 * MIB, 64 * MIB, Job(1, 1, "", model="/m"), "fail"),
        (512 * MIB, 512 * MIB, Job(1, 2, ""), "degraded"),
        (512 * MIB, 512 * MIB, Job(1, 16, ""), "fail"),
        (512 * MIB, 10 * MIB, Job(1, 2, ""), "fail"),
        (64 * GIB, 500 * MIB, Job(1, 2, ""), "degraded"),
        (64 * GIB, 10 * MIB, Job(1, 2, ""), "fail"),
        (64 * GIB, 0, Job(2, 1, ""), "fail"),
    ],
)
def test_shared_memory_is_judged_by_what_ranks_and_engines_put_there(size: int, free: int, job: Job, kind: str) -> None:
    assert told(judged(job, shm={"size": size, "free": free})) == [(kind, "shm-too-small")]


def gpus(*, read: str = "ok", topology: str = "NVLink", **settings: str) -> dict[str, Any]:
    """Two GPUs, and settings of NCCL."""
    pair = {"gpus": [0, 1], "read": read, "topology": topology}
    nccl = {name: {"value": value, "from": "environment"} for name, value in settings.items()}
    return {"devices": {"gpus": [{"index": 0}, {"index": 1}], "visible": [0, 1], "pairs": [pair]}, "settings": {"nccl": nccl}}


@pytest.mark.parametrize(
    "others, model, kind",
    [
        (gpus(), None, "degraded"),
        (gpus(topology="PXB", NCCL_P2P_DISABLE="0"), None, "degraded"),
        (gpus(), "/m", "fail"),
        (gpus(read="chipset not supported"), None, "fail"),
        (gpus(topology="SYS"), None, "fail"),
        (gpus(NCCL_P2P_DISABLE="1"), None, "fail"),
        ({"devices": {"gpus": [], "visible": []}}, None, "fail"),
    ],
)
def test_64_mib_of_shared_memory_do_not_stop_gpus_that_reach_each_other(others: dict[str, Any], model: str | None, kind: str) -> None:
    facts = judged(Job(1, 2, "", model), shm={"size": 64 * MIB, "free": 64 * MIB}, others=others)
    assert told(facts) == [(kind, "shm-too-small")]


def test_large_files_of_dead_jobs_are_named_and_small_ones_are_not() -> None:
    left = {"files": 2, "bytes": 40 * GIB, "largest": ["/dev/shm/nccl-a", "/dev/shm/nccl-b"]}
    assert told(judged(shm={"stale": left})) == [("note", "")]
    (fact,) = judged(shm={"free": 100 * MIB, "stale": left})
    assert fact.kind == "degraded" and "rm /dev/shm/nccl-a /dev/shm/nccl-b" in fact.get("remedy")
    assert judged(shm={"stale": {**left, "bytes": 4096}}) == []


@pytest.mark.parametrize(
    "soft, rdma, unlocked, kind",
    [
        (8 * MIB, [], False, None),  # what Linux gives by itself, where nothing needs more
        (64 * KIB, [], False, "degraded"),
        (8 * MIB, ["mlx5_0"], False, "fail"),
        (8 * MIB, ["mlx5_0"], True, None),
        (64 * KIB, ["mlx5_0"], True, "degraded"),
        (4 * GIB, ["mlx5_0"], False, "degraded"),
        ("unlimited", ["mlx5_0"], False, None),
    ],
)
def test_locked_memory_stops_a_launch_only_where_rdma_needs_it(soft: int | str, rdma: list[str], unlocked: bool, kind: str | None) -> None:
    facts = judged(rlimits={"memlock": [soft, soft]}, rdma=rdma, unlocked=unlocked, others=PORTS)
    assert told(facts) == ([(kind, "memlock-limit")] if kind else [])


@pytest.mark.parametrize(
    "job, changes",
    [
        (Job(1, 2, ""), {}),
        (JOB, {"verbs": []}),
        (JOB, {"ports": [{"device": "mlx5_0", "port": 1, "state": "down"}]}),
        (JOB, {"settings": {"NCCL_IB_DISABLE": {"value": "1", "from": "environment"}}}),
        (JOB, {"settings": {"NCCL_NET": {"value": "Socket", "from": "environment"}}}),
    ],
)
def test_little_locked_memory_is_worth_a_note_where_nothing_goes_over_rdma(job: Job, changes: dict[str, Any]) -> None:
    others = {"infiniband": {**PORTS["infiniband"], **changes}}
    assert told(judged(job, rlimits={"memlock": [8 * MIB, 8 * MIB]}, rdma=["mlx5_0"], others=others)) == [("note", "")]
    assert told(judged(job, rlimits={"memlock": [64 * KIB, 64 * KIB]}, rdma=["mlx5_0"], others=others)) == [("degraded", "memlock-limit")]


@pytest.mark.parametrize(
    "soft, ranks, kind",
    [(64, (2, 1), "fail"), (1024, (2, 8), None), (1024, (16, 8), "degraded"), (1024, (128, 8), "fail"), (65536, (128, 8), None)],
)
def test_open_files_are_judged_by_the_number_of_ranks(soft: int, ranks: tuple[int, int], kind: str | None) -> None:
    facts = judged(Job(*ranks, ""), rlimits={"nofile": [soft, 1 << 20]}, cpus={"allowed": 64})
    assert told(facts) == ([(kind, "fd-limit")] if kind else [])


@pytest.mark.parametrize(
    "more, kind",
    [
        ({"rlimits": {"nproc": [1024, 1024]}}, "degraded"),
        ({"rlimits": {"nproc": [1010, 1024]}}, "fail"),
        ({"rlimits": {"nproc": [4096, 4096]}}, None),
        ({"cgroup": {"pids_limit": 100, "pids_used": 20}}, "degraded"),
        ({"cgroup": {"pids_limit": 100, "pids_used": 90}}, "fail"),
    ],
)
def test_processes_are_judged_by_what_runs_already(more: dict[str, Any], kind: str | None) -> None:
    assert told(judged(**more)) == ([(kind, "process-limit")] if kind else [])


def test_memory_of_the_machine_and_of_the_cgroup_is_judged() -> None:
    assert told(judged(memory={"available": GIB})) == [("degraded", "host-oom-killed")]
    (fact,) = judged(cgroup={"memory_limit": 4 * GIB, "memory_used": 3 * GIB})
    assert told([fact]) == [("degraded", "host-oom-killed")] and "its cgroup has 1 GiB" in fact.get("title")
    assert judged(cgroup={"memory_limit": 40 * GIB, "memory_used": 3 * GIB}) == []


def test_ranks_that_share_a_cpu_are_slow_but_not_where_nodes_are_emulated() -> None:
    assert told(judged(cgroup={"cpus": 1.5})) == [("degraded", "slow-rank")]
    assert told(judged(cpus={"allowed": 1})) == [("degraded", "slow-rank")]
    assert judged(Job(2, 2, "", emulated=True), cpus={"allowed": 1}) == []


@pytest.mark.parametrize(
    "more, kind, cause",
    [
        ({"free": 0}, "fail", "disk-full"),
        ({"free": 200 * MIB}, "degraded", "disk-full"),
        ({"inodes_free": 3}, "fail", "disk-full"),
        ({"inodes_free": None}, None, ""),
        ({"writable": False, "why": "No space left on device", "errno": 28}, "fail", "disk-full"),
        ({"writable": False, "why": "Disk quota exceeded", "errno": 122}, "fail", "disk-full"),
        ({"writable": False, "why": "Permission denied", "errno": 13}, "fail", "permission-denied"),
        ({"writable": False, "why": "Read-only file system", "errno": 30}, "fail", "permission-denied"),
        ({"exists": False, "path": "/scratch/x"}, "note", ""),
    ],
)
def test_a_temporary_folder_without_room_stops_a_launch(more: dict[str, Any], kind: str | None, cause: str) -> None:
    assert told(judged(folders=[folder(**more)])) == ([(kind, cause)] if kind else [])


def test_a_current_folder_that_cannot_be_written_to_stops_nothing() -> None:
    (fact,) = judged(folders=[folder("the run directory", path="/app", at="/app", writable=False, why="Permission denied")])
    assert told([fact]) == [("degraded", "permission-denied")] and "cd FOLDER" in fact.get("remedy")


def test_a_cache_without_room_or_rights_stops_nothing() -> None:
    assert told(judged(folders=[folder("HF_HOME", free=0)])) == [("degraded", "disk-full")]
    assert told(judged(folders=[folder("HF_HOME", writable=False, why="Permission denied")])) == [("note", "")]


def test_folders_of_one_file_system_are_named_together() -> None:
    (fact,) = judged(folders=[folder(free=0), folder("HF_HOME", path="/root/.cache", free=0), folder("VLLM_CACHE_ROOT", device=2)])
    assert "/tmp (TMPDIR), /root/.cache (HF_HOME) on b" in fact.get("title") and "VLLM" not in fact.get("title")


def test_a_file_system_that_does_not_answer_is_named_and_an_unreadable_one_is_not_called_fine() -> None:
    hung = {"what": "TMPDIR", "path": "/nfs", "why": "no answer in 3 s", "late": True}
    assert told(judged(folders=[hung])) == [("fail", "disk-full")]
    assert told(judged(folders=[{**hung, "late": False}])) == [("unread", "")]


def test_a_part_that_was_not_read_is_said_to_be_unread() -> None:
    assert told(judged(shm=None, unread={"shm": "OSError: no"})) == [("unread", "")]
    (fact,) = limits.judge(Node(0, "a", "10.0.0.1"), JOB)
    assert fact.kind == "unread" and fact.get("needed")


def test_a_clock_on_its_own_is_worth_a_note_among_several_nodes() -> None:
    clock = {"synchronised": False}
    assert told(judged(clock=clock)) == [("note", "")]
    assert judged(Job(1, 2, ""), clock=clock) == []


def test_this_machine_is_read_as_the_kernel_knows_it() -> None:
    found = collected.section(Question())
    assert found["unread"] == {}
    assert found["rlimits"]["nofile"][0] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found["cpus"]["allowed"] == len(os.sched_getaffinity(0))
    disk = os.statvfs("/dev/shm")
    assert found["shm"]["size"] == disk.f_blocks * disk.f_frsize
    assert isinstance(found["clock"]["synchronised"], bool)
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["threads"] >= 1
    assert {entry["what"] for entry in found["folders"]} >= {"TMPDIR", "HF_HOME", "the run directory"}


def test_what_nobody_has_mapped_is_told_from_what_is_in_use() -> None:
    import mmap

    before = set(collected.shared_memory()["stale"]["largest"])
    path = Path(f"/dev/shm/nccl-test-{os.getpid()}")
    try:
        path.write_bytes(bytes(3 * MIB))
        found = collected.shared_memory()["stale"]
        assert str(path) in found["largest"] and found["bytes"] >= 3 * MIB
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096):
            assert set(collected.shared_memory()["stale"]["largest"]) <= before
    finally:
        path.unlink()


def test_a_folder_that_is_not_made_yet_is_judged_by_the_nearest_above_it(tmp_path: Path) -> None:
    found = room.look("HF_HOME", str(tmp_path / "a" / "b"), write=False)
    assert (found["exists"], found["at"], found["writable"]) == (False, str(tmp_path), True)
    assert not (tmp_path / "a").exists()
    assert list(tmp_path.iterdir()) == []
    assert room.look("TMPDIR", str(tmp_path), write=True)["writable"] and list(tmp_path.iterdir()) == []


def test_a_job_finds_its_folders_by_its_environment() -> None:
    found = room.folders({"HOME": "/home/a", "XDG_CACHE_HOME": "/cache", "VLLM_CACHE_ROOT": "/v"})
    assert (found["HF_HOME"], found["VLLM_CACHE_ROOT"], found["TRITON_CACHE_DIR"], found["TMPDIR"]) == (
        "/cache/huggingface",
        "/v",
        "/home/a/.triton",
        "/tmp",
    )
    assert room.folders({"TMPDIR": "/scratch"})["TORCHINDUCTOR_CACHE_DIR"] == "/scratch"


def cgroups(tmp_path: Path, version: int, levels: Mapping[str, Mapping[str, str]]) -> Path:
    """A hierarchy as the kernel shows it, and the two files of a process in its lowest level."""
    top = tmp_path / "cgroup"
    for place, files in levels.items():
        (top / place).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (top / place / name).write_text(text)
    own = max(levels, key=len)
    kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory,cpu,pids")
    (tmp_path / "mountinfo").write_text(f"30 20 0:26 / {top} rw - {kind} {kind} {options}\n")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text((tmp_path / "mountinfo").read_text())
    (proc / "cgroup").write_text(f"0::/{own}\n" if version == 2 else f"4:memory,cpu,pids:/{own}\n")
    return proc


def test_the_tightest_level_of_version_2_counts_and_its_cache_does_not(tmp_path: Path) -> None:
    own = {"memory.max": "max", "memory.current": "1", "cpu.max": "max 100000", "pids.max": "500", "pids.current": "10"}
    above = {"memory.max": str(8 * GIB), "memory.current": str(3 * GIB), "memory.stat": f"anon 1\ninactive_file {GIB}\n", "cpu.max": "150000 100000"}
    found = cgroup_limits.read(cgroups(tmp_path, 2, {"job": above, "job/step": own}))
    expected = {"version": 2, "memory_limit": 8 * GIB, "memory_used": 2 * GIB, "cpus": 1.5, "pids_limit": 500, "pids_used": 10}
    assert found == expected


def test_the_files_of_version_1_are_read_too(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": str(4 * GIB), "memory.usage_in_bytes": str(GIB), "memory.stat": "total_inactive_file 4096\n"}
    files |= {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "pids.max": "max", "pids.current": "3"}
    found = cgroup_limits.read(cgroups(tmp_path, 1, {"docker": files}))
    assert found == {"version": 1, "memory_limit": 4 * GIB, "memory_used": GIB - 4096, "cpus": None, "pids_limit": None, "pids_used": None}


def test_no_limit_is_none(tmp_path: Path) -> None:
    found = cgroup_limits.read(cgroups(tmp_path, 1, {"a": {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "1"}}))
    assert (found["memory_limit"], found["cpus"]) == (None, None)

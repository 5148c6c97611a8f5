"""The main job as users start it: emulated, over two hosts made by hand, inside torchrun, inside Slurm tasks, and without vLLM."""

from __future__ import annotations

import os
import site
import socket
import sys
from pathlib import Path

import pytest
from running import SOON, Job, free_port

pytestmark = pytest.mark.slow


def test_the_default_suite_is_ready_on_two_emulated_nodes_vllm_included(tmp_path: Path) -> None:
    host = Job(tmp_path / "host", "probe", "host", "--format", "json")
    if host.wait(SOON) or host.report["findings"]:
        pytest.skip(f"this machine itself is not ready: {host.report['summary']}")
    job = Job(tmp_path, "probe", "--format", "json")
    assert job.wait(280) == 0, job.out + job.err
    report = job.report
    probes = {probe["name"]: probe for probe in report["probes"]}
    assert (report["schema"], report["status"], report["emulated"], report["findings"]) == (1, "ready", True, [])
    assert report["summary"].startswith("ready (emulated on this machine; your cluster was not tested)")
    assert list(probes) == ["host", "parity", "reachability", "wiring", "collectives", "bandwidth", "hang", "vllm_engine"]
    assert {probe["status"] for probe in probes.values()} == {"pass"}
    assert [(node["node_rank"], node["host"]) for node in report["nodes"]] == [(0, "node0"), (1, "node1")]
    assert [(rank["rank"], rank["host"]) for rank in report["ranks"]] == [(0, "node0"), (1, "node1")]
    assert all(sample["correct"] and sample["busbw"] > 0 for sample in probes["bandwidth"]["samples"])
    assert len({sample["nbytes"] for sample in probes["bandwidth"]["samples"]}) >= 5
    assert "rank 1 (node1" in probes["hang"]["detail"] and "rank-stuck-in-python" in probes["hang"]["detail"]
    engine = {fact["rank"]: fact["fields"] for fact in probes["vllm_engine"]["facts"] if fact["kind"] == "engine"}
    assert set(engine) == {0, 1} and all(fields["tensor_parallel"] == 2 and fields["tokens_equal"] for fields in engine.values())
    took_part = {fact["fields"]["host"] for fact in probes["vllm_engine"]["facts"] if fact["kind"] == "participant"}
    assert took_part == {"node0", "node1"}
    assert all(fields["first_token_seconds"] > 0 and fields["token_seconds"] > 0 for fields in engine.values())
    (reduces,) = (fact for fact in probes["vllm_engine"]["facts"] if fact["kind"] == "all-reduces")
    assert reduces["rank"] == 0 and len(reduces["fields"]["seconds"]) == 16 and all(took > 0 for _, _, took in reduces["fields"]["seconds"])
    assert "GLOO_SOCKET_IFNAME" in report["environment"]["added"]
    assert job.left() == []


def test_two_agents_meet_over_loopback_and_both_say_ready_whoever_comes_late(tmp_path: Path) -> None:
    words = ("probe", "wiring", "collectives", "--nnodes", "2", "--master", f"127.0.0.1:{free_port()}", "--format", "json")
    env = {"GLOO_SOCKET_IFNAME": "lo"}
    jobs = [Job(tmp_path / str(rank), *words, "--node-rank", str(rank), env=env) for rank in (0, 1)]
    assert jobs[0].run_dir  # the roll is complete
    late = Job(tmp_path / "late", *words, "--node-rank", "1", env=env)
    assert late.wait(SOON) == 1 and late.report["findings"][0]["cause"] == "duplicate-rank"
    assert [job.wait(200) for job in jobs] == [0, 0], "\n".join(job.out + job.err for job in jobs)
    first, second = (job.report for job in jobs)
    assert first["run"]["id"] == second["run"]["id"] and first["status"] == second["status"] == "ready"
    assert first["summary"] == second["summary"] and not first["emulated"]
    assert [job.left() for job in jobs] == [[], []]


def test_inside_torchrun_each_process_supervises_its_own_rank(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ncclcheck")
    job = Job(tmp_path, "probe", "wiring", "collectives", "--format", "json", command=torchrun)
    assert job.wait(200) == 0, job.err
    report = job.report
    assert report["status"] == "ready" and "2 ranks on 1 node " in report["summary"]
    assert [(rank["rank"], rank["local_rank"], rank["node_rank"]) for rank in report["ranks"]] == [(0, 0, 0), (1, 1, 0)]
    assert job.left() == []


def test_the_tasks_of_a_slurm_step_find_each_other(tmp_path: Path) -> None:
    host = socket.gethostname()
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_NODEID": "0",
        "SLURM_TASKS_PER_NODE": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": host, "SLURM_STEP_NODELIST": host,
    }  # fmt: skip
    words = ("probe", "wiring", "--format", "json", "--master", "127.0.0.1")
    jobs = [Job(tmp_path / str(task), *words, env={**step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}) for task in (0, 1)]
    assert [job.wait(200) for job in jobs] == [0, 0], "\n".join(job.err for job in jobs)
    assert jobs[0].report["summary"].startswith("ready: 2 ranks on 1 node ")
    assert jobs[1].out == ""  # of the processes of one node, the first speaks for all


def without(distribution: str, folder: Path) -> dict[str, str]:
    """An environment in which everything is installed but one: links to all of site-packages except it."""
    folder.mkdir()
    for packages in site.getsitepackages():
        for entry in Path(packages).iterdir():
            if not entry.name.startswith((distribution, "__editable__", "ncclcheck")) and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(folder)]), "PYTHONNOUSERSITE": "1"}


def test_a_required_probe_that_cannot_run_leaves_the_verdict_unknown(tmp_path: Path) -> None:
    python, env = (sys.executable, "-S", "-m", "ncclcheck"), without("vllm", tmp_path / "site")
    job = Job(tmp_path / "run", "probe", "wiring", "vllm_engine", "--nproc-per-node", "1", "--format", "json", command=python, env=env)
    assert job.wait(200) == 3, job.err
    report = job.report
    assert [(probe["name"], probe["status"]) for probe in report["probes"]] == [("wiring", "pass"), ("vllm_engine", "skip")]
    assert report["status"] == "unknown" and report["findings"][0]["cause"] == "library-missing"
    assert report["summary"].startswith("not proven") and "vllm is not installed" in report["summary"]


def test_a_way_of_launching_vllm_that_is_not_installed_is_missed_where_it_was_asked_for_and_spared_where_all_were(tmp_path: Path) -> None:
    python, env = (sys.executable, "-S", "-m", "ncclcheck"), without("ray", tmp_path / "site")
    common = ("--nproc-per-node", "1", "--format", "json")
    skipping = ("--vllm-mode", "all", "--skip", "vllm_engine", "--skip", "vllm_serve")
    spared = Job(tmp_path / "all", "probe", "wiring", *skipping, *common, command=python, env=env)
    assert spared.wait(200) == 0, spared.err
    assert [(probe["name"], probe["status"]) for probe in spared.report["probes"]] == [("wiring", "pass"), ("vllm_ray", "skip")]
    assert "ray>=2.55 is not installed on" in spared.report["probes"][1]["detail"] and "vllm_ray (not installed)" in spared.report["summary"]
    asked = Job(tmp_path / "ray", "probe", "wiring", "--vllm-mode", "ray", *common, command=python, env=env)
    assert asked.wait(200) == 3 and asked.report["status"] == "unknown", asked.err
    assert asked.report["findings"][0]["cause"] == "library-missing" and "'ncclcheck[ray]'" in asked.report["findings"][0]["remedy"]

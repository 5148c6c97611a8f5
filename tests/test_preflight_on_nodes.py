"""What one node has otherwise than the other is found before any rank starts, on two hosts made of namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lab import Host, TwoHosts
from running import Job
from test_inventory import dist, weights

from ncclcheck import surveying

pytestmark = pytest.mark.slow
PORTS = count(29700)
ROOT = Path(__file__).parents[1]


def met(hosts: TwoHosts, *words: str, b: Mapping[str, str] | None = None) -> tuple[Job, dict[str, Any]]:
    """Run `ncclcheck probe WORDS...` on both, with these variables on the second; node 0's job and the one report of both."""
    meet = ("--nnodes", "2", "--master", f"10.77.0.1:{next(PORTS)}", "--nproc-per-node", "1", "--format", "json")
    jobs = [
        hosts.start(host, "probe", *words, *meet, "--node-rank", str(rank), env=env)
        for rank, (host, env) in enumerate(((hosts.a, {}), (hosts.b, b or {})))
    ]
    codes = [job.wait(200) for job in jobs]
    assert codes[0] == codes[1], "\n".join(job.out + job.err for job in jobs)
    reports = [job.report for job in jobs]
    assert reports[0]["summary"] == reports[1]["summary"] and "Traceback" not in jobs[0].err + jobs[1].err
    return jobs[0], reports[0]


def statuses(report: Mapping[str, Any]) -> dict[str, str]:
    return {probe["name"]: probe["status"] for probe in report["probes"]}


def nothing_started(job: Job, report: Mapping[str, Any]) -> bool:
    """No launch has a folder, and no rank was heard of."""
    folders = [path.name for path in job.folder.glob("ncclcheck-runs/*/*/*") if path.is_dir()]
    return folders == [] and report["ranks"] == [] and job.left() == []


def one_stop(report: Mapping[str, Any]) -> dict[str, Any]:
    (finding,) = [finding for finding in report["findings"] if finding["severity"] == "stop"]
    assert dict(finding) == finding
    return finding


def test_nodes_that_are_alike_pass_parity_and_the_ranks_are_started(two_hosts: TwoHosts) -> None:
    _, report = met(two_hosts, "wiring", "parity")
    assert (report["status"], report["findings"]) == ("ready", []), report["summary"]
    assert statuses(report) == {"parity": "pass", "wiring": "pass"} and next(iter(statuses(report))) == "parity"
    assert len(report["ranks"]) == 2


def test_a_setting_on_one_node_only_is_found_before_any_rank_starts(two_hosts: TwoHosts) -> None:
    job, report = met(two_hosts, "parity", "wiring", b={"NCCL_ALGO": "Tree"})
    finding = one_stop(report)
    assert (report["status"], finding["cause"], finding["culprit"]["hosts"]) == ("not-ready", "nccl-env-misconfig", ["node-b"])
    assert finding["title"].startswith("NCCL_ALGO is not set on node-a, Tree on node-b")
    assert finding["evidence"][0]["text"] == "node-b: NCCL_ALGO=Tree (from the environment)"
    assert statuses(report) == {"parity": "fail", "wiring": "skip"}
    assert next(probe["detail"] for probe in report["probes"] if probe["name"] == "wiring") == "not run: nccl-env-misconfig was found first"
    assert nothing_started(job, report)


def test_another_version_on_one_node_is_found_before_any_rank_starts(two_hosts: TwoHosts, tmp_path: Path) -> None:
    dist(tmp_path, "vllm", "0.1.0")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])])
    job, report = met(two_hosts, "parity", "wiring", b={"PYTHONPATH": path})
    finding = one_stop(report)
    assert (report["status"], finding["cause"], finding["culprit"]["hosts"]) == ("not-ready", "version-mismatch", ["node-a", "node-b"])
    assert finding["title"].startswith("vLLM ") and "0.1.0 on node-b" in finding["title"]
    assert nothing_started(job, report)


def inside(host: Host, *words: str) -> None:
    subprocess.run([*host.enter, *words], check=True)


@pytest.fixture
def model(tmp_path: Path, two_hosts: TwoHosts) -> Path:
    """A model that both nodes have."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    weights(folder / "model.safetensors", bytes(1024))
    return folder


def test_a_node_that_lacks_the_model_is_named_before_any_rank_starts(two_hosts: TwoHosts, model: Path) -> None:
    inside(two_hosts.b, "mount", "-t", "tmpfs", "none", str(model))
    try:
        job, report = met(two_hosts, "parity", "wiring", "--model", str(model))
    finally:
        inside(two_hosts.b, "umount", str(model))
    finding = one_stop(report)
    assert (report["status"], finding["cause"], finding["culprit"]["hosts"]) == ("not-ready", "model-not-on-node", ["node-b"])
    assert finding["title"] == f"node-b cannot use the model {model}: config.json: No such file or directory; 1 other node has it"
    assert nothing_started(job, report)


def test_a_node_with_other_weights_under_the_same_name_is_found_and_with_a_part_of_them_named(two_hosts: TwoHosts, model: Path) -> None:
    inside(two_hosts.b, "mount", "-t", "tmpfs", "none", str(model))
    try:
        inside(
            two_hosts.b, "sh", "-c", f'echo \'{{"model_type": "llama"}}\' > {model}/config.json; head -c 100 /dev/zero > {model}/model.safetensors'
        )
        _, report = met(two_hosts, "parity", "--model", str(model))
    finally:
        inside(two_hosts.b, "umount", str(model))
    causes = {finding["cause"]: finding["culprit"]["hosts"] for finding in report["findings"]}
    assert "model-not-on-node" in causes and causes["model-not-on-node"] == ["node-b"] and report["status"] == "not-ready"


def test_emulated_nodes_are_asked_a_few_at_a_time_and_all_answer(tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "parity", "--emulate", f"{surveying.EMULATED_AT_ONCE + 2}x1", "--format", "json")
    job.wait(280)
    assert len(list(tmp_path.glob("ncclcheck-runs/*/*/inventory.json"))) == surveying.EMULATED_AT_ONCE + 2, job.err
    assert "no answer in" not in job.out and job.left() == []


def test_each_node_keeps_what_was_read_of_it_in_its_part_of_the_run_directory(two_hosts: TwoHosts) -> None:
    job, report = met(two_hosts, "parity")
    (path,) = job.folder.glob("ncclcheck-runs/*/*/inventory.json")
    assert path.parent.name == "node0-node-a" and '"python"' in path.read_text() and oct(path.parent.stat().st_mode)[-3:] == "700"
    assert report["summary"].startswith("ready: 2 nodes passed parity")

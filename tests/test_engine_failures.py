"""The usual failures of an engine over two nodes are named by vllm_engine itself, with numbers, where nothing has looked at the nodes before.

Of the others, test_faults.py plants in a real engine: a node that never comes (missing_rank), a model that is not there (model_missing), another
TP on one node (wrong_tp), a rank that is killed (kill) or stopped (freeze), at the start and while tokens are generated.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import models
import planting
import pytest
from planned import LLAMA_70B
from running import Job, environments

from ncclcheck import vllm_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]
ROOT = Path(planting.__file__).parents[1]


def engine(folder: Path, planted: str, victim: int, words: Sequence[str] = ()) -> dict[str, Any]:
    """Node 0's report of vllm_engine on two emulated nodes with a rank each, and with what is planted on one of them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, "NCCLCHECK_TEST": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    script = [sys.executable, planting.__file__, planted, str(victim), "probe", "vllm_engine", "--nproc-per-node", "1", *words]
    done = subprocess.run(script, cwd=folder, env=environ, capture_output=True, text=True, timeout=290)
    if "EmulationRefused" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert not [pid for pid, found in environments() if f"NCCLCHECK_TEST={folder}".encode() in found]
    found: dict[str, Any] = json.loads((folder / "node0.json").read_text())
    assert found["status"] == "not-ready", found["summary"]
    return found


def best(report: dict[str, Any]) -> dict[str, Any]:
    finding: dict[str, Any] = report["findings"][0]
    return finding


@pytest.mark.parametrize(("planted", "victim"), [("wrong-host-ip", 0), ("wrong-host-ip", 1), ("another-vllm", 1), ("too-large-a-cache", 1)])
def test_what_one_node_has_otherwise_is_named_with_that_node(tmp_path: Path, planted: str, victim: int) -> None:
    expected, host = planting.ENGINE[planted], f"node{victim}"
    report = engine(tmp_path, planted, victim)
    finding = best(report)
    assert finding["cause"] == expected.cause, [each["title"] for each in report["findings"]]
    assert expected.said.format(host=host) in finding["title"] and finding["remedy"]
    alone = planted != "another-vllm"  # of two versions, nobody can tell which one is wrong
    assert sorted(finding["culprit"]["hosts"]) == ([host] if alone else ["node0", "node1"])
    assert not alone or finding["culprit"]["ranks"] == [victim]
    if planted == "too-large-a-cache":
        free, short, most = (float(number) for number in _numbers(finding))
        assert abs(4000 - free - short) < 0.02 and most == int(free)
    if planted == "wrong-host-ip":
        assert f"export VLLM_HOST_IP=10.201.0.{victim + 1}" in finding["remedy"]


def _numbers(finding: dict[str, Any]) -> tuple[str, ...]:
    said = re.search(r"and ([\d.]+) of [\d.]+ GiB are free: ([\d.]+) GiB too few", finding["title"])
    most = re.search(r"below [\d.]+ GiB, at most (\d+)", finding["remedy"])
    assert said and most, finding
    return (*said.groups(), most[1])


def test_a_request_that_is_longer_than_the_cache_is_named_with_the_length_that_would_do(tmp_path: Path) -> None:
    model = tmp_path / "model"
    vllm_model.write(model, tp=2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 22}))
    report = engine(tmp_path, "healthy", 0, ["--model", str(model), "--max-model-len", str(1 << 22)])
    finding = best(report)
    # on each of two ranks 2 layers keep keys and values of 2 heads of 32 dimensions: 512 bytes of a token in bfloat16, and 1 GiB is there
    assert finding["cause"] == "kv-cache-or-memory-too-small", finding["title"]
    assert f"one request of {1 << 22} tokens needs 2.0 GiB of KV cache and 1.0 GiB are there: 1.00 GiB too few" in finding["title"]
    fits = int(finding["remedy"].split("--max-model-len ")[1].split(",")[0])
    assert (1 << 21) - 1024 < fits <= 1 << 21


def said(finding: dict[str, Any]) -> tuple[str, str]:
    """Its cause, and what it says before it says in which phase the engine was."""
    return finding["cause"], finding["title"].partition("; ")[0]


def test_heads_that_tp_does_not_divide_are_named_with_the_sizes_that_would(tmp_path: Path) -> None:
    config = {**models.TINY, "num_attention_heads": 9, "num_key_value_heads": 9, "hidden_size": 288}
    model = models.write(tmp_path / "model", config, 1 << 20)
    finding = best(engine(tmp_path, "healthy", 0, ["--model", str(model)]))
    assert said(finding) == (
        "tp-not-divisible",
        "9 attention heads cannot be split over tensor parallel size 2",
    )
    assert "a divisor of 9: 1, 3, 9;" in finding["remedy"]


def test_an_architecture_that_this_vllm_does_not_have_is_named(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model", {**models.TINY, "architectures": ["NextYearForCausalLM"]}, 1 << 20)
    finding = best(engine(tmp_path, "healthy", 0, ["--model", str(model)]))
    assert said(finding) == (
        "software-bug-version",
        "this vLLM has no code for the architecture 'NextYearForCausalLM'",
    )
    assert finding["remedy"].startswith("pip install --upgrade vllm")


def test_ports_that_are_closed_between_the_nodes_are_named_while_an_engine_starts(tmp_path: Path) -> None:
    job = Job(tmp_path, "probe", "vllm_engine", "--emulate", "2x1", "--inject", "blocked_ports@rank=1,after=0", "--format", "json")
    assert job.wait(280) == 1, job.err
    finding = best(job.report)
    assert finding["cause"] == "blocked-port" and "node1" in finding["culprit"]["hosts"], finding
    assert job.left() == []


def test_a_model_that_does_not_fit_into_this_machine_starts_no_engine(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model", {**LLAMA_70B, "num_hidden_layers": 800}, 1_400_000_000_000, shards=20)
    job = Job(tmp_path, "probe", "parity", "vllm_engine", "--emulate", "2x1", "--model", str(model), "--format", "json")
    assert job.wait(200) == 1, job.err
    finding = best(job.report)
    assert finding["cause"] == "kv-cache-or-memory-too-small" and finding["severity"] == "stop"
    assert "1303.9 GiB of weights for the 2 ranks there" in finding["title"] and finding["title"].endswith("GiB too few")
    assert {probe["name"]: probe["status"] for probe in job.report["probes"]} == {"parity": "fail", "vllm_engine": "skip"}
    assert job.report["ranks"] == [] and job.left() == []

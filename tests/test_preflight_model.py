"""What would stop an engine with a model is said before one starts: of real folders, on recorded GPUs and on this machine's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machines
import models
import pytest
from planned import LLAMA_8B, LLAMA_70B, QWEN_7B

from ncclcheck import asking, documents, triage
from ncclcheck.causes import CAUSES
from ncclcheck.collect import model as collector
from ncclcheck.model import Finding, Run
from ncclcheck.plan import measured, weights
from ncclcheck.plan.fields import Unreadable
from ncclcheck.probes import parity
from ncclcheck.survey import Job, Node, Question, Survey

ROOT = Path(__file__).parents[1]
GB = 10**9
BYTES_8B, BYTES_70B = 16_060_522_496, 141_107_412_992  # of the published checkpoints


def read(model: Path | str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a node says of the model, as it travels."""
    return dict(asking.unpack(documents.pack({"model": collector.section(Question(environment or {}, model=str(model)))}))["model"])


def gpus(count: int = 2, **changed: Any) -> dict[str, Any]:
    """The first of two recorded H200s."""
    found = machines.section(machines.recording(**changed))
    return {**found, "visible": found["visible"][:count]}


def judged(found: Mapping[str, Any], devices: Mapping[str, Any], nodes: int = 1, each: int = 2, **job: Any) -> list[Finding]:
    """The findings of parity on so many equal nodes."""
    sections = {name: {"unread": {}} for name in parity.READS} | {"model": found, "devices": devices, **job.pop("sections", {})}
    there = [Node(number, f"gpu-{number:02}", f"10.0.0.{number}", sections) for number in range(nodes)]
    facts = list(parity.judge(Survey(Job(nodes, each, "10.0.0.0", str(found["path"]), **job), there)))
    assert not [fact for fact in facts if fact.get("cause") and fact.get("cause") not in CAUSES]
    return triage.reported(Run(facts=facts))


def one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert finding.remedy and finding.evidence
    return finding


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "8B": models.write(root / "8B", {**LLAMA_8B, "max_position_embeddings": 131072}, BYTES_8B, shards=4),
        "70B": models.write(root / "70B", LLAMA_70B, BYTES_70B, shards=30),
        "28 heads": models.write(root / "qwen", QWEN_7B, 15_231_233_024),
    }


def test_a_model_that_fits_and_can_be_divided_is_no_finding(folders: dict[str, Path]) -> None:
    for name, each, nodes in (("8B", 1, 1), ("8B", 2, 1), ("8B", 2, 2), ("70B", 2, 1), ("28 heads", 2, 1), ("28 heads", 2, 2)):
        assert judged(read(folders[name]), gpus(each), nodes, each) == [], (name, each, nodes)


@pytest.mark.parametrize(
    ("job", "said", "does"),
    [
        ({"nodes": 4}, "TP=8 cannot divide the model", "--tensor-parallel-size 2 --pipeline-parallel-size 4 (here: --tp 2 --pp 4)"),
        ({"nodes": 4, "tp": 8}, "28 attention heads are not divisible by TP=8; up to 8 ranks TP can be 1, 2, 4", "TP can be 1, 2, 4"),
        ({"nodes": 2, "tp": 3}, "28 attention heads are not divisible by TP=3", "--tp 2 --pp 2"),
    ],
)
def test_heads_that_tp_does_not_divide_are_named_with_the_values_that_would_do(
    folders: dict[str, Path], job: dict[str, Any], said: str, does: str
) -> None:
    finding = one(judged(read(folders["28 heads"]), gpus(), **job))
    assert (finding.cause, finding.severity, finding.culprit.hosts) == ("tp-not-divisible", triage.STOP, None)
    assert said in finding.title and does in finding.remedy
    assert "num_attention_heads 28, num_key_value_heads 4, num_hidden_layers 28" in finding.evidence[0].text


def test_key_value_heads_must_divide_tp_or_be_divided_by_it(tmp_path: Path) -> None:
    config = {**LLAMA_8B, "num_attention_heads": 24, "num_key_value_heads": 6, "intermediate_size": 14400}
    found = read(models.write(tmp_path / "m", config, 16 * GB))
    assert "6 key-value heads are neither divisible by TP=4 nor divide it" in one(judged(found, gpus(), nodes=2)).title
    assert judged(found, gpus(), nodes=3) == [] and judged(found, gpus(), nodes=6) == []  # 6 and 12 ranks


def test_more_stages_than_layers_and_more_ranks_than_are_started_are_named(folders: dict[str, Path]) -> None:
    found = read(folders["28 heads"])
    assert "it has 28 layers, and each stage needs one" in one(judged(found, gpus(), nodes=15, tp=1, pp=30)).title
    finding = one(judged(found, gpus(), tp=2, pp=2))
    assert finding.cause == "world-size-mismatch" and finding.title == "TP=2 x PP=2 wants 4 ranks, and 1 x 2 = 2 are started"
    assert judged(found, gpus(), nodes=2, tp=2, pp=2) == []


def test_of_an_architecture_that_is_not_known_heads_layers_and_weights_are_judged_all_the_same(tmp_path: Path) -> None:
    inner = {"num_attention_heads": 28, "num_hidden_layers": 4, "dtype": "bfloat16"}
    found = read(models.write(tmp_path / "m", {"architectures": ["LlavaForConditionalGeneration"], "text_config": inner}, 600 * GB))
    assert "28 attention heads are not divisible by TP=8; up to 8 ranks TP can be 1, 2, 4, 7" in one(judged(found, gpus(), nodes=4)).title
    finding = one(judged(found, gpus(), tp=2))
    assert finding.cause == "kv-cache-or-memory-too-small" and "279.4 GiB of weights on each GPU" in finding.title


def test_weights_that_do_not_fit_are_named_with_what_is_missing_and_what_would_fit(folders: dict[str, Path]) -> None:
    finding = one(judged(read(folders["70B"]), gpus(1), each=1))
    assert (finding.cause, finding.severity, finding.culprit.hosts) == ("kv-cache-or-memory-too-small", triage.STOP, ["gpu-00"])
    assert finding.culprit.devices == ["gpu-00:GPU 0"]
    assert finding.title == (
        f"the model {folders['70B']} does not fit with TP=1 PP=1: 131.4 GiB of weights on each GPU, and of GPU 0 of gpu-00 139.8 of 140.4 GiB "
        "are free, of which vLLM may use 126.4: 5.1 GiB too few"
    )
    assert finding.remedy.startswith("2 such GPUs, with --tensor-parallel-size 2 --pipeline-parallel-size 1") and "weights in FP8" in finding.remedy


def test_memory_that_another_process_holds_is_what_is_missing(folders: dict[str, Path]) -> None:
    held = {"total": 150754820096, "free": 30 * 2**30, "used": 150754820096 - 30 * 2**30}
    finding = one(judged(read(folders["70B"]), gpus(memory_1=held)))
    assert finding.culprit.devices == ["gpu-00:GPU 1"] and "of GPU 1 of gpu-00 30.0 of 140.4 GiB are free" in finding.title
    assert finding.title.endswith("35.7 GiB too few") and "end what holds 110.4 GiB of GPU 1" in finding.remedy


def test_a_length_that_was_asked_for_stops_a_launch_and_the_models_own_would_only_need_a_flag(folders: dict[str, Path]) -> None:
    held = {"total": 150754820096, "free": 28 * 2**30, "used": 150754820096 - 28 * 2**30}
    devices = gpus(1, memory_0=held)
    asked = one(judged(read(folders["8B"]), devices, each=1, max_model_len=131072))
    own = one(judged(read(folders["8B"]), devices, each=1))
    assert (asked.severity, own.severity) == (triage.STOP, triage.DEGRADATION)
    for finding, whose in ((asked, "as asked"), (own, "the model's own length")):
        assert finding.cause == "kv-cache-or-memory-too-small" and f"131072 tokens ({whose}" in finding.title
        assert "needs 16.0 GiB of KV cache" in finding.title and "15.0 GiB go to the weights" in finding.title
    flag, tokens = asked.remedy.split(",")[0].split()
    assert flag == "--max-model-len" and judged(read(folders["8B"]), devices, each=1, max_model_len=int(tokens)) == []
    assert judged(read(folders["8B"]), devices, each=1, max_model_len=int(tokens) + 1024) != []


def test_what_only_an_estimate_says_does_not_fit_is_no_stop(folders: dict[str, Path]) -> None:
    held = {"total": 150754820096, "free": 33 * 2**30, "used": 150754820096 - 33 * 2**30}  # 31 of weights and cache, 2 for all else
    finding = one(judged(read(folders["8B"]), gpus(1, memory_0=held), each=1, max_model_len=131072))
    assert finding.severity == triage.DEGRADATION and finding.confidence < 0.9 and "of what else it needs" in finding.title


def test_without_gpus_the_ranks_of_a_host_share_its_memory(folders: dict[str, Path]) -> None:
    devices = {"nvidia": False, "gpus": [], "visible": [], "pairs": []}
    limits = {"memory": {"total": 32 * 2**30, "available": 24 * 2**30, "swap_total": 0, "swap_free": 0}, "unread": {}}
    finding = one(judged(read(folders["70B"]), devices, sections={"limits": limits}))
    assert "131.4 GiB of weights for the 2 ranks there, and of the memory of gpu-00 24.0 of 32.0 GiB are free: 107.4 GiB too few" in finding.title
    assert judged(read(folders["8B"]), devices, sections={"limits": limits}, max_model_len=4096) == []
    capped = {**limits, "cgroup": {"memory_limit": 8 * 2**30, "memory_used": 2**30}}
    assert "7.0 of 8.0 GiB are free: 8.0 GiB too few" in one(judged(read(folders["8B"]), devices, sections={"limits": capped})).title
    settings = {"variables": {"VLLM_CPU_KVCACHE_SPACE": "40"}}
    (cache, *_) = judged(read(folders["8B"]), devices, sections={"limits": limits, "settings": settings}, max_model_len=4096)
    assert "asks for 40 GiB of KV cache for each rank, and 24.0 of 32.0 GiB are free: 16.0 GiB too few" in cache.title
    assert cache.remedy.startswith("export VLLM_CPU_KVCACHE_SPACE=6 ")


@pytest.mark.parametrize(
    ("quantised", "capability", "severity", "said"),
    [
        (None, [7, 5], triage.DEGRADATION, "cannot compute in bfloat16"),
        (None, [8, 0], None, ""),
        ({"quant_method": "fp8"}, [8, 9], None, ""),
        ({"quant_method": "fp8"}, [8, 6], triage.DEGRADATION, "no FP8 tensor cores"),
        ({"quant_method": "fp8"}, [7, 0], triage.STOP, "cannot serve the FP8 weights"),
    ],
)
def test_a_format_that_a_gpu_does_not_have_is_named_with_the_gpu(
    tmp_path: Path, quantised: dict[str, Any] | None, capability: list[int], severity: str | None, said: str
) -> None:
    config = LLAMA_8B if quantised is None else {**LLAMA_8B, "torch_dtype": "float16", "quantization_config": quantised}
    found = judged(read(models.write(tmp_path / "m", config, 8 * GB)), gpus(compute_capability_1=capability))
    named = [finding for finding in found if finding.cause == "dtype-not-supported"]
    assert [finding.severity for finding in named] == ([severity] if severity else [])
    for finding in named:
        version = ".".join(map(str, capability))
        assert said in finding.title and f"GPU 1 of gpu-00 (NVIDIA H200, compute capability {version})" in finding.title
        assert finding.culprit.hosts == ["gpu-00"] and finding.remedy


def test_an_architecture_that_nobody_here_can_serve_is_named_with_the_release(tmp_path: Path) -> None:
    if read(models.write(tmp_path / "known", LLAMA_8B, GB))["served"] is None:
        pytest.skip("vLLM is not installed")
    assert read(tmp_path / "known")["served"] == "vllm"
    assert read(models.write(tmp_path / "bert", {**LLAMA_8B, "architectures": ["FunnelForMaskedLM"]}, GB))["served"] == "transformers"
    found = read(models.write(tmp_path / "new", {**LLAMA_8B, "architectures": ["NextYearForCausalLM"]}, GB))
    finding = one(judged(found, gpus(), sections={"versions": {"installed": {"vllm": "0.32.0"}}}))
    assert (finding.cause, finding.culprit.hosts) == ("software-bug-version", ["gpu-00"])
    assert finding.title == "vLLM 0.32.0 on gpu-00 has no NextYearForCausalLM, and neither has Transformers there"


@pytest.mark.parametrize("text", ['{"architectures": ["Llama', "[1]", "null", "\x00"])
def test_a_config_that_is_no_object_says_so_and_the_node_is_named(tmp_path: Path, text: str) -> None:
    model = models.write(tmp_path / "m", models.TINY, 1 << 20)
    (model / "config.json").write_text(text)
    finding = one(judged(read(model), gpus()))
    assert finding.cause == "model-not-on-node" and "config.json is not a JSON object" in finding.title


def test_an_index_that_is_none_and_a_shard_that_it_names_in_vain_are_named(tmp_path: Path) -> None:
    model = models.write(tmp_path / "m", models.TINY, 1 << 20, shards=2)
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing, and the index of the weights names it" in one(judged(read(model), gpus())).title
    (model / "model.safetensors.index.json").write_text('{"weight_map": [')
    assert "model.safetensors.index.json: it is no index of weights" in one(judged(read(model), gpus())).title


def test_a_download_that_was_cut_short_is_named_with_both_sizes(tmp_path: Path) -> None:
    model = models.write(tmp_path / "m", LLAMA_8B, BYTES_8B)
    whole = (model / "model.safetensors").stat().st_size
    os.truncate(model / "model.safetensors", GB)
    assert f"model.safetensors: it has {GB} bytes, expected {whole}" in one(judged(read(model), gpus())).title


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
@pytest.mark.parametrize(("file", "said"), [("config.json", "cannot use the model"), ("model.safetensors", "only a part of the model")])
def test_a_file_that_this_user_may_not_read_is_named_with_chmod(tmp_path: Path, file: str, said: str) -> None:
    model = models.write(tmp_path / "m", models.TINY, 1 << 20)
    (model / file).chmod(0o600)
    for folder in (*tmp_path.parents[:2], tmp_path):
        folder.chmod(0o755)
    script = (
        "import json, os, sys\nfrom ncclcheck.collect import model\nfrom ncclcheck.survey import Question\n"
        "os.setresuid(65534, 65534, 65534)\nprint(json.dumps(model.section(Question(model=sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    finding = one(judged(json.loads(done.stdout), gpus()))
    assert finding.cause == "model-not-on-node" and said in finding.title and "Permission denied" in finding.title
    assert f"chmod -R a+rX {model}" in finding.remedy


def test_a_name_is_found_in_the_cache_and_one_that_is_not_there_says_which_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    model = models.write(tmp_path / "m", models.TINY, 1 << 20)
    models.cached(tmp_path / "home", "some-org/Some-Model", model)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    found = read("some-org/Some-Model")
    assert (found["why"], found["folder"]) == ("", str(tmp_path / "home/hub/models--some-org--Some-Model/snapshots/0123abcd"))
    assert judged(found, gpus()) == [] and found["config"]["num_attention_heads"] == 4
    finding = one(judged(read("some-org/Another"), gpus()))
    assert f"no such folder, and not in the Hugging Face cache {tmp_path / 'home/hub'}" in finding.title
    assert "hf download some-org/Another" in finding.remedy


ODD = (None, True, -1, 0, 2**70, 1.5, "x", "\u2028", [], [[1]], {}, {"num_attention_heads": "x"}, [None], ["LlamaForCausalLM"])


@pytest.mark.parametrize("base", [LLAMA_8B, {"text_config": LLAMA_8B, "architectures": ["Odd"]}], ids=["known", "unknown"])
def test_no_content_of_a_config_fails_a_judge(tmp_path: Path, base: dict[str, Any]) -> None:
    model = models.write(tmp_path / "m", base, 1 << 20)
    names = {*LLAMA_8B, "text_config", "quantization_config", "dtype", "head_dim", "auto_map"}
    for name in sorted(names):
        for odd in ODD:
            (model / "config.json").write_text(json.dumps({**base, name: odd}))
            judged(read(model), gpus(), nodes=2)


def test_what_travels_of_a_config_has_no_long_lists(tmp_path: Path) -> None:
    config = {
        **models.TINY,
        "id2label": {str(n): "x" * 40 for n in range(100)},
        "long": ["x" * 40] * 1000,
        "quantization_config": {"a": {"ignore": ["y"] * 9000}},
    }
    found = read(models.write(tmp_path / "m", config, 1 << 20))["config"]
    assert "long" not in found and found["quantization_config"] == {"a": {}} and found["num_attention_heads"] == 4


def test_files_that_are_read_whole_are_refused_where_they_are_larger_than_such_files_are(tmp_path: Path) -> None:
    from ncclcheck.plan import config

    model = models.write(tmp_path / "m", models.TINY, 1 << 20, shards=2)
    for file, most in (("config.json", config.MOST_BYTES), ("model.safetensors.index.json", weights.MOST_HEADER)):
        before = (model / file).read_bytes()
        os.truncate(model / file, most + 1)
        with pytest.raises(Unreadable, match=f"{file} has more than {most} bytes"):
            config.read(model)
        (model / file).write_bytes(before)
    os.truncate(model / "config.json", measured.MOST_BYTES + 1)
    with pytest.raises(measured.Unusable, match=f"more than {measured.MOST_BYTES} bytes"):
        measured.read(model / "config.json")

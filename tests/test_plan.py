"""Layouts, their memory and their times: what must hold whatever the model, and what follows for clusters that are well known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncclcheck.expect import cost, gpus, links
from ncclcheck.expect.cost import Group
from ncclcheck.plan import answers, choose, config, memory, predict, words
from ncclcheck.plan.layout import Layout, layout, layouts
from ncclcheck.plan.predict import Load, forecast

MODELS = {name: config.shape(fields, name) for name, fields in vars(planned).items() if isinstance(fields, dict) and "architectures" in fields}
models = st.sampled_from(sorted(MODELS))
clusters = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["H100", "A100-80GB", "L40S", "RTX-4090", "T4"]))
loads = st.builds(Load, st.sampled_from([1, 8, 100]), st.sampled_from([16, 1024]), st.sampled_from([1, 128]), st.sampled_from([2048, 8192]))
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_all_reduces_of_nvlink_are_those_that_were_measured() -> None:
    """NCCL 2.28.9 on H200: microseconds by ranks and bytes (nccl-tests in CUDA graphs); the model may miss a point by a third."""
    seen = {(2, 8): 5.7, (2, 32768): 7.0, (2, 2**18): 8.4, (2, 2**21): 29.8, (2, 2**24): 72.7, (2, 2**27): 451, (2, 2**30): 3266,
            (4, 8): 7.9, (4, 32768): 10.5, (4, 2**18): 11.1, (4, 2**21): 29.7, (4, 2**24): 100.5, (4, 2**27): 604, (4, 2**30): 4528}  # fmt: skip
    for (ranks, nbytes), microseconds in seen.items():
        told = cost.all_reduce(Group(ranks), nbytes, links.INSIDE["nvlink4"], None).seconds * 1e6
        assert told == pytest.approx(microseconds, rel=0.33), (ranks, nbytes)


@pytest.mark.parametrize(
    "text, adapters, rate", [("100G", 1, 5e9), ("25G", 1, 2.1e9), ("10GbE", 1, 1.0e9), ("8x400G-rdma", 8, 46e9), ("200Gb/s ib", 1, 23e9)]
)
def test_a_network_gives_what_such_networks_give(text: str, adapters: int, rate: float) -> None:
    found = links.network(text)
    assert (found.adapters, found.link.bandwidth) == (adapters, pytest.approx(rate, rel=0.05))


@pytest.mark.parametrize("text", ["", "fast", "0G", "0x100G", "100", "100G-carrier-pigeon", "100GB/s", "1e9G", "-5G"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network such as"):
        links.network(text)


@pytest.mark.parametrize(
    "name, found",
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100-PCIe"), ("NVIDIA H100 NVL", "H100-NVL"), ("NVIDIA H200", "H200"),
     ("NVIDIA A100-SXM4-40GB", "A100-40GB"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("4090", "RTX-4090"),
     ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("NVIDIA RTX A6000", "A6000"), ("CPU", "CPU"),
     ("a100", "A100-80GB")],
)  # fmt: skip
def test_a_gpu_is_known_by_its_short_name_and_by_the_drivers(name: str, found: str) -> None:
    assert gpus.find(name).name == found


@pytest.mark.parametrize("name", ["NVIDIA H100 CNX", "NVIDIA H200 NVL", "NVIDIA GB200", "Tesla V100-SXM2-32GB", "V100", "", "RTX 4090 Laptop GPU"])
def test_a_gpu_that_is_not_known_is_not_taken_for_another(name: str) -> None:
    with pytest.raises(ValueError, match="is not known"):
        gpus.find(name)


def test_the_heads_decide_how_a_model_can_be_cut() -> None:
    assert MODELS["LLAMA_8B"].slices(64) == [1, 2, 4, 8, 16, 32]
    assert MODELS["QWEN_7B"].slices(64) == [1, 2, 4]  # 7 and 14 divide its 28 heads, but not the 4 of keys; 28 not its MLP
    assert "blocks of 128" in MODELS["DEEPSEEK_V3"].refuses(32)


@pytest.mark.parametrize(
    "tp, pp, nodes, each, found",
    [(8, 2, 2, 8, Layout(8, 2, 1, 2)), (16, 1, 2, 8, Layout(16, 1, 1, 2)), (4, 1, 2, 8, Layout(4, 1, 4)), (1, 3, 1, 8, Layout(1, 3, 2)),
     (8, 2, 5, 8, Layout(8, 2, 2, 2)), (6, 2, 2, 8, None), (3, 8, 3, 8, None), (16, 2, 2, 8, None)],
)  # fmt: skip
def test_a_replica_lies_in_one_node_or_on_whole_ones(tp: int, pp: int, nodes: int, each: int, found: Layout | None) -> None:
    assert layout(tp, pp, nodes, each) == found


def test_a_layout_knows_what_of_it_crosses_between_nodes() -> None:
    assert (Layout(8, 2, 1, 2).slices, Layout(8, 2, 1, 2).crossings) == (Group(8), 1)
    assert (Layout(16, 1, 1, 2).slices, Layout(16, 1, 1, 2).crossings) == (Group(8, 2), 0)
    assert (Layout(4, 4, 1, 2).slices, Layout(4, 4, 1, 2).crossings) == (Group(4), 1)
    assert (Layout(16, 2, 1, 4).slices, Layout(16, 2, 1, 4).crossings) == (Group(8, 2), 1)


@quick
@given(models, clusters, loads)
def test_more_gpus_for_a_copy_never_need_more_memory_on_each(name: str, shape: tuple[int, int, str], load: Load) -> None:
    model, hardware = MODELS[name], planned.cluster(*shape)
    shapes = {(one.tp, one.pp) for one in layouts(model, hardware.nodes, hardware.each)}
    for tp, pp in shapes:
        for wider in [other for other, stages in shapes if stages == pp and other % tp == 0 and other > tp]:
            here, there = Layout(tp, pp, 1), Layout(wider, pp, 1)
            assert model.kv_slice(wider) <= model.kv_slice(tp)
            assert memory.activations(model, wider, 8192, 16) <= memory.activations(model, tp, 8192, 16)
            assert all(memory.weights(model, there, stage) <= memory.weights(model, here, stage) for stage in range(pp))
            told = [memory.of(model, one, hardware.gpu, load.requests, load.longest) for one in (here, there)]
            assert told[1].tokens >= told[0].tokens or here.gpus == 1  # the first one needs no buffers for NCCL
    for stages in range(1, 8):  # a stage more never makes the fullest one fuller
        assert max(memory.weights(model, Layout(1, stages + 1, 1), at) for at in range(stages + 1)) <= max(
            memory.weights(model, Layout(1, stages, 1), at) for at in range(stages)
        )


@quick
@given(models, clusters, loads, st.floats(1, 50), st.sampled_from(["base", "hop", "small", "bandwidth"]))
def test_a_slower_link_never_predicts_a_quicker_token(name: str, shape: tuple[int, int, str], load: Load, factor: float, what: str) -> None:
    model, hardware = MODELS[name], planned.cluster(*shape)
    assert hardware.network
    slower = [replace(link, **{what: getattr(link, what) * (factor if what in ("base", "hop") else 1 / factor)})
              for link in (hardware.inside, hardware.network.link)]  # fmt: skip
    worse = replace(hardware, inside=slower[0], network=replace(hardware.network, link=slower[1]))
    for one in layouts(model, hardware.nodes, hardware.each):
        here, there = forecast(model, one, hardware, load), forecast(model, one, worse, load)
        least = 1 - 1e-9  # sums are rounded
        assert there.token.seconds >= here.token.seconds * least and there.first.seconds >= here.first.seconds * least
        assert there.throughput * least <= here.throughput


@quick
@given(models, clusters, loads)
def test_every_prediction_adds_up(name: str, shape: tuple[int, int, str], load: Load) -> None:
    model, hardware = MODELS[name], planned.cluster(*shape)
    for one in choose.ranked(model, hardware, load):
        assert one.token.seconds > 0 and 0 < one.token.error < one.token.seconds and 0 < one.error < 1
        assert one.layout.gpus * one.layout.replicas <= hardware.gpus
        assert one.requests * one.layout.replicas * one.waiting >= load.requests * 0.999
        if one.layout.gpus == 1:
            assert one.token.communication.seconds == 0


def test_a_step_sends_what_tensor_parallelism_must() -> None:
    """Counted with a real vLLM: 2 all-reduces a layer and one for the embedding, of the hidden state, and one gather of the logits."""
    tiny = config.shape({**planned.LLAMA_8B, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
                         "vocab_size": 512, "torch_dtype": "float32"})  # fmt: skip
    sent = predict.traffic(tiny, Layout(2, 1, 1), 8, 1)
    assert (sent.all_reduces, sent.all_reduces * sent.all_reduce_bytes) == (5, 20_480)
    assert (sent.gathers, sent.gather_bytes / 2) == (1, 1024)  # of each rank
    staged = predict.traffic(MODELS["LLAMA_70B"], Layout(8, 2, 1, 2), 1, 1)
    assert (staged.all_reduces, staged.all_reduce_bytes, staged.sends, staged.send_bytes) == (161, 16384, 2, 2048)
    alone = predict.traffic(tiny, Layout(1, 1, 1), 8, 1)
    assert (alone.all_reduces, alone.gathers, alone.sends) == (0, 0, 0)


def test_across_a_slow_network_stages_are_taken_and_not_slices() -> None:
    model = MODELS["LLAMA_405B"]
    hardware = planned.cluster(2, 8, "H100", "100G")
    ranked = choose.ranked(model, hardware, planned.LOAD)
    assert ranked[0].layout == Layout(8, 2, 1, 2)
    said = words.recommendation(model, hardware, planned.LOAD, ranked)
    assert said[0].startswith("Take TP=8 inside a node and PP=2 across 2 nodes: ")
    wide = next(one for one in ranked if one.layout.tp == 16)
    added = wide.token.communication.seconds - ranked[0].token.communication.seconds
    assert added > 5e-3 and f"TP=16 across 100 Gb/s TCP would add {added * 1e3:.3g} ms of communication to every token" in said[1]


def test_a_model_that_fits_on_one_gpu_is_copied_for_many_requests_and_sliced_for_one() -> None:
    many, one = replace(planned.LOAD, requests=4000), replace(planned.LOAD, requests=1)
    pcie = planned.cluster(1, 8, "L40S")
    assert choose.ranked(MODELS["LLAMA_1B"], pcie, many)[0].layout == Layout(1, 1, 8)
    assert choose.ranked(MODELS["LLAMA_8B"], planned.cluster(1, 8), one)[0].layout.tp > 1


def test_what_bounds_a_token_is_named() -> None:
    def bound(name: str, hardware: Any, load: Load) -> str:
        return choose.ranked(MODELS[name], hardware, load)[0].token.bound

    few = replace(planned.LOAD, requests=1)
    assert bound("LLAMA_70B", planned.cluster(1, 4), few) == "memory bandwidth"
    assert bound("LLAMA_1B", planned.cluster(1, 1), few) == "software"
    across = [one for one in choose.ranked(MODELS["LLAMA_70B"], planned.cluster(2, 8, network="10G"), few) if one.layout.tp == 16]
    assert across[0].token.bound == "link latency"
    prompt = replace(few, prompt=8000)
    assert [one.first.bound for one in choose.ranked(MODELS["LLAMA_70B"], planned.cluster(2, 8, network="10G"), prompt) if one.layout.tp == 16] == [
        "link bandwidth"
    ]


def test_where_nothing_fits_it_is_said_by_how_much_and_what_would() -> None:
    model, hardware = MODELS["LLAMA_70B"], planned.cluster(1, 2, "RTX-4090", None)
    ranked = choose.ranked(model, hardware, planned.LOAD)
    assert not any(one.fits for one in ranked)
    why, would = choose.lacking(model, hardware, planned.LOAD, ranked)
    assert "LLAMA_70B does not fit" in why and "GiB more than the 21.6 GiB that may be used" in why
    assert "4 nodes like these (8 x RTX-4090)" in would
    longer = replace(planned.LOAD, longest=200_000)
    tight = planned.cluster(1, 2, "H100", None)
    why, would = choose.lacking(model, tight, longer, choose.ranked(model, tight, longer))
    assert "too few for one request of 200000" in why
    tokens = int(would.partition("--max-model-len ")[2].partition(",")[0])
    assert choose.ranked(model, tight, replace(longer, longest=tokens))[0].fits
    assert not choose.ranked(model, tight, replace(longer, longest=tokens + 1000))[0].fits


def test_the_questions_are_answered_for_the_hardware_at_hand() -> None:
    model = MODELS["LLAMA_70B"]

    def told(gpu: str, each: int = 8) -> dict[str, answers.Answer]:
        hardware = planned.cluster(1, each, gpu, None)
        taken = choose.ranked(model, hardware, planned.LOAD)[0]
        return {answer.question.split(" ")[-2]: answer for answer in answers.of(model, hardware, planned.LOAD, taken)}

    hopper, ampere = told("H100"), told("A100-80GB")
    formats = hopper["INT4"].figures
    assert formats["FP8"]["token"] < formats["FP16/BF16"]["token"] and formats["FP8"]["first"] < formats["FP16/BF16"]["first"]
    old = ampere["INT4"].figures
    assert "no tensor cores for FP8" in ampere["INT4"].text and "no tensor cores" not in hopper["INT4"].text
    assert old["FP8"]["token"] < old["FP16/BF16"]["token"] and old["FP8"]["first"] == pytest.approx(old["FP16/BF16"]["first"], rel=0.01)
    pays = hopper["H100"].figures
    assert pays["H200"]["throughput"] > pays["H100"]["throughput"] > pays["A100-80GB"]["throughput"] > pays["L40S"]["throughput"]
    links_ = hopper["NVLink"].figures
    assert links_["pcie5"]["first"] > 1.5 * links_["nvlink4"]["first"]
    assert any("8 x RTX-4090" in case for case in hopper["cards"].cases)


def test_a_float32_model_is_served_in_half_precision_unless_asked_and_never_in_bf16_where_there_is_none() -> None:
    model = config.shape({**planned.LLAMA_8B, "torch_dtype": "float32"})
    assert [choose.dtype(model, "auto", gpus.find(kind)) for kind in ("H100", "T4")] == ["bfloat16", "float16"]
    assert choose.dtype(model, "float32", gpus.find("H100")) == "float32"
    assert choose.dtype(MODELS["LLAMA_8B"], "auto", gpus.find("T4")) == "float16"


def plan(folder: Path, *words_: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.json").write_text(json.dumps(planned.LLAMA_70B))
    return subprocess.run([sys.executable, "-m", "ncclcheck", "plan", str(folder), *words_], capture_output=True, text=True, timeout=60)


HERE = ("--nodes", "2", "--gpus-per-node", "8", "--gpu", "H100", "--network", "100G")


@pytest.mark.parametrize(
    "words_, said",
    [
        ((), "say --nodes and --gpus-per-node and --gpu, or --run"),
        (("--nodes", "2", "--gpus-per-node", "8", "--gpu", "H100"), "what joins the nodes? Say --network"),
        (("--nodes", "1", "--gpus-per-node", "8", "--gpu", "H1000"), "the GPU 'H1000' is not known"),
        ((*HERE, "--tp", "3"), "--tp 3: 64 attention heads are not divisible by TP=3; TP can be 1, 2, 4, 8, 16"),
        ((*HERE, "--tp", "16", "--pp", "2"), "TP=16 x PP=2 needs 32 GPUs, there are 16"),
        ((*HERE, "--pp", "81"), "--pp 81: the model has 80 layers"),
        ((*HERE, "--tp", "4", "--pp", "3"), "TP=4 PP=3 does not lie evenly on 2 nodes of 8 GPUs"),
        ((*HERE, "--inside", "string"), "--inside string is not known; choose from nvlink5, "),
        ((*HERE, "--prompt", "9000"), "9000 tokens in and 256 out are more than the 8192 of a request at most"),
        ((*HERE, "--max-model-len", "9000"), "takes requests of 8192 tokens at most"),
        ((*HERE, "--hosts", "a,b,c"), "3 hosts are named, but there are 2 nodes"),
        ((*HERE, "--node-rank", "2"), "the nodes are 0 to 1"),
        ((*HERE, "--emit", "ansible"), "--emit ansible is not known; choose from lws, shell, slurm, systemd"),
        ((*HERE, "--format", "junit"), "--format junit is not known; choose from text, json"),
        ((*HERE, "--run", "nowhere.json"), "cannot read nowhere.json: No such file"),
        (("--nodes", "1", "--gpus-per-node", "8", "--gpu", "T4", "--dtype", "bfloat16"), "--dtype bfloat16: the T4 has none"),
        ((*HERE, "--output", "/"), "Is a directory"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(words_: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = plan(tmp_path, *words_)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ncclcheck: ") and said in done.stderr


def test_a_model_that_is_not_known_and_one_that_does_not_fit_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    assert plan(tmp_path, *HERE).returncode == 0
    small = plan(tmp_path, "--nodes", "1", "--gpus-per-node", "1", "--gpu", "T4")
    assert small.returncode == 1 and "does not fit" in small.stdout
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text(json.dumps({**planned.LLAMA_8B, "architectures": ["RwkvForCausalLM"]}))
    strange = subprocess.run(
        [sys.executable, "-m", "ncclcheck", "plan", str(tmp_path / "strange"), *HERE], capture_output=True, text=True, timeout=60
    )
    assert (strange.returncode, strange.stdout) == (3, "") and "RwkvForCausalLM' is not known" in strange.stderr


def test_the_json_holds_every_layout_and_the_text_says_what_was_assumed(tmp_path: Path) -> None:
    document = json.loads(plan(tmp_path, *HERE, "--format", "json").stdout)
    assert document["status"] == "fits" and document["model"]["kv_bytes_per_token"] == 320 * 1024
    assert {(one["tp"], one["pp"]) for one in document["layouts"]} >= {(8, 1), (8, 2), (16, 1), (4, 4), (1, 16)}
    assert document["recommended"]["fits"] and document["recommended"] == document["layouts"][0]
    assert [command["node_rank"] for command in document["commands"]] == [0, 1]
    assert document["cluster"]["links"]["inside"]["measured"] is False
    text = plan(tmp_path, *HERE).stdout
    assert "assumed, not measured" in text and "± " in text and all(len(line) <= 100 or "vllm serve" in line for line in text.splitlines())


def test_planning_imports_neither_torch_nor_vllm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(planned.LLAMA_8B))
    script = "import sys; from ncclcheck.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    words_ = ["plan", str(tmp_path), *HERE]
    done = subprocess.run([sys.executable, "-c", script, *words_], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and {"torch", "vllm", "transformers"}.isdisjoint(done.stderr.split())


def test_the_hosts_in_the_text_are_words_of_a_shell_and_as_many_as_there_are_nodes(tmp_path: Path) -> None:
    four = ("--nodes", "4", "--gpus-per-node", "8", "--gpu", "H100", "--network", "100G", "--tp", "8", "--pp", "4", "--max-model-len", "8192")
    assert "hosts=(ADDRESS_OF_NODE_0 ADDRESS_OF_NODE_1 ADDRESS_OF_NODE_2 ADDRESS_OF_NODE_3)" in plan(tmp_path, *four).stdout
    assert "hosts=(a 'b$(reboot)' c d)" in plan(tmp_path, *four, "--hosts", "a, b$(reboot) ,c, d").stdout


@pytest.mark.parametrize("name", [b"a\nEACH_NODE\ntouch owned", b"caf\xe9"])
def test_a_folder_that_no_script_can_name_is_planned_for_but_not_started(name: bytes, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    folder.mkdir()
    for form in (("--emit", "slurm"), ("--emit", "shell"), ("--format", "json")):
        done = plan(folder, *HERE, *form)
        assert (done.returncode, done.stdout) == (2, "") and "characters that a script cannot carry; rename or link it" in done.stderr
    done = plan(folder, *HERE)
    assert done.returncode == 0 and "Take TP=" in done.stdout and "vllm serve" not in done.stdout and "rename or link it" in done.stderr
    assert folder.name.splitlines()[-1] not in done.stdout.splitlines()


@pytest.mark.parametrize("kind", ["B200", "RTX-5090"])
def test_int8_is_neither_advised_nor_planned_where_vllm_has_no_kernels_for_it(kind: str, tmp_path: Path) -> None:
    model, hardware = MODELS["LLAMA_8B"], planned.cluster(1, 8, kind, None)
    taken = choose.ranked(model, hardware, planned.LOAD)[0]
    formats = answers.of(model, hardware, planned.LOAD, taken)[0]
    assert set(formats.figures) == {"FP16/BF16", "FP8", "INT4"} and f"cannot compute in INT8 on the {kind}" in formats.text
    eight = replace(model, quantisation=choose.FORMATS["INT8"])
    assert (choose.starts(eight, gpus.find(kind)), choose.starts(eight, gpus.find("H100"))) == (False, True)
    assert any("RTX-5090: vLLM cannot compute in INT8" in case for case in answers.of(eight, planned.cluster(1, 8), planned.LOAD, taken)[2].cases)
    weights = {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}
    stored = {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}}
    (tmp_path / "config.json").write_text(json.dumps({**planned.LLAMA_8B, "quantization_config": stored}))
    words_ = [sys.executable, "-m", "ncclcheck", "plan", str(tmp_path), "--nodes", "1", "--gpus-per-node", "8", "--gpu", kind]
    done = subprocess.run(words_, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "") and f"vLLM cannot compute in INT8 on the {kind}" in done.stderr


def test_the_ranks_of_a_node_share_its_adapters_when_they_send_to_the_next_stage() -> None:
    nbytes = 2**26
    one, four, eight = (planned.cluster(2, 8, network=network) for network in ("100G", "4x100G", "8x100G"))
    alone = one.send(Group(1), nbytes, True).transfer
    assert one.send(Group(8), nbytes, True).transfer == pytest.approx(8 * alone, rel=0.01)
    assert four.send(Group(8), nbytes, True).transfer == pytest.approx(2 * alone, rel=0.01)
    assert eight.send(Group(8), nbytes, True).transfer == pytest.approx(alone, rel=0.01)
    assert one.send(Group(8), nbytes, False) == one.send(Group(1), nbytes, False)
    taken = forecast(MODELS["LLAMA_70B"], Layout(8, 2, 1, 2), one, planned.LOAD)
    sent = 2 * planned.LOAD.prompt * 8192 * 2  # hidden state and residual of the prompt, through the only adapter
    assert one.network and taken.first.communication.transfer > sent / one.network.link.bandwidth


def test_no_more_requests_are_served_at_once_than_vllm_takes_tokens_in_a_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(planned.LLAMA_1B))
    words_ = [
        "--nodes",
        "1",
        "--gpus-per-node",
        "1",
        "--gpu",
        "L40S",
        "--requests",
        "5000",
        "--prompt",
        "16",
        "--answer",
        "16",
        "--max-model-len",
        "64",
    ]
    run = [sys.executable, "-m", "ncclcheck", "plan", str(tmp_path), *words_, "--format", "json"]
    document = json.loads(subprocess.run(run, capture_output=True, text=True, timeout=60).stdout)
    assert document["recommended"]["requests_at_once"] == 2048 == memory.batched(gpus.find("L40S"))
    (command,) = document["commands"]
    assert "--max-num-seqs 2048 " in command["command"]
    assert any(reason == "Of 5000 requests 2048 are served at once; the others wait." for reason in document["reasons"])


def test_weights_that_are_quantised_already_are_what_other_formats_are_compared_with() -> None:
    model, hardware = MODELS["DEEPSEEK_V3"], planned.cluster(2, 8, "H200")
    taken = choose.ranked(model, hardware, planned.LOAD)[0]
    formats = answers.of(model, hardware, planned.LOAD, taken)[0]
    assert formats.text.startswith("the weights are FP8 already") and "in which models are trained" not in formats.text
    assert next(iter(formats.figures)) == "FP8 (as it is)" and "FP8" not in formats.figures
    assert formats.figures["FP8 (as it is)"]["throughput"] == taken.throughput
    change = formats.figures["FP16/BF16"]["throughput"] / taken.throughput - 1
    assert change < 0 and f"FP16/BF16 {change:+.0%}" in formats.text


def test_a_float32_model_is_compared_in_half_precision() -> None:
    wide, half = (config.shape({**planned.LLAMA_8B, "torch_dtype": dtype}) for dtype in ("float32", "bfloat16"))
    hardware = planned.cluster(1, 1)
    taken = choose.ranked(wide, hardware, planned.LOAD)[0]
    told = [answers.of(one, hardware, planned.LOAD, taken)[0] for one in (wide, half)]
    assert told[0].figures == told[1].figures and told[0].cases == told[1].cases


def test_the_commands_of_the_json_run_with_its_prelude_and_nothing_else(tmp_path: Path) -> None:
    document = json.loads(plan(tmp_path, *HERE, "--tp", "8", "--pp", "2", "--hosts", "192.0.2.1,192.0.2.2", "--format", "json").stdout)
    (tmp_path / "vllm").write_text('#!/bin/bash\necho "$VLLM_HOST_IP $@"\n')
    (tmp_path / "ip").write_text("#!/bin/bash\necho 2: eth7 inet\n")
    for name in ("vllm", "ip"):
        (tmp_path / name).chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for node, command in enumerate(document["commands"]):
        script = "\n".join(["set -eu", *document["prelude"], *command["environment"], command["command"]])
        done = subprocess.run(["bash", "-c", script], env=path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"192.0.2.{node + 1} serve") and "--master-addr 192.0.2.1 " in done.stdout


def test_what_is_gathered_between_stages_is_not_taken_for_logits(tmp_path: Path) -> None:
    text = " ".join(plan(tmp_path, *HERE, "--tp", "8", "--pp", "2", "--requests", "2").stdout.split())
    assert "1 gather of" in text and "(logits), 2 gathers of 16 KiB (between stages), 2 sends between stages of 2 KiB" in text


def test_a_node_that_the_layout_leaves_unused_has_nothing_to_start(tmp_path: Path) -> None:
    three = ("--nodes", "3", "--gpus-per-node", "8", "--gpu", "H100", "--network", "100G", "--tp", "8", "--pp", "2")
    done = plan(tmp_path, *three, "--node-rank", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--node-rank 2: TP=8 PP=2 leaves that node unused; it takes the nodes 0 to 1" in done.stderr
    assert plan(tmp_path, *three, "--node-rank", "1").returncode == 0


def test_a_config_of_another_name_is_no_folder_that_vllm_serves(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(planned.LLAMA_8B))
    run = [sys.executable, "-m", "ncclcheck", "plan", str(tmp_path / "llama.json"), *HERE]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"{tmp_path} has no config.json" in done.stderr
    assert "a load balancer before them" in done.stdout
    assert plan(tmp_path, *HERE).stderr == ""

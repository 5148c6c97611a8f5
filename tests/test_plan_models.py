"""A model's config.json says how many parameters it has and what a token keeps in the cache; what is not known for certain is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import planned
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncclcheck.plan import config, weights
from ncclcheck.plan.fields import Unknown, Unreadable
from ncclcheck.plan.layout import Layout, stages
from ncclcheck.plan.memory import activations
from ncclcheck.plan.memory import weights as on_a_gpu

KIB = 1024


@pytest.mark.parametrize(
    "fields, published",
    [
        (planned.LLAMA_8B, 8_030_261_248),
        (planned.LLAMA_70B, 70_553_706_496),
        (planned.LLAMA_405B, 405_853_388_800),
        (planned.LLAMA_1B, 1_235_814_400),
        (planned.QWEN_7B, 7_615_616_512),
        (planned.QWEN3_30B, 30_532_122_624),
        (planned.MISTRAL_7B, 7_241_732_096),
        (planned.MIXTRAL, 46_702_792_704),
        (planned.DEEPSEEK_V2, 235_741_434_880),
        (planned.DEEPSEEK_V3, 671_026_419_200),
    ],
)
def test_the_parameters_are_those_that_were_published(fields: dict[str, Any], published: int) -> None:
    assert config.shape(fields).parameters == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    "fields, active",
    [(planned.MIXTRAL, 12.9e9), (planned.DEEPSEEK_V2, 21e9), (planned.DEEPSEEK_V3, 37e9), (planned.QWEN3_30B, 3.3e9)],
)
def test_a_token_meets_only_the_experts_that_are_chosen(fields: dict[str, Any], active: float) -> None:
    assert config.shape(fields).active == pytest.approx(active, rel=0.1)


@pytest.mark.parametrize(
    "fields, kept",
    [
        (planned.LLAMA_8B, 128 * KIB),
        (planned.LLAMA_70B, 320 * KIB),
        (planned.QWEN_7B, 56 * KIB),
        (planned.MIXTRAL, 128 * KIB),
        (planned.QWEN3_30B, 96 * KIB),
        (planned.DEEPSEEK_V2, 60 * 576 * 2),  # one vector of 512 + 64 for all heads
    ],
)
def test_the_cache_of_a_token_is_exact(fields: dict[str, Any], kept: int) -> None:
    assert config.shape(fields).kv_token == kept


def test_heads_fewer_than_gpus_are_kept_on_several_and_a_compressed_cache_on_all() -> None:
    llama, deepseek = config.shape(planned.LLAMA_70B), config.shape(planned.DEEPSEEK_V2)
    assert [llama.kv_slice(tp) * 80 for tp in (1, 8, 16)] == [320 * KIB, 40 * KIB, 40 * KIB]
    assert deepseek.kv_slice(8) == deepseek.kv_slice(1) == deepseek.kv_token_layer


def test_a_sliding_window_bounds_what_a_request_keeps() -> None:
    assert config.shape(planned.MISTRAL_7B).kept(32768) == 4096
    assert config.shape(planned.QWEN_7B).kept(32768) == 32768  # use_sliding_window is false
    half = {**planned.MISTRAL_7B, "layer_types": ["sliding_attention", "full_attention"] * 16}
    assert config.shape(half).kept(32768) == (4096 + 32768) / 2


def quantised(**fields: Any) -> dict[str, Any]:
    return {**planned.LLAMA_8B, "quantization_config": fields}


def compressed(bits: int, kind: str, inputs: int | None, group: int | None = None) -> dict[str, Any]:
    weight = {"num_bits": bits, "type": kind, "group_size": group}
    return quantised(quant_method="compressed-tensors", config_groups={"group_0": {
        "weights": weight, "input_activations": {"num_bits": inputs} if inputs else None}})  # fmt: skip


@pytest.mark.parametrize(
    "fields, bits, computes",
    [
        (quantised(quant_method="fp8"), 8, "fp8"),
        (quantised(quant_method="gptq", bits=4, group_size=128), 4 + 20 / 128, "half"),
        (quantised(quant_method="awq", bits=4, group_size=64), 4 + 20 / 64, "half"),
        (compressed(8, "int", 8), 8, "int8"),
        (compressed(8, "float", 8), 8, "fp8"),
        (compressed(8, "int", None), 8, "half"),
        (compressed(4, "int", None, 128), 4.125, "half"),
        (planned.DEEPSEEK_V3, 8 + 32 / 128**2, "fp8"),
    ],
)
def test_quantised_weights_are_as_small_as_they_say(fields: dict[str, Any], bits: float, computes: str) -> None:
    found = config.shape(fields).quantisation
    assert found and (found.bits, found.computes) == (pytest.approx(bits), computes)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({**planned.LLAMA_8B, "architectures": ["MambaForCausalLM"]}, "the architecture 'MambaForCausalLM' is not known"),
        ({**planned.LLAMA_8B, "architectures": []}, "(none is named) is not known"),
        (quantised(quant_method="quip"), "the quantisation 'quip' is not known"),
    ],
)
def test_what_is_not_known_is_said_and_not_guessed(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Unknown) as error:
        config.shape(fields)
    assert said in str(error.value) and "nothing is guessed" in str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"torch_dtype": "complex64"}, "dtype"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Unreadable) as error:
        config.shape({**planned.LLAMA_8B, **change})
    assert said in str(error.value) and "\n" not in str(error.value)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3), st.just({"a": [None]}))
names = sorted({*planned.QWEN3_30B, *planned.DEEPSEEK_V3, "layer_types", "sliding_window", "use_sliding_window", "dtype"})
families = [planned.LLAMA_8B, planned.QWEN3_30B, planned.DEEPSEEK_V3, planned.MISTRAL_7B]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(families), st.dictionaries(st.sampled_from(names), values, max_size=4))
def test_whatever_stands_in_a_config_it_is_read_or_refused(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        found = config.shape({**fields, **changes})
    except Unreadable as error:
        assert "\n" not in str(error)
    else:
        assert found.parameters > 0 and found.kv_token > 0


def safetensors(file: Path, tensors: dict[str, int]) -> None:
    """A file with a real header and no data behind it."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    fields: dict[str, Any] = dict(header)
    for name, size in tensors.items():
        fields[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(fields).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)


def test_the_weights_on_the_disk_count_without_the_layers_that_only_speculate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(planned.LLAMA_8B))
    assert config.read(tmp_path).stored == 0
    safetensors(tmp_path / "a.safetensors", {"model.embed_tokens.weight": 100, "model.layers.31.mlp.weight": 50, "model.layers.32.mlp.weight": 7})
    safetensors(tmp_path / "b.safetensors", {"lm_head.weight": 1000})
    assert config.read(tmp_path / "config.json").stored == 1150
    index = {"metadata": {"total_size": 5000}, "weight_map": {"x": "a.safetensors", "y": "missing.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert config.read(tmp_path).stored == 5000  # not all files are here: what the index says
    index["weight_map"]["y"] = "a.safetensors"  # type: ignore[index]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert config.read(tmp_path).stored == 150  # a file that the index does not name is not loaded


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 7, (2**60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"nope",
     (42).to_bytes(8, "little") + b'{"model.x": {"data_offsets": [10, -1]}}   '],
)  # fmt: skip
def test_a_damaged_file_of_weights_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(weights.Damaged, match=r"model\.safetensors"):
        weights.stored(tmp_path, 32)


def test_the_model_that_the_engine_probe_makes_is_understood_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from ncclcheck import vllm_model

    vllm_model.write(tmp_path, 2)
    found = config.read(tmp_path)
    assert found.stored == found.loaded == 4 * found.parameters
    assert found.served("bfloat16").stored == found.stored / 2


@pytest.mark.parametrize("fields", [planned.LLAMA_8B, planned.LLAMA_1B, planned.QWEN3_30B, planned.DEEPSEEK_V3, planned.MIXTRAL])
def test_the_slices_and_stages_hold_the_model_once_but_for_what_is_on_each_of_them(fields: dict[str, Any]) -> None:
    shape = config.shape(fields)
    assert on_a_gpu(shape, Layout(1, 1, 1), 0) == pytest.approx(shape.loaded, rel=1e-6)
    twice = shape.embedding * shape.size if shape.tied else 0  # the first and the last stage both need it
    assert sum(on_a_gpu(shape, Layout(1, 4, 1), stage) for stage in range(4)) == pytest.approx(shape.loaded + twice, rel=1e-6)
    assert shape.loaded <= 4 * on_a_gpu(shape, Layout(4, 1, 1), 0) < 1.1 * shape.loaded


@pytest.mark.parametrize("layers, pp, sizes", [(32, 4, [8, 8, 8, 8]), (61, 2, [31, 30]), (62, 4, [15, 16, 16, 15]), (7, 4, [2, 2, 2, 1])])
def test_layers_are_cut_as_vllm_cuts_them(layers: int, pp: int, sizes: list[int]) -> None:
    assert [len(stage) for stage in stages(layers, pp)] == sizes
    assert [layer for stage in stages(layers, pp) for layer in stage] == list(range(layers))


def test_layers_are_cut_as_the_installed_vllm_cuts_them() -> None:
    utils = pytest.importorskip("vllm.distributed.utils", reason="vLLM is not installed")
    for layers in (5, 28, 61, 80):
        for pp in range(1, 6):
            cut = [utils.get_pp_indices(layers, rank, pp) for rank in range(pp)]
            assert [(stage.start, stage.stop) for stage in stages(layers, pp)] == cut


def test_more_tokens_at_once_need_more_room() -> None:
    shape = config.shape(planned.LLAMA_8B)
    assert activations(shape, 1, 8192, 16) > activations(shape, 1, 2048, 16) > activations(shape, 2, 2048, 16)


def test_a_config_of_many_megabytes_or_of_deep_lists_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for data in (b"[" * 100_000, b"{" + b" " * (5 * 2**20) + b"}", b"\xff\xfe", msgspec.json.encode([1])):
        file.write_bytes(data)
        with pytest.raises(Unreadable):
            config.read(tmp_path)


def test_compressed_attention_computes_on_wide_heads_in_a_prompt_and_on_its_ranks_when_decoding() -> None:
    deepseek, llama = config.shape(planned.DEEPSEEK_V3), config.shape(planned.LLAMA_8B)
    assert deepseek.look_flops(prompt=True) == 2 * 128 * (192 + 128)
    assert deepseek.look_flops(prompt=False) == 2 * 128 * (576 + 512)
    assert llama.look_flops(prompt=True) == llama.look_flops(prompt=False) == 4 * 32 * 128
    assert (deepseek.projected, llama.projected) == (128 * (192 + 192 + 128), (32 + 16) * 128)
    held = activations(deepseek, 1, 8192, 0)
    assert held == 8192 * 2 * (4 * 7168 + max(deepseek.projected, 8 * 7168 + 3 * 2048))


def test_a_checkout_in_which_git_lfs_has_left_notes_is_one_without_weights(tmp_path: Path) -> None:
    note = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4976698672\n"
    (tmp_path / "config.json").write_text(json.dumps(planned.LLAMA_8B))
    (tmp_path / "a.safetensors").write_text(note)
    assert config.read(tmp_path).stored == 0
    index = {"metadata": {"total_size": 5000}, "weight_map": {"x": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert config.read(tmp_path).stored == 5000


def test_blocks_of_compressed_tensors_share_a_scale_and_are_not_cut() -> None:
    def blocks(structure: Any) -> dict[str, Any]:
        weight = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": structure, "group_size": None}
        groups = {"group_0": {"weights": weight, "input_activations": {"num_bits": 8}}}
        return {**planned.DEEPSEEK_V3, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}

    found = config.shape(blocks([128, 128]))
    assert found.quantisation and (found.quantisation.block, found.quantisation.bits) == (128, 8 + 16 / 128**2)
    assert "blocks of 128" in found.refuses(32)
    for structure in (None, [128], [128, 64], ["a", "a"], [0, 0], [{}, {}]):
        with pytest.raises(Unreadable, match="block_structure"):
            config.shape(blocks(structure))

"""Reads a model's config.json and the sizes of its weights; what it does not know for certain, it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import whole
from ncclcheck.plan import quantised, weights
from ncclcheck.plan.fields import Config, Unknown, Unreadable, masked, short
from ncclcheck.plan.shape import BYTES, Experts, Latent, Shape

MOST_BYTES = 4 * 2**20  # of a config.json


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture's code has that its config.json does not say."""

    biases: int = 0
    head_norms: bool = False
    experts: Callable[[Config, int], Experts] | None = None
    latent: bool = False
    window: str = ""  # "all": every layer where the config has a window; "flag": only with use_sliding_window; "": none


def _mixtral(config: Config, layers: int) -> Experts:
    return Experts(config.size("num_local_experts"), config.size("num_experts_per_tok"), config.size("intermediate_size"))


def _qwen_moe(config: Config, layers: int) -> Experts:
    every, only = config.size("decoder_sparse_step", 1), config.fields.get("mlp_only_layers") or []
    if not isinstance(only, list):
        raise Unreadable("config.json: mlp_only_layers is not a list")
    dense = tuple(layer for layer in range(layers) if (layer + 1) % every or layer in only)
    shared = config.number("shared_expert_intermediate_size", 0)
    count, used, width = config.size("num_experts"), config.size("num_experts_per_tok"), config.size("moe_intermediate_size")
    return Experts(count, used, width, shared, dense, shared_gate=bool(shared))


def _deepseek(config: Config, layers: int) -> Experts:
    first, every = config.number("first_k_dense_replace", 0), config.size("moe_layer_freq", 1)
    dense = tuple(layer for layer in range(layers) if layer < first or layer % every)
    width = config.size("moe_intermediate_size")
    shared = width * config.number("n_shared_experts", 0)
    bias = config.text("topk_method") == "noaux_tc"
    return Experts(config.size("n_routed_experts"), config.size("num_experts_per_tok"), width, shared, dense, gate_bias=bias)


_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(window="all"),
    "Qwen2ForCausalLM": _Family(biases=3, window="flag"),
    "Qwen3ForCausalLM": _Family(head_norms=True, window="flag"),
    "Phi3ForCausalLM": _Family(window="all"),
    "MixtralForCausalLM": _Family(experts=_mixtral, window="all"),
    "Qwen2MoeForCausalLM": _Family(biases=3, experts=_qwen_moe, window="flag"),
    "Qwen3MoeForCausalLM": _Family(head_norms=True, experts=_qwen_moe, window="flag"),
    "DeepseekV2ForCausalLM": _Family(experts=_deepseek, latent=True),
    "DeepseekV3ForCausalLM": _Family(experts=_deepseek, latent=True),
}


def read(path: Path) -> Shape:
    """The model in a folder with config.json, or of that file itself. Raises Unreadable."""
    file = path / "config.json" if path.is_dir() else path
    found = shape(fields(file), masked(file.parent.resolve().name))
    try:
        return replace(found, stored=weights.stored(file.parent, found.layers))
    except weights.Damaged as error:
        raise Unreadable(str(error)) from None


def fields(file: Path) -> dict[str, Any]:
    """What stands in a config.json. Raises Unreadable."""
    try:
        found: dict[str, Any] = msgspec.json.decode(whole.read(file, MOST_BYTES), type=dict[str, Any])
    except OSError as error:
        raise Unreadable(f"cannot read {file}: {error.strerror}") from None
    except whole.TooLarge as error:
        raise Unreadable(f"{error}: it is no config.json") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unreadable(f"{file} is not a JSON object: {short(str(error))}") from None
    return found


def shape(fields: Mapping[str, Any], name: str = "model") -> Shape:
    """What a config.json says. Raises Unreadable, also for an architecture or a quantisation that is not known."""
    config = Config(fields)
    listed = fields.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    family = _FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(sorted(_FAMILIES))
        named = short(architecture) if architecture else "(none is named)"
        raise Unknown(f"the architecture {named} is not known, so nothing is guessed; known: {known}")
    layers, hidden, heads = config.size("num_hidden_layers"), config.size("hidden_size"), config.size("num_attention_heads")
    if layers > 1000:
        raise Unreadable(f"config.json: num_hidden_layers is {layers}")
    window, windowed = _window(config, family, layers)
    dtype = config.text("dtype") or config.text("torch_dtype") or "float16"
    if dtype not in BYTES:
        raise Unreadable(f"config.json: the dtype {short(dtype)} is not one of {', '.join(BYTES)}")
    bias = config.flag("attention_bias")
    return Shape(
        name=name,
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        head_dim=config.size("head_dim", max(1, hidden // heads)),
        width=config.size("intermediate_size"),
        vocabulary=config.size("vocab_size"),
        tied=config.flag("tie_word_embeddings"),
        dtype=dtype,
        longest=config.size("max_position_embeddings", 2048),
        biases=4 if bias and not family.latent else family.biases,
        head_norms=family.head_norms,
        latent=_latent(config) if family.latent else None,
        experts=_experts(family, config, layers),
        quantisation=quantised.read(fields),
        window=window,
        windowed=windowed,
    )


def _experts(family: _Family, config: Config, layers: int) -> Experts | None:
    if family.experts is None or (family.latent and config.fields.get("n_routed_experts") is None):
        return None
    found = family.experts(config, layers)
    if found.used > found.count:
        raise Unreadable(f"config.json: {found.used} experts for each token, of {found.count}")
    return None if len(found.dense) == layers else found


def _latent(config: Config) -> Latent:
    query = config.number("q_lora_rank", 0)
    return Latent(query, *(config.size(name) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")))


def _window(config: Config, family: _Family, layers: int) -> tuple[int, int]:
    """The sliding window, and how many layers have one."""
    window = config.number("sliding_window", 0)
    kinds = config.fields.get("layer_types")
    if not window or not family.window:
        return 0, 0
    if isinstance(kinds, list):
        return window, sum(kind == "sliding_attention" for kind in kinds[:layers])
    if family.window == "flag":
        if not config.flag("use_sliding_window"):
            return 0, 0
        return window, max(0, layers - config.number("max_window_layers", 0))
    return window, layers

"""The model that the vllm_engine probe serves: a tiny seeded Llama, written to a folder in a second, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ncclcheck.collect import hub

HEAD_DIM = 32  # vLLM's CPU attention takes 32, 64, 80, ..., and fails at the first token for others
LAYERS = 2  # at least
SCALE = 0.2  # of the weights: large enough that the best token leads by far, so another order of summation changes nothing
WHOLE = 64 * 2**20  # a weights file up to this size is hashed whole
BLOCK, BLOCKS = 2**20, 16  # of a larger one, this many blocks at even distances (a 140 GB model would take minutes)


def config(tp: int, pp: int = 1) -> dict[str, Any]:
    """The model's config.json: at least 4 heads, every dimension that tensor parallelism splits divisible by `tp`, equally many layers in
    each of `pp` stages.
    """
    heads = tp * -(-4 // tp)
    hidden = 4 * heads * -(-32 // heads)  # transformers wants a multiple of the heads, GPUs a multiple of 16 bytes; 128 for 4 to 32 heads
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 64 * heads,
        "num_hidden_layers": pp * -(-LAYERS // pp),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_DIM,
        "vocab_size": 64 * heads,  # vLLM pads it to a multiple of 64
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def dimensions(tp: int, pp: int) -> tuple[int, int, int]:
    """The model's hidden size, layers and vocabulary."""
    shape = config(tp, pp)
    return shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]


def write(folder: Path, tp: int, pp: int = 1, seed: int = 0) -> None:
    """Write config.json and model.safetensors (float32) into `folder`, which is made; there is no tokenizer.

    The file holds the whole model, so one rank and `tp` x `pp` ranks load the same weights from it.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shape = config(tp, pp)
    (folder / "config.json").write_text(json.dumps(shape, indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * SCALE

    hidden, attention = shape["hidden_size"], shape["num_attention_heads"] * HEAD_DIM
    inner, vocabulary = shape["intermediate_size"], shape["vocab_size"]
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": matrix(vocabulary, hidden),
    }
    for index in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name in ("q", "k", "v"):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = matrix(attention, hidden)
        weights[f"{layer}.self_attn.o_proj.weight"] = matrix(hidden, attention)
        weights[f"{layer}.mlp.gate_proj.weight"] = matrix(inner, hidden)
        weights[f"{layer}.mlp.up_proj.weight"] = matrix(inner, hidden)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, inner)
        weights[f"{layer}.input_layernorm.weight"] = torch.ones(hidden)
        weights[f"{layer}.post_attention_layernorm.weight"] = torch.ones(hidden)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def find(model: str) -> Path | None:
    """The folder of a model on this node: a path, or the cached snapshot of a Hugging Face name."""
    folder, missing = hub.find(model, os.environ)
    return folder if not missing and folder.is_dir() else None


def digest(folder: Path) -> str:
    """SHA-256 over config.json and the weights in `folder`; of files above 64 MiB over their size and 16 blocks of 1 MiB."""
    sha = hashlib.sha256()
    for path in sorted({folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")}):
        sha.update(f"{path.name} {path.stat().st_size}\n".encode())
        for block in _blocks(path):
            sha.update(block)
    return sha.hexdigest()


def weights_bytes(folder: Path) -> int:
    """Size of the weights in `folder`."""
    return sum(path.stat().st_size for path in {*folder.glob("*.safetensors"), *folder.glob("*.bin")})


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            yield file.read()
            return
        for index in range(BLOCKS):
            file.seek(index * (size - BLOCK) // (BLOCKS - 1))
            yield file.read(BLOCK)

"""Models on the disk, as large as they are said to be: weights of gigabytes are holes in a file, and take no room."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from planned import LLAMA_8B

TINY: dict[str, Any] = {
    **LLAMA_8B, "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip


def weights(file: Path, nbytes: int) -> None:
    """A whole safetensors file with one tensor of so many zeros."""
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [nbytes // 2], "data_offsets": [0, nbytes]}}).encode()
    with open(file, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + nbytes)


def write(folder: Path, config: dict[str, Any], nbytes: int, shards: int = 1) -> Path:
    """A model of so many bytes in `shards` files, which an index names if there are several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)] if shards > 1 else ["model.safetensors"]
    for name in names:
        weights(folder / name, nbytes // shards)
    if shards > 1:
        index = {"metadata": {"total_size": nbytes}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def cached(home: Path, name: str, model: Path, commit: str = "0123abcd") -> None:
    """The model under its name in a Hugging Face cache, of links as huggingface_hub makes them."""
    kept = home / "hub" / f"models--{name.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    (kept / "snapshots" / commit).mkdir(parents=True)
    for file in model.iterdir():
        os.symlink(file, kept / "snapshots" / commit / file.name)

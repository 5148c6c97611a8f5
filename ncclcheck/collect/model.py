"""The files of the model that is to be served, as this node finds them: which there are, how large, and whether they are whole."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import whole
from ncclcheck.collect import hub, served
from ncclcheck.plan import config, weights
from ncclcheck.plan.fields import Unreadable, short
from ncclcheck.survey import Question

_SMALL = 32 * 2**20  # bytes up to which a file that is no weights is hashed whole
_LARGE = 16 * 2**10  # bytes of a value in config.json from which it does not travel: a list of layers or labels, which nobody judges
_EDGE = 4096  # bytes of weights that are hashed at the beginning and at the end of a file
_HASHED = (".json", ".txt", ".model", ".py", ".jinja", ".tiktoken")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_INDEXES = {  # format -> the files that may name its shards, of which the first one that is there counts
    ".safetensors": ("model.safetensors.index.json", "consolidated.safetensors.index.json"),
    ".bin": ("pytorch_model.bin.index.json",),
}
_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # no weights: vLLM leaves them out, too
_MOST = 2000  # files that are looked at
_ENDS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]')
_POINTER = b"version https://git-lfs"


def section(question: Question) -> dict[str, Any]:
    """`path` (None: no model was named); `folder` where it lies; `why`: it cannot be used; `files`: name -> {size, digest}; `broken`: name -> what
    is wrong with it; `weights`: the files that an engine loads, of the one format that it prefers; `missing`: those of them that are not there;
    `config`: what config.json says, without long lists (None: not there, or not to be read); `stored`: bytes of the tensors that serving loads, 0
    where that is not known; `served`: by whose code this node's vLLM would serve it (see served.by).

    A digest of weights is over their header and the first and last 4 KiB: it tells other weights, and not a flipped bit.
    """
    if not question.model:
        return {"path": None}
    folder, why = hub.find(question.model, {**question.environment, **os.environ})
    found: dict[str, Any] = {
        "path": question.model, "folder": str(folder), "why": why, "files": {}, "broken": {}, "weights": [], "missing": [],
        "config": None, "stored": 0, "served": None,
    }  # fmt: skip
    if why:
        return found
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir() and not entry.name.startswith("."))[:_MOST]
    except OSError as error:
        return {**found, "why": error.strerror or str(error)}
    for name in names:
        try:
            found["files"][name] = _file(folder / name)
            if name.endswith(".safetensors"):
                found["files"][name]["digest"] = _weights(folder / name)
        except OSError as error:
            found["broken"][name] = error.strerror or str(error)
        except ValueError as error:
            found["broken"][name] = str(error)
    others = "params.json" in found["files"] or any(name.endswith(".gguf") for name in names)  # Mistral's form, and llama.cpp's
    if "config.json" not in found["files"] and ("config.json" in found["broken"] or not others):
        found["why"] = f"config.json: {found['broken'].get('config.json', 'No such file or directory')}"
    try:
        found["weights"] = _wanted(folder, names)
    except ValueError as error:
        found["broken"][str(error.args[0])] = str(error.args[1])
    found["missing"] = [name for name in found["weights"] if name not in names]
    if not found["why"] and not found["weights"] and not found["broken"]:
        found["why"] = "there are no weights in it"
    return {**found, **(_described(folder) if "config.json" in found["files"] else {})} if not found["why"] else found


def _described(folder: Path) -> dict[str, Any]:
    """What config.json says of the model, and what follows from it on this node; `why` where it is none."""
    try:
        fields = config.fields(folder / "config.json")
    except Unreadable as error:
        return {"why": str(error).replace(f"{folder}/", "", 1)}
    return {"config": _short(fields), "stored": _stored(folder, fields), "served": served.by(fields)}


def _short(fields: Mapping[str, Any], depth: int = 4) -> dict[str, Any]:
    """The fields, objects in them too, without long values."""
    shortened = {name: _short(value, depth - 1) if isinstance(value, dict) and depth else value for name, value in fields.items()}
    return {name: value for name, value in shortened.items() if isinstance(value, dict) or len(msgspec.json.encode(value)) <= _LARGE}


def _stored(folder: Path, fields: Mapping[str, Any]) -> int:
    layers = fields.get("num_hidden_layers")
    try:
        return weights.stored(folder, layers if isinstance(layers, int) else 1 << 20)
    except (weights.Damaged, OSError):
        return 0  # which file is damaged stands under `broken`


def _file(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    small = path.name.endswith(_HASHED) and size <= _SMALL
    return {"size": size, "digest": hashlib.sha256(whole.read(path, _SMALL)).hexdigest()[:16] if small else None}


def _weights(path: Path) -> str:
    """The digest of a safetensors file. Raises ValueError for one that is not whole."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if _POINTER.startswith(head):
            raise ValueError("it is a pointer of Git LFS, not the weights: git lfs pull")
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > weights.MOST_HEADER or 8 + length > size:
            raise ValueError(f"it is no safetensors file, or cut short: {size} bytes")
        header = file.read(length)
        expected = 8 + length + max((int(end) for end in _ENDS.findall(header)), default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes, expected {expected}: cut short, or still being copied")
        digest = hashlib.sha256(header)
        digest.update(file.read(_EDGE))
        file.seek(max(8 + length, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]


def _wanted(folder: Path, names: list[str]) -> list[str]:
    """The weights that an engine loads: where a folder has several formats, safetensors go first; where an index names them, it counts.

    Raises ValueError(its name, what is wrong with it) for an index that is none.
    """
    there = [name for name in names if name.endswith(_WEIGHTS) and name not in _OF_TRAINING]
    for form in _WEIGHTS:
        if found := [name for name in there if name.endswith(form)]:
            index = next((name for name in _INDEXES.get(form, ()) if name in names), None)
            return _indexed(folder / index) if index else found
    return []


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _indexed(index: Path) -> list[str]:
    """The files that an index of weights names. Raises as `_wanted`."""
    try:
        return sorted(set(msgspec.json.decode(whole.read(index, weights.MOST_HEADER), type=_Index).weight_map.values()))
    except OSError as error:
        raise ValueError(index.name, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:  # msgspec's errors, and TooLarge, are of this kind
        raise ValueError(index.name, f"it is no index of weights: {short(str(error))}") from None

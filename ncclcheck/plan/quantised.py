"""Reads how a config.json says that the weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ncclcheck.plan.fields import Config, Unknown, Unreadable, short
from ncclcheck.plan.shape import Quantisation


def read(fields: Mapping[str, Any]) -> Quantisation | None:
    """What quantization_config says. Raises Unreadable for a method that is not known."""
    said = fields.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise Unreadable("config.json: quantization_config is not an object")
    config, method = Config(said), str(said.get("quant_method", ""))
    if method == "fp8":
        block = said.get("weight_block_size")
        side = int(block[0]) if isinstance(block, list) and block and isinstance(block[0], int) and 0 < block[0] <= 4096 else 0
        return Quantisation("FP8", 8 + (32 / side**2 if side else 0), "fp8", side)
    if method in ("gptq", "awq"):
        bits, group = config.size("bits", 4), config.fields.get("group_size", 128)
        wide = group if isinstance(group, int) and 0 < group <= 65536 else 0
        return Quantisation(f"{method.upper()} {bits} bit", bits + ((16 + bits) / wide if wide else 0), "half", wide)
    if method == "compressed-tensors":
        return _compressed(said)
    raise Unknown(f"the quantisation {short(method)} is not known, so nothing is guessed; known: fp8, gptq, awq, compressed-tensors")


def _compressed(said: Mapping[str, Any]) -> Quantisation:
    groups = said.get("config_groups")
    kinds = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weight, inputs = (group.get(name) if isinstance(group, dict) else None for name in ("weights", "input_activations"))
        if isinstance(weight, dict) and isinstance(weight.get("num_bits"), int) and 2 <= weight["num_bits"] <= 16:
            whole = isinstance(inputs, dict) and inputs.get("num_bits") == weight["num_bits"] == 8
            per = weight.get("group_size")
            group_size = per if isinstance(per, int) and 0 < per <= 65536 else 0
            kinds.add((weight["num_bits"], str(weight.get("type", "int")), whole, group_size, _block(weight)))
    if len(kinds) != 1:
        raise Unreadable(f"config.json: quantization_config.config_groups has {len(kinds)} kinds of weights that can be read; one is understood")
    bits, kind, whole, per, block = kinds.pop()
    computes = ("fp8" if kind == "float" else "int8") if whole else "half"
    return Quantisation(f"{'FP' if kind == 'float' else 'INT'}{bits}", bits + (16 / (block**2 or per) if block or per else 0), computes, block or per)


def _block(weight: Mapping[str, Any]) -> int:
    """The side of the blocks that share a scale; 0 where the weights are not in blocks. Raises Unreadable for one that is not square."""
    if weight.get("strategy") != "block":
        return 0
    sides = weight.get("block_structure")
    if not isinstance(sides, list) or len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or not 0 < sides[0] <= 4096:
        raise Unreadable(f"config.json: block_structure is {short(sides)}, not two like numbers")
    return sides[0]

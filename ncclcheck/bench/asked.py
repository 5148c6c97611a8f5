"""From the command line of `ncclcheck bench` to what is to be measured. Raises Usage for what cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncclcheck import link, vllm_model
from ncclcheck.bench import grid
from ncclcheck.bench.cells import Load
from ncclcheck.bench.grid import Plan
from ncclcheck.plan import config, fields
from ncclcheck.plan.shape import Shape
from ncclcheck.printing import Usage

OURS = {  # vLLM's options that a layout or this command decides
    "model", "host", "port", "tensor-parallel-size", "pipeline-parallel-size", "nnodes", "node-rank", "master-addr", "master-port", "headless",
    "distributed-executor-backend", "served-model-name", "api-key", "distributed-timeout-seconds", "data-parallel-size", "tokenizer",
    "skip-tokenizer-init", "uds", "config",
}  # fmt: skip
MOST = 1_000_000  # of tokens or requests
LEAST_LONGEST = 1024  # tokens of a request that a server of the built-in model allows, at least
BUILTIN = "the built-in tiny Llama"
_CACHE = 16 * 2**20  # bytes of the built-in model's KV cache: a few dozen requests fill it
_ALIASES = {"prefix-caching": "enable-prefix-caching", "chunked-prefill": "enable-chunked-prefill"}
_SWITCHES = {"on": "true", "off": "false", "yes": "true", "no": "false", "true": "true", "false": "false"}


def plan(given: Mapping[str, Any], nodes: int, each: int, on_cpu: bool, emulated: bool) -> Plan:
    """What these options ask of `nodes` nodes with `each` ranks on each."""
    loads = grid.loads(given["concurrency"], given["input_len"], given["output_len"], given["requests"])
    builtin = given["model"] is None
    base = {**_defaults(loads, builtin, on_cpu), **dict(setting(text, "--set", many=False) for text in given["set"])}
    varied = [(name, values.split(",")) for name, values in (setting(text, "--vary", many=True) for text in given["vary"])]
    for name, values in varied:
        if name == "gpu-memory-utilization":  # it decides nothing where the cache's size is given
            base.pop("kv-cache-memory-bytes", None)
        if not all(values):
            raise Usage(f"--vary {name}: a value is empty")
    links = [_link(text, emulated) for text in given["simulate_link"]]
    try:
        layouts = grid.layouts(given["tp"] or default_tp(nodes, each, emulated), given["pp"], nodes, each, links)
    except ValueError as error:
        raise Usage(str(error)) from None
    if builtin and (longest := max(load.input + load.output for load in loads)) >= vllm_model.config(1)["max_position_embeddings"]:
        raise Usage(
            f"the built-in model takes {vllm_model.config(1)['max_position_embeddings'] - 1} tokens, and {longest} are asked for: say a MODEL"
        )
    return grid.plan(layouts, loads, base, varied)


def default_tp(nodes: int, each: int, emulated: bool) -> list[int]:
    """One rank, a node's ranks, and all; of emulated nodes no more than two."""
    if emulated:
        return [1, 2] if nodes * each >= 2 else [1]
    return list(dict.fromkeys((1, each, nodes * each)))


def made_for(found: Plan) -> int:
    """The TP that the built-in model is made for: every layout's is a divisor of it, so all serve the same weights."""
    return math.lcm(*(launch.server.layout.tp for launch in found.launches))


def setting(text: str, flag: str, many: bool) -> tuple[str, str]:
    """`max-num-seqs=8,64` -> its name as vLLM has it, and what stands behind it."""
    name, equals, value = text.partition("=")
    name = name.strip().removeprefix("--").replace("_", "-")
    name = _ALIASES.get(name, name)
    example = f"{flag} max-num-seqs={'8,64' if many else '64'}"
    if not equals or not value or not re.fullmatch(r"[a-z][a-z0-9-]{1,60}", name):
        raise Usage(f"{flag} {text!r}: write NAME=VALUE with an option of vllm serve, such as {example}")
    if name in OURS:
        raise Usage(f"{flag} {name}: that is decided by --tp, --pp, the nodes, or this command itself")
    values = [_SWITCHES.get(one.strip().lower(), one.strip()) for one in (value.split(",") if many else [value])]
    return name, ",".join(values)


def shape(model: str | None, tp: int, dtype: str | None) -> Shape | None:
    """The model's dimensions, as far as `ncclcheck plan` knows its kind."""
    try:
        found = config.shape(vllm_model.config(tp), BUILTIN) if model is None else config.read(Path(model))
    except (fields.Unknown, fields.Unreadable):
        return None
    return found.served(dtype) if dtype and dtype != "auto" else found


def _defaults(loads: Sequence[Load], builtin: bool, on_cpu: bool) -> dict[str, str]:
    """What a server gets beside what the user sets: little, so that vLLM's own defaults are measured."""
    needed = max(load.input + load.output for load in loads)
    settings = {}
    if on_cpu:
        settings["enforce-eager"] = "true"  # compiling takes longer than it gives
    if builtin:
        most = int(vllm_model.config(1)["max_position_embeddings"])
        settings |= {"max-model-len": str(min(most, max(LEAST_LONGEST, 2 ** math.ceil(math.log2(needed + 1)))))}
        settings |= {"kv-cache-memory-bytes": str(_CACHE)}
        settings |= {"dtype": "float32" if on_cpu else "bfloat16"}
    return settings


def _link(text: str, emulated: bool) -> str:
    if not emulated:
        raise Usage("--simulate-link makes the links of emulated nodes slow: say --emulate 2x1; a real network is left as it is")
    try:
        return str(link.parse(text))
    except ValueError as error:
        raise Usage(f"--simulate-link: {error}") from None

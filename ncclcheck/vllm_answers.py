"""A vLLM engine in this process that answers the same prompts greedily wherever it runs, a token of each in every step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS = 32  # generated for each prompt
PROMPTS = [[3 + (7 * start + 3 * index * index) % 250 for index in range(64)] for start in range(4)]  # ids that every vocabulary has
COMPUTED = sum(map(len, PROMPTS)) + len(PROMPTS) * (TOKENS - 1)  # tokens in one run; the last of an answer is never an input

Answers = list[list[int]]  # the tokens of each prompt


def prepare(on_cpu: bool) -> dict[str, str]:
    """Set what the engine needs and the user has not set. Returns what was added."""
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if on_cpu:
        wanted |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # vLLM compiles its vocabulary layer even when eager: seconds, and g++
    else:
        wanted |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}  # FlashInfer compiles its sampler when first used
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    added["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in any case: the engine's steps are announced from this process
    os.environ.update(added)
    if "OMP_NUM_THREADS" in added:
        import torch

        torch.set_num_threads(1)  # it has read the environment before; two nodes on one machine would spin against each other
    return added


def start(model: Path, tensor_parallel: int, builtin: bool, on_cpu: bool) -> Any:
    """An engine for the model in this folder over `tensor_parallel` ranks; `builtin`: the model is the one that we made."""
    from vllm import EngineArgs, LLMEngine

    arguments: dict[str, Any] = {
        "model": str(model), "tensor_parallel_size": tensor_parallel, "seed": 0, "enforce_eager": True, "skip_tokenizer_init": True,
        "enable_prefix_caching": False, "max_model_len": 256, "max_num_seqs": 8, "disable_log_stats": True,
        "async_scheduling": False,  # one step of the engine is one token
        "disable_custom_all_reduce": True,  # NCCL is what is to be proved
        "distributed_timeout_seconds": 120,
        "kv_cache_memory_bytes": (64 if builtin else 1024) * 2**20,
    }  # fmt: skip
    if builtin:
        arguments["dtype"] = "float32"  # in bf16 the order of summation changes tokens, so TP=1 and TP=N differ
        if not on_cpu:
            arguments["attention_backend"] = "TRITON_ATTN"  # takes float32
    if tensor_parallel > 1:
        arguments["distributed_executor_backend"] = "external_launcher"
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def ask(engine: Any, run: str) -> tuple[Callable[[], None], dict[str, list[int]]]:
    """Give the prompts to the engine. Returns its step, and where the tokens appear."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    names = [f"{run}-{index}" for index in range(len(PROMPTS))]
    tokens: dict[str, list[int]] = {name: [] for name in names}
    for name, prompt in zip(names, PROMPTS, strict=True):
        engine.add_request(name, {"prompt_token_ids": prompt}, greedy)

    def step() -> None:
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)

    return step, tokens


def stop(engine: Any) -> None:
    """End the engine and leave its groups."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()  # older versions leave the groups

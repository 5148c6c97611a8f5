"""A vLLM engine in this process that answers the same prompts greedily wherever it runs, and its requests token by token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ncclcheck.vllm_layout import Layout

TOKENS = 32  # generated for each prompt
PROMPTS = [[3 + (7 * start + 3 * index * index) % 250 for index in range(64)] for start in range(4)]  # ids that every vocabulary has
MIXED = [prompt[:length] for prompt, length in zip(PROMPTS, (5, 23, 64, 41), strict=True)]  # of different lengths
MIXED_TOKENS = 8
JOINS = (0, 0, 3, 7)  # how many steps the others have made when each of these is added
MOST_EMPTY = 64  # steps of an engine that bring no token (they fill its pipeline) before it is stuck

Answers = list[list[int]]  # the tokens of each prompt


def _computed(prompts: Sequence[Sequence[int]], tokens: int) -> int:
    """Tokens that are computed for these prompts with so many tokens generated for each; the last of an answer is never an input."""
    return sum(map(len, prompts)) + len(prompts) * (tokens - 1)


COMPUTED = 2 * (_computed(PROMPTS, TOKENS) + _computed(MIXED, MIXED_TOKENS))  # in all runs: each of these is made twice
SAMPLED = 2 * (len(PROMPTS) * TOKENS + len(MIXED) * MIXED_TOKENS)


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


def start(model: Path, layout: Layout, builtin: bool, on_cpu: bool, longest: int | None = None) -> Any:
    """An engine for the model in this folder over the ranks of `layout`; `builtin`: the model is the one that we made.

    `longest`: tokens of a request that it must have room for. On a GPU its cache then gets what vLLM would give it, instead of 1 GiB.
    """
    from vllm import EngineArgs, LLMEngine

    arguments: dict[str, Any] = {
        "model": str(model), "tensor_parallel_size": layout.tp, "pipeline_parallel_size": layout.pp, "seed": 0, "enforce_eager": True,
        "skip_tokenizer_init": True, "enable_prefix_caching": False, "max_model_len": longest or 256, "max_num_seqs": 8, "disable_log_stats": True,
        "async_scheduling": False,  # one step of the engine is one token
        "disable_custom_all_reduce": True,  # NCCL is what is to be proved
        "distributed_timeout_seconds": 120,
        "kv_cache_memory_bytes": (64 if builtin else 1024) * 2**20,
    }  # fmt: skip
    if builtin:
        arguments["dtype"] = "float32"  # in bf16 the order of summation changes tokens, so TP=1 and TP=N differ
        if not on_cpu:
            arguments["attention_backend"] = "TRITON_ATTN"  # takes float32
    if longest and not builtin and not on_cpu:
        del arguments["kv_cache_memory_bytes"]
    if "WORLD_SIZE" in os.environ:  # a rank of a job; a single one, too: any other executor's store would wait for the one that torchrun serves
        arguments["distributed_executor_backend"] = "external_launcher"
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


class Requests:
    """Requests to one engine. `tokens` of each are there as they arrive; `odd` names each arrival that was not one token more."""

    def __init__(self, engine: Any) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.odd: list[str] = []
        self._engine = engine

    @property
    def answers(self) -> Answers:
        """The tokens of every request, in the order in which they were added."""
        return list(self.tokens.values())

    @property
    def open(self) -> bool:
        """Whether a request still waits for tokens."""
        return bool(self._engine.has_unfinished_requests())

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        """Ask for exactly so many tokens, the likeliest each."""
        from vllm import SamplingParams

        self.tokens[name] = []
        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, greedy)

    def step(self) -> None:
        """Run the engine until tokens arrive. Raises RuntimeError where none do."""
        for _ in range(MOST_EMPTY):
            if arrived := self._engine.step():
                break
        else:
            raise RuntimeError(f"the engine made {MOST_EMPTY} steps without a token")
        for output in arrived:
            known, got = self.tokens[output.request_id], list(output.outputs[0].token_ids)
            if got[:-1] != known:
                self.odd.append(f"request {output.request_id} had {len(known)} tokens and in the next step {len(got)}")
            self.tokens[output.request_id] = got


def stop(engine: Any) -> None:
    """End the engine and leave its groups."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()  # older versions leave the groups

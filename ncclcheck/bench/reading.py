"""From the JSON of `vllm bench serve` and the server's gauges to a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ncclcheck.bench.cells import Load, Result, Spread

MOST_BYTES = 64 * 2**20


class Unreadable(ValueError):
    """There is no result in that file; one line says why."""


class _Saved(msgspec.Struct):
    """What is read of the file; times in milliseconds. Other fields are not looked at."""

    duration: float
    completed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    mean_ttft_ms: float
    median_ttft_ms: float
    p99_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float
    p99_tpot_ms: float
    mean_itl_ms: float
    median_itl_ms: float
    p99_itl_ms: float
    mean_e2el_ms: float
    median_e2el_ms: float
    p99_e2el_ms: float
    failed: int | None = None


@dataclass(frozen=True, slots=True)
class Gauges:
    """The server's own figures at one moment."""

    cache: float = 0.0  # share of the KV cache in use
    running: int = 0
    waiting: int = 0
    preempted: int = 0  # since it started


def arguments(url: str, model: str, tokenizer: str, load: Load, seed: int, folder: Path, name: str) -> list[str]:
    """What `vllm bench serve` is told. Every cell has its own `seed`, so that no prompt is in the cache from the cell before."""
    return [
        "--backend", "openai", "--base-url", url, "--model", model, "--tokenizer", tokenizer, "--dataset-name", "random",
        "--random-input-len", str(load.input), "--random-output-len", str(load.output), "--max-concurrency", str(load.concurrency),
        "--num-prompts", str(load.requests), "--num-warmups", str(min(load.concurrency, load.requests)), "--ignore-eos", "--seed", str(seed),
        "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99",
        "--save-result", "--result-dir", str(folder), "--result-filename", name,
    ]  # fmt: skip


def result(file: Path, load: Load) -> Result:
    """What one benchmark gave. Raises Unreadable, also where most requests failed: the rest would say little."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        saved = msgspec.json.decode(data, type=_Saved)
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unreadable(f"{file.name} is no result of vllm bench serve: {str(error)[:200]}") from None
    if len(data) > MOST_BYTES:
        raise Unreadable(f"{file.name} has more than {MOST_BYTES} bytes")
    if saved.completed * 2 < load.requests:
        raise Unreadable(f"{saved.completed} of {load.requests} requests were answered")
    return Result(
        ttft=Spread(saved.median_ttft_ms / 1e3, saved.p99_ttft_ms / 1e3, saved.mean_ttft_ms / 1e3),
        tpot=Spread(saved.median_tpot_ms / 1e3, saved.p99_tpot_ms / 1e3, saved.mean_tpot_ms / 1e3),
        itl=Spread(saved.median_itl_ms / 1e3, saved.p99_itl_ms / 1e3, saved.mean_itl_ms / 1e3),
        e2e=Spread(saved.median_e2el_ms / 1e3, saved.p99_e2el_ms / 1e3, saved.mean_e2el_ms / 1e3),
        duration=saved.duration,
        completed=saved.completed,
        failed=load.requests - saved.completed if saved.failed is None else saved.failed,
        input_tokens=saved.total_input_tokens,
        output_tokens=saved.total_output_tokens,
        requests_per_second=saved.request_throughput,
        tokens_per_second=saved.output_throughput,
    )


_NAMES = {
    "vllm:kv_cache_usage_perc": "cache",
    "vllm:gpu_cache_usage_perc": "cache",  # older
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preempted",
}


def gauges(text: str) -> Gauges | None:
    """What the server says at /metrics, summed over its engines (the cache: of the fullest). None where it says none of it."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name in _NAMES and "}" in rest:
            try:
                found.setdefault(_NAMES[name], []).append(float(rest.rpartition("}")[2].split()[0]))
            except (ValueError, IndexError):
                continue
    if not found:
        return None
    counts = {name: int(sum(found.get(name, []))) for name in ("running", "waiting", "preempted")}
    return Gauges(max(found.get("cache", [0.0])), **counts)


def loaded(plain: Result, before: Gauges | None, seen: Sequence[Gauges]) -> Result:
    """A result with what the server showed meanwhile."""
    if not any(one.running for one in seen):  # its figures come late where it lacks CPU: then they are none
        return plain
    return replace(
        plain,
        cache=max(one.cache for one in seen),
        running=max(one.running for one in seen),
        waiting=max(one.waiting for one in seen),
        preempted=max(one.preempted for one in seen) - (before.preempted if before else 0),
    )

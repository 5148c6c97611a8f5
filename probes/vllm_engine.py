"""Run a real vLLM engine over all ranks: are its tokens right, and did they use the network?

What it checks
    Every rank starts vLLM with tensor parallelism over the whole job (executor "external_launcher"), on a tiny model
    made on the spot or on --model. Every rank takes part; 4 prompts give the same 32 greedy tokens on every rank, in
    two runs, and on a single rank without any communication (the TP=1 reference, float32); the weights are the same
    on every rank; between nodes, at least the bytes that tensor parallelism must exchange leave through a network
    interface or an RDMA port. It measures the start, the time to the first token and the time per token.

What a failure means
    tp-not-divisible, kv-cache-or-memory-too-small, model-not-on-node, ...: vLLM's own words when it did not start.
    weights-differ: nodes hold different models; vLLM itself never notices.
    data-corruption: the same weights and wrong tokens: a link, a GPU or a library transports or computes wrongly.
    network-bypassed: ranks on several nodes talked without the network (shared memory), so nothing is proved about it.
    A rank that hangs in "vllm engine start" cannot reach its peers: see VLLM_HOST_IP and the *_SOCKET_IFNAME variables.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_engine
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ncclcheck import units, vllm_cpu, vllm_model
from ncclcheck.evidence import vllm_log
from ncclcheck.model import Fact
from ncclcheck.probe import Rank

TIMEOUT = 300.0
TIMEOUT_WITH_MODEL = 3600.0  # a large one is read from disk for a long time; --deadline bounds it too
MIN_RANKS = 1
DEFAULT = True
ORDER = 90
NEEDS = ("vllm",)
GROUP = False

TOKENS = 32  # generated for each prompt
PROMPTS = [[3 + (7 * start + 3 * index * index) % 250 for index in range(64)] for start in range(4)]  # ids that every vocabulary has
REFERENCE_SECONDS = 120  # for the whole TP=1 process
REFRESH_SECONDS = 2.5  # some drivers update their byte counters once a second
_PR_SET_PDEATHSIG = 1

Answers = list[list[int]]  # the tokens of each prompt


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds environment, note, participant, traffic, engine and fail."""
    yield Fact("environment", fields={"added": _settle(on_cpu=rank.device.index is None)})
    with tempfile.TemporaryDirectory(prefix="ncclcheck-model-", dir=os.environ.get("NCCLCHECK_DIR")) as scratch:
        asked = rank.options.get("model")
        model = _find(asked) if asked else Path(scratch)
        if model is None:
            yield _fail("model-not-on-node", f"{socket.gethostname()} has no model {asked}", remedy=f"ls {asked} on every node; copy it there")
            raise FileNotFoundError(asked)
        if not asked:
            with rank.local("write model"):
                vllm_model.write(model, rank.world_size)
        yield from _serve(rank, model, builtin=not asked)


def _settle(on_cpu: bool) -> dict[str, str]:
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


def _find(model: str) -> Path | None:
    """The folder of a model on this node: a path, or the cached snapshot of a Hugging Face name."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):  # not in the cache; not a name
        return None


def _serve(rank: Rank, model: Path, builtin: bool) -> Iterator[Fact]:
    on_cpu = rank.device.index is None
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with rank.local("import vllm", bound=120.0, opaque=True):
        import vllm
        from vllm.distributed import get_tp_group
    seconds["import_seconds"] = time.perf_counter() - start
    if on_cpu and rank.world_size > 1:
        corrected = vllm_cpu.correct()
        if rank.rank == 0:
            yield Fact("note", fields={"text": corrected})
    start = time.perf_counter()
    try:
        with rank.step("vllm engine start", bound=60.0, opaque=True):
            engine = _engine(model, rank.world_size, builtin, on_cpu)
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).splitlines()
        yield from (Fact("fail", fields=stated.fields) for stated in vllm_log.read(lines))
        raise
    seconds["engine_seconds"] = time.perf_counter() - start
    seconds["startup_seconds"] = time.time() - psutil.Process().create_time()

    group = get_tp_group()
    backend = vllm_cpu.backend(group)
    with rank.local("hash weights", opaque=True):
        weights = vllm_model.digest(model)
    mine = {"rank": rank.rank, "host": socket.gethostname(), "pid": os.getpid(), "device": str(rank.device), "tp_rank": group.rank_in_group,
            "network": vllm_cpu.network(), "weights": weights}  # fmt: skip
    yield Fact("participant", fields=mine)
    everyone = _exchange(rank, "participants", group, mine)
    problems = attendance(everyone, rank.world_size)
    if rank.rank == 0:
        yield from problems

    sent = _sent_bytes()
    first, cold = _generate(rank, engine, "first")
    second, warm = _generate(rank, engine, "second")
    seconds |= {"first_token_seconds": cold[0], "token_seconds": statistics.median(warm[1:])}
    answers: list[Answers] = _exchange(rank, "answers", group, first)
    if builtin and rank.identity.local_rank == 0 and len({one["network"] for one in everyone}) > 1:
        computed = 2 * (sum(map(len, PROMPTS)) + len(PROMPTS) * (TOKENS - 1))  # tokens; the last of an answer is never an input
        yield from _traffic(rank, sent, vllm_model.reduced_bytes(rank.world_size, computed))
    del group
    with rank.local("vllm shutdown"):
        _shut_down(engine)
        del engine
        gc.collect()

    compared = [("the first run", first, "the second", second)]
    if rank.rank == 0:
        compared += [("rank 0", first, f"rank {other}", theirs) for other, theirs in enumerate(answers[1:], 1)]
        if not builtin:
            yield Fact("note", fields={"text": "no TP=1 reference for --model: two runs, the ranks' answers and their weights were compared"})
        elif not problems:
            with rank.local("vllm TP=1 reference", bound=120.0, opaque=True):
                compared.append(("TP=1", _reference(model), f"TP={rank.world_size}", first))
    differences = [found for pair in compared if (found := difference(*pair))]
    if not problems:
        yield from differences
    yield Fact("engine", fields={
        **{name: round(value, 4) for name, value in seconds.items()}, "tensor_parallel": rank.world_size, "backend": backend,
        "vllm": vllm.__version__, "tokens_equal": not differences, "compared": [f"{left} with {right}" for left, _, right, _ in compared],
    })  # fmt: skip


def _engine(model: Path, tensor_parallel: int, builtin: bool, on_cpu: bool) -> Any:
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


def _shut_down(engine: Any) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()  # older versions leave the groups


def _exchange(rank: Rank, name: str, group: Any, mine: Any) -> list[Any]:
    """Every rank's value, by rank, over the CPU side of vLLM's own tensor-parallel group."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group.cpu_group)
    with rank.step(f"exchange {name}", group="vllm tp"):
        dist.all_gather_object(values, mine, group=group.cpu_group)
    return values


def _submit(engine: Any, run: str) -> tuple[Callable[[], None], dict[str, list[int]]]:
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


def _generate(rank: Rank, engine: Any, run: str) -> tuple[Answers, list[float]]:
    """Greedy answers to the prompts, and the seconds of each engine step; every step is announced."""
    step, tokens = _submit(engine, run)
    with rank.step("vllm generate", group="vllm tp", bound=60.0 if run == "first" else None) as announced:
        seconds = announced.repeat(step, TOKENS)
    return list(tokens.values()), seconds


def _reference(model: Path) -> Answers:
    """The answers of one rank without communication, from a process of its own (a process can hold one engine's groups).

    Raises CalledProcessError or TimeoutExpired: then this check has failed, not the cluster.
    """
    ours = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with tempfile.TemporaryDirectory(prefix="ncclcheck-reference-") as folder:
        out = Path(folder) / "answers.json"
        command = [sys.executable, "-m", "ncclcheck.probes.vllm_engine", "--reference", str(model), str(out)]
        subprocess.run(command, env=environment, check=True, timeout=REFERENCE_SECONDS)
        answers: Answers = json.loads(out.read_text(encoding="utf-8"))
    return answers


def _answer_alone(model: Path, out: Path) -> None:
    """What the reference's process does. It ends with its parent, and in any case after its time."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.alarm(REFERENCE_SECONDS)
    import torch

    engine = _engine(model, 1, builtin=True, on_cpu=not torch.cuda.is_available())
    step, tokens = _submit(engine, "reference")
    for _ in range(TOKENS):
        step()
    out.write_text(json.dumps(list(tokens.values())), encoding="utf-8")
    _shut_down(engine)


def attendance(everyone: Sequence[Mapping[str, Any]], world_size: int) -> list[Fact]:
    """What is wrong with those who took part: a rank is missing or doubled, or they loaded different weights."""
    found = []
    if any(sorted(one[place] for one in everyone) != list(range(world_size)) for place in ("rank", "tp_rank")):
        present = ", ".join(f"rank {one['rank']} on {one['host']} (pid {one['pid']})" for one in everyone)
        found.append(_fail("world-size-mismatch", f"the engine's group is not the job's {world_size} ranks: {present}"))
    holders: dict[str, list[str]] = {}
    for one in everyone:
        holders.setdefault(one["weights"], []).append(f"rank {one['rank']} ({one['host']})")
    if len(holders) > 1:
        listed = "; ".join(f"{digest[:12]} on {', '.join(ranks)}" for digest, ranks in sorted(holders.items(), key=lambda item: -len(item[1])))
        remedy = "sha256sum the model's files on every node, and copy them anew where they differ"
        found.append(_fail("weights-differ", f"the ranks loaded different weights: {listed}", remedy=remedy))
    return found


def difference(trusted: str, expected: Answers, suspect: str, actual: Answers) -> Fact | None:
    """The first token that is not the expected one, as a failure; None where all are equal."""
    for prompt, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        if wanted != got:
            pairs = enumerate(zip(wanted, got, strict=False))
            position = next((index for index, (left, right) in pairs if left != right), min(len(wanted), len(got)))
            left, right = (tokens[position] if position < len(tokens) else None for tokens in (wanted, got))
            title = f"{suspect} answers prompt {prompt} with token {right} at position {position}, {trusted} with {left}"
            return _fail("data-corruption", title, prompt=prompt, position=position, expected=left, actual=right)
    return None


def _sent_bytes() -> int:
    """Bytes sent so far by the interfaces of this network namespace, loopback left out, and by the RDMA ports."""
    total = 0
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]:
        name, _, counters = line.partition(":")
        total += 0 if name.strip() == "lo" else int(counters.split()[8])
    return total + sum(count or 0 for count in _rdma_bytes().values())


def _rdma_bytes() -> dict[str, int | None]:
    """Bytes sent by each RDMA port; None where it shows no counter."""
    ports: dict[str, int | None] = {}
    for port in Path("/sys/class/infiniband").glob("*/ports/*"):
        try:
            ports[f"{port.parts[-3]}:{port.name}"] = 4 * int((port / "counters/port_xmit_data").read_text(encoding="ascii"))
        except (OSError, ValueError):
            ports[f"{port.parts[-3]}:{port.name}"] = None
    return ports


def _uncounted() -> str:
    """Why traffic may have left this node without a counter that can be read here; "" if it cannot have."""
    if silent := [port for port, count in _rdma_bytes().items() if count is None]:
        return f"{', '.join(silent)} shows no byte counter"
    if Path("/dev/nvidia-caps-imex-channels").exists():
        return "NVLink may connect the nodes"
    if "libnccl-net" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
        return "NCCL uses a network plugin"
    return ""


def _traffic(rank: Rank, before: int, expected: int) -> Iterator[Fact]:
    """Whether this node sent what it must. An all-reduce of S bytes makes every node send at least S, by any algorithm."""
    with rank.local("read traffic counters"):
        deadline = time.monotonic() + REFRESH_SECONDS
        while (sent := _sent_bytes() - before) < expected and time.monotonic() < deadline:
            time.sleep(0.1)
    yield Fact("traffic", fields={"sent_bytes": sent, "expected_bytes": expected})
    if sent >= expected:
        return
    amounts = f"{units.bytes_text(sent)} sent, at least {units.bytes_text(expected)} expected"
    if reason := _uncounted():
        yield Fact("note", fields={"text": f"whether the engine's traffic crossed the network is not known ({reason}): {amounts}"})
    else:
        yield _fail("network-bypassed", f"the engine's traffic did not cross the network: {amounts}", sent_bytes=sent, expected_bytes=expected)


def _fail(cause: str, title: str, **proof: Any) -> Fact:
    return Fact("fail", fields={"cause": cause, "title": title, **proof})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reference"]:
        _answer_alone(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        from ncclcheck.rank import run_alone

        run_alone(__file__)

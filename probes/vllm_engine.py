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

import gc
import os
import socket
import statistics
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ncclcheck import triage, vllm_answers, vllm_cpu, vllm_model, vllm_reference, vllm_traffic
from ncclcheck.model import Fact
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone
from ncclcheck.vllm_answers import Answers

TIMEOUT = 300.0
TIMEOUT_WITH_MODEL = 3600.0  # a large one is read from disk for a long time; --deadline bounds it too
MIN_RANKS = 1
DEFAULT = True
ORDER = 90
NEEDS = ("vllm",)
GROUP = False


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds environment, note, participant, traffic, engine and fail."""
    yield Fact("environment", fields={"added": vllm_answers.prepare(on_cpu=rank.device.index is None)})
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
    seconds: dict[str, float] = {}
    engine = yield from _start(rank, model, builtin, seconds)
    import vllm.distributed

    group = vllm.distributed.get_tp_group()
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

    sent = vllm_traffic.sent_bytes()
    first, cold = _generate(rank, engine, "first")
    second, warm = _generate(rank, engine, "second")
    seconds |= {"first_token_seconds": cold[0], "token_seconds": statistics.median(warm[1:])}
    answers: list[Answers] = _exchange(rank, "answers", group, first)
    if builtin and rank.identity.local_rank == 0 and len({one["network"] for one in everyone}) > 1:
        yield from vllm_traffic.check(rank, sent, vllm_model.reduced_bytes(rank.world_size, 2 * vllm_answers.COMPUTED))
    del group
    with rank.local("vllm shutdown"):
        vllm_answers.stop(engine)
        del engine
        gc.collect()

    compared = [("the first run", first, "the second", second)]
    if rank.rank == 0:
        compared += [("rank 0", first, f"rank {other}", theirs) for other, theirs in enumerate(answers[1:], 1)]
        if not builtin:
            yield Fact("note", fields={"text": "no TP=1 reference for --model: two runs, the ranks' answers and their weights were compared"})
        elif not problems:
            with rank.local("vllm TP=1 reference", bound=120.0, opaque=True):
                compared.append(("TP=1", vllm_reference.answers(model), f"TP={rank.world_size}", first))
    differences = [found for pair in compared if (found := difference(*pair))]
    if not problems:
        yield from differences
    yield Fact("engine", fields={
        **{name: round(value, 4) for name, value in seconds.items()}, "tensor_parallel": rank.world_size, "backend": backend,
        "vllm": vllm.__version__, "tokens_equal": not differences, "compared": [f"{left} with {right}" for left, _, right, _ in compared],
    })  # fmt: skip


def _start(rank: Rank, model: Path, builtin: bool, seconds: dict[str, float]) -> Generator[Fact, None, Any]:
    """The engine; `seconds` is filled with what each part of its start took. What vLLM says where it does not start becomes failures."""
    on_cpu = rank.device.index is None
    start = time.perf_counter()
    with rank.local("import vllm", bound=120.0, opaque=True):
        import vllm.distributed  # noqa: F401  (all that takes long)
    seconds["import_seconds"] = time.perf_counter() - start
    if on_cpu and rank.world_size > 1:
        note = Fact("note", fields={"text": vllm_cpu.correct()})
        if rank.rank == 0:
            yield note
    start = time.perf_counter()
    try:
        with rank.step("vllm engine start", bound=60.0, opaque=True):
            engine = vllm_answers.start(model, rank.world_size, builtin, on_cpu)
    except Exception as error:
        yield from causes("".join(traceback.format_exception(error)).splitlines())
        raise
    seconds["engine_seconds"] = time.perf_counter() - start
    seconds["startup_seconds"] = time.time() - psutil.Process().create_time()
    return engine


def causes(lines: Sequence[str]) -> list[Fact]:
    """The causes that vLLM's own words name, as failures."""
    return [_fail(finding.cause, finding.title, remedy=finding.remedy) for finding in triage.stated_by(lines, "vLLM")]


def _exchange(rank: Rank, name: str, group: Any, mine: Any) -> list[Any]:
    """Every rank's value, by rank, over the CPU side of vLLM's own tensor-parallel group."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group.cpu_group)
    with rank.step(f"exchange {name}", group="vllm tp"):
        dist.all_gather_object(values, mine, group=group.cpu_group)
    return values


def _generate(rank: Rank, engine: Any, run: str) -> tuple[Answers, list[float]]:
    """Greedy answers to the prompts, and the seconds of each engine step; every step is announced."""
    step, tokens = vllm_answers.ask(engine, run)
    with rank.step("vllm generate", group="vllm tp", bound=60.0 if run == "first" else None) as announced:
        seconds = announced.repeat(step, vllm_answers.TOKENS)
    return list(tokens.values()), seconds


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


def _fail(cause: str, title: str, **proof: Any) -> Fact:
    return Fact("fail", fields={"cause": cause, "title": title, **proof})


if __name__ == "__main__":
    run_alone(__file__)

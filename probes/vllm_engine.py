"""Run a real vLLM engine over all ranks: are its tokens right, and did they use the network?

What it checks
    Every rank starts vLLM (executor "external_launcher") on a tiny model made on the spot or on --model: with tensor
    parallelism over the whole job, or as --tp and --pp say, stages of --tp adjacent ranks. Every rank takes part in its
    place; 4 prompts give the same 32 greedy tokens on every rank, in two runs (the engine is idle for 2 s between them)
    and on a single rank without any communication (the TP=1 reference, float32); they arrive one by one; prompts of
    different lengths that join a running batch give the tokens that each gives alone; the weights are the same on every
    rank; between nodes, at least the bytes that the layout must exchange leave through a network interface or an RDMA
    port; after the shutdown no process and no shared memory of the engine is left (ports and GPU memory that it keeps
    are named). It measures each phase of the start, the time to the first token, the time per token and, between nodes without
    GPUs (where TP spans all ranks), vLLM's own all-reduces between computations, whose sums must be right, too.

What a failure means
    tp-not-divisible, kv-cache-or-memory-too-small, model-not-on-node, ...: vLLM's own words when it did not start, with
    the phase of its start: configuration, rendezvous, groups (Gloo or NCCL), weights, kv-cache, compile.
    weights-differ: nodes hold different models; vLLM itself never notices.
    data-corruption: the same weights and wrong tokens: a link, a GPU or a library transports or computes wrongly.
    network-bypassed: ranks on several nodes talked without the network (shared memory), so nothing is proved about it.
    left-over: the engine was shut down and something of it is still there.
    A rank that hangs in "vllm engine start" cannot reach its peers: see VLLM_HOST_IP and the *_SOCKET_IFNAME variables.

Run it alone
    torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_engine
    NCCLCHECK_OPTIONS='{"pp": 2}' torchrun --nproc-per-node 2 -m ncclcheck.probes.vllm_engine
"""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import statistics
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ncclcheck import (
    vllm_answers,
    vllm_collectives,
    vllm_cpu,
    vllm_failures,
    vllm_layout,
    vllm_left,
    vllm_model,
    vllm_phases,
    vllm_reference,
    vllm_traffic,
)
from ncclcheck.divergence import ENGINE
from ncclcheck.model import Fact
from ncclcheck.probe import Rank
from ncclcheck.rank import run_alone
from ncclcheck.safe_text import word
from ncclcheck.vllm_answers import Answers
from ncclcheck.vllm_layout import Layout

TIMEOUT = 300.0
TIMEOUT_WITH_MODEL = 3600.0  # a large one is read from disk for a long time; --deadline bounds it too
MIN_RANKS = 1
DEFAULT = True
ORDER = 90
NEEDS = ("vllm",)
GROUP = False
IDLE = 2.0  # seconds without a request between the runs
FIRST = 60.0  # seconds that the first token of a kind may take (kernels are compiled)


def run(rank: Rank) -> Iterator[Fact]:
    """Facts of the kinds environment, note, participant, traffic, all-reduces, engine and fail."""
    layout = vllm_layout.choose(rank.world_size, rank.options.get("tp"), rank.options.get("pp"))
    yield Fact("environment", fields={"added": vllm_answers.prepare(on_cpu=rank.device.index is None)})
    if lost := _foreign_address(rank):
        yield lost
        raise OSError(lost.get("title"))
    with tempfile.TemporaryDirectory(prefix="ncclcheck-model-", dir=os.environ.get("NCCLCHECK_DIR")) as scratch:
        asked = rank.options.get("model")
        model = vllm_model.find(asked) if asked else Path(scratch)
        if model is None:
            remedy = f"ls {word(asked)} on every node; copy it there"
            yield vllm_failures.fail("model-not-on-node", f"{socket.gethostname()} has no model {asked}", ranks=[rank.rank], remedy=remedy)
            raise FileNotFoundError(asked)
        if not asked:
            with rank.local("write model"):
                vllm_model.write(model, layout.tp, layout.pp)
        yield from _serve(rank, model, layout, builtin=not asked)


def _foreign_address(rank: Rank) -> Fact | None:
    """The failure of a node on which vLLM is told to take another host's address: it would bind it in vain, or peers wait for it there."""
    said = os.environ.get("VLLM_HOST_IP", "")
    own = [each.address.partition("%")[0] for found in psutil.net_if_addrs().values() for each in found]
    try:
        foreign = rank.world_size > 1 and bool(said) and str(ipaddress.ip_address(said)) not in own
    except ValueError:
        foreign = False  # a name: vLLM resolves it
    if not foreign:
        return None
    there = [address for address in own if address.count(".") == 3 and not address.startswith("127.")]
    title = f"VLLM_HOST_IP={said} on {socket.gethostname()}, which is no address of that node; it has {', '.join(there[:8])}"
    remedy = (
        f"on {socket.gethostname()}: export VLLM_HOST_IP={there[0] if there else 'ADDRESS'}   # each node its own, in the network that they share"
    )
    return vllm_failures.fail("vllm-host-ip", title, ranks=[rank.rank], remedy=remedy)


def _serve(rank: Rank, model: Path, layout: Layout, builtin: bool) -> Iterator[Fact]:
    seconds: dict[str, float] = {}
    phases: dict[str, float] = {}
    free = vllm_reference.free_bytes()
    before = vllm_left.Held.now()
    engine = yield from _start(rank, model, layout, builtin, seconds, phases)
    import vllm.distributed
    from vllm.distributed.parallel_state import get_world_group

    group, stage = vllm.distributed.get_tp_group(), vllm.distributed.get_pp_group()
    carriers = {"TP": vllm_cpu.backend(group)} if layout.tp > 1 or layout.pp == 1 else {}
    carriers |= {"PP": vllm_cpu.backend(stage)} if layout.pp > 1 else {}
    whole = get_world_group().cpu_group
    with rank.local("hash weights", opaque=True):
        weights = vllm_model.digest(model)
    mine = {"rank": rank.rank, "host": socket.gethostname(), "pid": os.getpid(), "device": str(rank.device), "tp_rank": group.rank_in_group,
            "pp_rank": stage.rank_in_group, "network": vllm_cpu.network(), "weights": weights}  # fmt: skip
    yield Fact("participant", fields=mine)
    everyone = _exchange(rank, "participants", whole, mine)
    problems = vllm_failures.attendance(everyone, layout)
    if rank.rank == 0:
        yield from problems

    sent = vllm_traffic.sent_bytes()
    requests = vllm_answers.Requests(engine)
    first, cold = _together(rank, requests, "first")
    with rank.local("vllm idle"):
        time.sleep(IDLE)  # not a wait for anything: connections that do not survive it are what is looked for
    second, warm = _together(rank, requests, "second")
    alone = _mixed(rank, requests, "alone")
    joined = _mixed(rank, requests, "joining")
    seconds |= {"first_token_seconds": cold[0], "token_seconds": statistics.median(warm[1:])}
    phases["first-token"] = cold[0]
    answers: list[tuple[Answers, Answers]] = _exchange(rank, "answers", whole, (first, joined))
    networks = [one["network"] for one in everyone]
    if builtin and rank.identity.local_rank == 0 and len(set(networks)) > 1:
        work = vllm_layout.Work(*vllm_model.dimensions(layout.tp, layout.pp), vllm_answers.COMPUTED, vllm_answers.SAMPLED)
        expected = layout.sent_bytes(networks, mine["network"], work)
        yield from vllm_traffic.check(rank, sent, expected)
    if layout.tp == rank.world_size and len(set(networks)) > 1 and rank.device.index is None:
        reduces, wrongs = vllm_collectives.measure(rank, group, partial(_exchange, rank, "all-reduces", whole))
        yield from wrongs
        if rank.rank == 0:
            yield Fact("all-reduces", fields={"seconds": [(*kind, round(value, 8)) for kind, value in reduces.items()]})
    held = vllm_left.Held.now().beyond(before)
    odd = requests.odd
    del group, stage, whole, requests
    with rank.local("vllm shutdown"):
        vllm_answers.stop(engine)
        del engine
        gc.collect()
    with rank.local("look for what vllm left"):
        left, lingering = vllm_left.left(before, held), vllm_left.lingering(before, held)
    if left:
        yield vllm_failures.fail("left-over", f"the engine of rank {rank.rank} was shut down and left {', '.join(left)}", ranks=[rank.rank])
    if lingering and rank.rank == 0:
        yield Fact("note", fields={"text": f"after its engine was shut down, rank 0 kept {', '.join(lingering)} until it ended"})
    if odd:
        yield vllm_failures.fail(
            "data-corruption", f"tokens did not arrive one by one on rank {rank.rank}: {odd[0]}", ranks=[rank.rank], count=len(odd)
        )

    compared = [("the first run", first, "the second", second)]
    if builtin:  # else a batch of another size rounds otherwise
        compared.append(("each alone", alone, "joining a running batch", joined))
    if rank.rank == 0:
        for other, (theirs, theirs_joined) in enumerate(answers[1:], 1):
            compared += [("rank 0", first, f"rank {other}", theirs), ("rank 0 (joining)", joined, f"rank {other}", theirs_joined)]
        if not builtin:
            why = vllm_reference.why_none(model, free)
            yield Fact(
                "note", fields={"text": f"no TP=1 reference for --model ({why}): two runs, the ranks' answers and their weights were compared"}
            )
        elif not problems:
            with rank.local("vllm TP=1 reference", bound=120.0, opaque=True):
                compared.append(("TP=1", vllm_reference.answers(model), str(layout), first))
    differences = [found for pair in compared if (found := vllm_failures.difference(*pair))]
    if not problems:
        yield from differences
    yield Fact("engine", fields={
        **{name: round(value, 4) for name, value in seconds.items()}, "phase_seconds": {name: round(value, 4) for name, value in phases.items()},
        "tensor_parallel": layout.tp, "pipeline_parallel": layout.pp, "vllm": vllm.__version__, "streamed": not odd, "idle_seconds": IDLE,
        "backend": ", ".join(f"{carrier} ({which})" if len(carriers) > 1 else carrier for which, carrier in carriers.items()),
        "left": left, "lingering": lingering, "tokens_equal": not differences, "compared": [f"{one} with {other}" for one, _, other, _ in compared],
    })  # fmt: skip


def _start(rank: Rank, model: Path, layout: Layout, builtin: bool, seconds: dict[str, float], phases: dict[str, float]) -> Generator[Fact, None, Any]:
    """The engine; `seconds` and `phases` are filled with what its start took. What vLLM says where it does not start becomes failures."""
    on_cpu = rank.device.index is None
    phases["spawn"] = time.time() - psutil.Process().create_time()
    start = time.perf_counter()
    with rank.local("import vllm", bound=120.0, opaque=True):
        import vllm.distributed  # noqa: F401  (all that takes long)
        from vllm import EngineArgs, LLMEngine  # noqa: F401
    seconds["import_seconds"] = phases["import"] = time.perf_counter() - start
    if rank.world_size > 1:
        vllm_cpu.correct()  # vLLM calls it, too, but only in a run with an agent, and only where VLLM_PLUGINS does not forbid it
    start = time.perf_counter()
    if other := rank.options.get("tensor_parallel"):  # of a fault: this rank was told another size than the rest
        layout = Layout(int(other), layout.pp)
    try:
        with rank.step(ENGINE, bound=60.0, opaque=True, detail=str(layout)) as announced, vllm_phases.Phases(announced.phase) as heard:
            engine = vllm_answers.start(model, layout, builtin, on_cpu, None if builtin else rank.options.get("max_model_len"))
    except Exception as error:
        yield from vllm_failures.causes("".join(traceback.format_exception(error)).splitlines(), heard.now, rank.rank)
        raise
    phases |= heard.seconds
    if rank.rank == 0:
        yield from (Fact("note", fields={"text": text}) for text in vllm_cpu.corrected())
    seconds["engine_seconds"] = time.perf_counter() - start
    seconds["startup_seconds"] = time.time() - psutil.Process().create_time()
    return engine


def _exchange(rank: Rank, name: str, group: Any, mine: Any) -> list[Any]:
    """Every rank's value, by rank, over the CPU side of vLLM's own group of all ranks."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group)
    with rank.step(f"exchange {name}", group="vllm"):
        dist.all_gather_object(values, mine, group=group)
    return values


def _together(rank: Rank, requests: vllm_answers.Requests, run: str) -> tuple[Answers, list[float]]:
    """Greedy answers to all prompts at once, and the seconds of each token; every one is announced."""
    names = [f"{run}-{index}" for index in range(len(vllm_answers.PROMPTS))]
    for name, prompt in zip(names, vllm_answers.PROMPTS, strict=True):
        requests.add(name, prompt, vllm_answers.TOKENS)
    with rank.step("vllm generate", group="vllm", bound=FIRST if run == "first" else None) as announced:
        seconds = announced.repeat(requests.step, vllm_answers.TOKENS)
    return [requests.tokens[name] for name in names], seconds


def _mixed(rank: Rank, requests: vllm_answers.Requests, how: str) -> Answers:
    """Greedy answers to prompts of different lengths: one after the other, or all in one batch that they join at different times."""
    waiting = list(zip(vllm_answers.JOINS, vllm_answers.MIXED, strict=True))
    names = [f"{how}-{index}" for index in range(len(waiting))]
    steps = 0
    with rank.step(f"vllm generate {how}", group="vllm", bound=FIRST) as announced:
        while waiting or requests.open:
            if steps:
                announced.next()
            while waiting and (not requests.open if how == "alone" else waiting[0][0] <= steps):
                requests.add(names[-len(waiting)], waiting.pop(0)[1], vllm_answers.MIXED_TOKENS)
            requests.step()
            steps += 1
    return [requests.tokens[name] for name in names]


if __name__ == "__main__":
    run_alone(__file__)

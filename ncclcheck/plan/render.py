"""A plan as text for people, and as JSON for programs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from ncclcheck import secrets
from ncclcheck.plan import answers, words
from ncclcheck.plan.emit import Launch, shell
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.predict import Forecast, Load
from ncclcheck.plan.shape import Shape
from ncclcheck.units import bytes_text, seconds_text

WIDTH = 100
ROWS = 8  # layouts in the text; JSON has all
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known about one plan. Without a `launch` nothing fits, and `lacking` says what would."""

    shape: Shape
    hardware: Hardware
    load: Load
    ranked: Sequence[Forecast]
    lacking: Sequence[str] = ()
    launch: Launch | None = None
    emulated: bool = False


def text(plan: Plan) -> str:
    """What is printed."""
    blocks = [_head(plan), _layouts(plan)]
    if plan.lacking:
        blocks.append("\n".join(_fill(f"NO: {line}" if not number else line) for number, line in enumerate(plan.lacking)))
    else:
        taken = plan.ranked[0]
        blocks += [_traffic(plan.shape, taken), _commands(plan.launch)] if plan.launch else []
        for answer in answers.of(plan.shape, plan.hardware, plan.load, taken):
            blocks.append("\n".join([_fill(f"{answer.question} {answer.text}"), *(_fill(f"  {case}", "    ") for case in answer.cases)]))
        blocks.append("\n".join(_fill(line, "  ") for line in ["what this rests on", *words.assumptions(plan.shape, plan.hardware, taken)]))
        told = words.recommendation(plan.shape, plan.hardware, plan.load, plan.ranked)
        blocks.append("\n".join(_fill(("emulated on this machine; your cluster was not measured: " if plan.emulated else "") * (not n) + line)
                                for n, line in enumerate(told)))  # fmt: skip
    return secrets.mask("\n\n".join(blocks)) + "\n"


def document(plan: Plan) -> dict[str, Any]:
    """What --format json prints: times in seconds, sizes in bytes. Fields are only ever added."""
    shape, hardware = plan.shape, plan.hardware
    links = {"inside": asdict(hardware.inside), "network": asdict(hardware.network) if hardware.network else None}
    taken = plan.ranked[0] if plan.launch else None
    return {
        "schema": 1,
        "status": "fits" if taken else "does-not-fit",
        "summary": plan.lacking[0] if plan.lacking else words.recommendation(shape, hardware, plan.load, plan.ranked)[0],
        "emulated": plan.emulated,
        "model": {**asdict(shape), "parameters": shape.parameters, "active_parameters": shape.active, "kv_bytes_per_token": shape.kv_token},
        "cluster": {"nodes": hardware.nodes, "gpus_per_node": hardware.each, "gpu": asdict(hardware.gpu), "links": links},
        "load": asdict(plan.load),
        "layouts": [_row(one) for one in plan.ranked],
        "recommended": _row(taken) if taken else None,
        "reasons": list(plan.lacking) or words.recommendation(shape, hardware, plan.load, plan.ranked),
        "answers": [asdict(answer) for answer in answers.of(shape, hardware, plan.load, taken)] if taken else [],
        "assumptions": list(words.assumptions(shape, hardware, taken)) if taken else [],
        "prelude": shell.prelude(plan.launch) if plan.launch else [],
        "commands": [
            {"node_rank": server.node, "replica": server.replica, "port": server.port if server.head else None,
             "environment": shell.environment(server), "command": shell.command(server, plan.launch.engine.model)}
            for server in plan.launch.wanted
        ] if plan.launch else [],
    }  # fmt: skip


def _head(plan: Plan) -> str:
    shape, hardware, load = plan.shape, plan.hardware, plan.load
    kind = f"{shape.quantisation.method} weights, " if shape.quantisation else ""
    active = f" ({shape.active / 1e9:.1f} billion of them for each token)" if shape.experts else ""
    request = bytes_text(shape.kv_token * shape.kept(load.longest))
    cache = f"{bytes_text(shape.kv_token)} of cache for each token, {request} for a request of {load.longest}"
    size = f"{shape.parameters / 1e9:.2f} billion parameters{active}, {shape.layers} layers"
    across = f", {hardware.network} between nodes" if hardware.network and hardware.nodes > 1 else ""
    within = f", {hardware.inside.name} inside" if hardware.each > 1 else ""
    return "\n".join([
        _fill(f"model    {shape.name}: {shape.architecture}, {size}, {kind}{shape.dtype}, {bytes_text(shape.stored or shape.loaded)}; {cache}"),
        _fill(f"cluster  {hardware.nodes} node{'s' * (hardware.nodes > 1)} x {hardware.each} {hardware.gpu.name}{within}{across}"),
        _fill(f"load     {load.requests} requests at once, {load.prompt} tokens in, {load.answer} out"),
    ])  # fmt: skip


def _layouts(plan: Plan) -> str:
    rows = []
    for one in plan.ranked[:ROWS]:
        memory, fits = one.memory, one.fits
        sent = one.token.sent
        times = [seconds_text(one.token.seconds), seconds_text(sent) if sent else "-", seconds_text(one.first.seconds)]
        tail = [*times, f"{one.throughput:.0f}", one.token.bound.replace("memory bandwidth", "memory")] if fits else ["does not fit", "", "", "", ""]
        room = f"{memory.tokens / 1000:.0f} k" if memory.room > 0 else f"-{-memory.room / GIB:.1f} GiB"
        sizes = [f"{nbytes / GIB:.1f}" for nbytes in (memory.weights, memory.used - memory.weights)]
        rows.append([f"{one.layout.tp} x {one.layout.pp} x {one.layout.replicas}", *sizes, room, *tail])
    titles = ("TP x PP x DP", "weights\nGiB/GPU", "other\nGiB/GPU", "cache\ntokens", "TPOT", "of it\nsent", "TTFT", "tokens/s", "bound by")
    left = f"\n({len(plan.ranked) - ROWS} more with --format json)" if len(plan.ranked) > ROWS else ""
    return "layouts, the best for this load first\n" + tabulate(rows, titles, tablefmt="simple", disable_numparse=True) + left


def _traffic(shape: Shape, taken: Forecast) -> str:
    sent, batch = taken.traffic, max(1, math.ceil(taken.requests / taken.layout.pp))
    if taken.layout.gpus == 1:
        return "a step sends nothing: each copy of the model is on one GPU"
    parts = []
    if sent.all_reduces:
        each = f"{sent.per_layer} in each of {shape.layers} layers, 1 for the embedding"
        parts.append(f"{sent.all_reduces} all-reduces ({each}) of {bytes_text(sent.all_reduce_bytes)}")
        parts.append(f"1 gather of {bytes_text(sent.gather_bytes)} (logits)")
    if hidden := sent.gathers - 1 if sent.gathers else 0:  # after each send the slices are put together again
        parts.append(f"{hidden} gathers of {bytes_text(sent.all_reduce_bytes)} (between stages)")
    if sent.sends:
        parts.append(f"{sent.sends} sends between stages of {bytes_text(sent.send_bytes)}")
    total = sent.all_reduces * sent.all_reduce_bytes + sent.sends * sent.send_bytes + sent.gather_bytes + hidden * sent.all_reduce_bytes
    return _fill(f"a step ({batch} token{'s' * (batch > 1)}, one for each request) sends {', '.join(filter(None, parts))}: {bytes_text(total)}")


def _commands(launch: Launch | None) -> str:
    if launch is None:
        return ""
    lines = []
    for server in launch.wanted[:4]:
        lines += [f"on node {server.node}:", *(f"    {line}" for line in [*shell.environment(server), shell.command(server, launch.engine.model)])]
    more = f"\n({len(launch.wanted) - 4} more: --emit shell)" if len(launch.wanted) > 4 else ""
    if launch.spread:
        lines = ["on every node:", *(f"    {line}" for line in shell.prelude(launch)), *lines]
    if launch.layout.replicas > 1:
        more += f"\nEach of the {launch.layout.replicas} replicas answers by itself: a load balancer before them has to share the requests out."
    return "\n".join(lines) + more + "\n(as files: --emit shell, systemd, slurm or lws)"


def _row(one: Forecast) -> dict[str, Any]:
    time = {"seconds": one.token.seconds, "error": one.token.error, "memory": one.token.memory, "compute": one.token.compute,
            "software": one.token.overhead, "communication": one.token.communication.seconds, "link_latency": one.token.communication.latency,
            "link_bandwidth": one.token.communication.transfer, "waiting": one.token.waiting, "bound": one.token.bound}  # fmt: skip
    return {
        "tp": one.layout.tp, "pp": one.layout.pp, "replicas": one.layout.replicas, "nodes_per_replica": one.layout.nodes, "fits": one.fits,
        "memory": asdict(one.memory), "requests_at_once": one.requests, "traffic": asdict(one.traffic), "tpot": time,
        "ttft": {"seconds": one.first.seconds, "error": one.first.error, "communication": one.first.communication.seconds,
                 "waiting": one.first.waiting, "bound": one.first.bound},
        "throughput": one.throughput, "error": one.error,
    }  # fmt: skip


def _fill(line: str, indent: str = "") -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

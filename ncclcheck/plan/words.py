"""The recommendation in words, why nothing else, and what it rests on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ncclcheck.plan import choose
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.layout import Layout, layout
from ncclcheck.plan.predict import COMPUTES, PROMPT_ERROR, READS, STEP_ERROR, Forecast, Load, forecast
from ncclcheck.plan.shape import Shape
from ncclcheck.units import seconds_text


def name(of: Layout, nodes: int) -> str:
    """`TP=8 inside a node and PP=2 across 2 nodes, 2 replicas`."""
    inside = " inside a node" if nodes > 1 else ""
    parts = [f"TP={of.tp}" + (f" across {of.slices.nodes} nodes" if of.slices.nodes > 1 else inside)] if of.tp > 1 else []
    parts += [f"PP={of.pp}" + (f" across {of.nodes} nodes" if of.nodes > 1 else inside)] if of.pp > 1 else []
    text = " and ".join(parts) or "one GPU for each copy of the model (TP=1)"
    return text + (f", {of.replicas} replicas" if of.replicas > 1 else "")


def recommendation(shape: Shape, hardware: Hardware, load: Load, ranked: Sequence[Forecast]) -> list[str]:
    """What to take and why not something else: sentences. The first of `ranked` is what is recommended."""
    taken = ranked[0]
    time = taken.token
    prompt = taken.first.error / taken.first.seconds
    said = [
        f"Take {name(taken.layout, hardware.nodes)}: {seconds_text(time.seconds)} for each token (± {time.error / time.seconds:.0%}), "
        f"{seconds_text(taken.first.seconds)} to the first (± {prompt:.0%}), {taken.throughput:.0f} tokens/s in all, "
        f"bound by {time.bound}."
    ]
    said += filter(None, (_wide(shape, hardware, load, taken), _narrow(shape, hardware, load, taken), _near(ranked)))
    if taken.waiting > 1:
        said.append(f"Of {load.requests} requests {taken.requests * taken.layout.replicas} are served at once; the others wait.")
    return said


def _wide(shape: Shape, hardware: Hardware, load: Load, taken: Forecast) -> str:
    """What TP over all GPUs, or over twice as many, would add."""
    for tp in (hardware.gpus, 2 * taken.layout.tp):
        other = layout(tp, 1, hardware.nodes, hardware.each) if taken.layout.tp < tp <= hardware.gpus and not shape.refuses(tp) else None
        if other:
            there = forecast(shape, other, hardware, load)
            added = there.token.sent - taken.token.sent
            change = there.token.seconds - taken.token.seconds
            where = f"across {hardware.network}" if other.slices.nodes > 1 else f"over {hardware.inside.name}"
            outcome = f"{seconds_text(abs(change))} {'slower' if change > 0 else 'quicker'} in all"
            return f"TP={tp} {where} would add {seconds_text(max(added, 0.0))} of communication to every token: {outcome}."
    return ""


def _narrow(shape: Shape, hardware: Hardware, load: Load, taken: Forecast) -> str:
    """What the smallest layout that fits would be like."""
    if taken.layout.gpus == 1:
        return ""
    fitting = [one for one in choose.ranked(shape, hardware, load) if one.fits and one.layout.gpus < taken.layout.gpus]
    if not fitting:
        return f"Fewer than {taken.layout.gpus} GPUs cannot hold a copy."
    least = min(fitting, key=lambda one: (one.layout.gpus, one.request_seconds))
    many = f"{least.layout.gpus} GPUs would" if least.layout.gpus > 1 else "One GPU would"
    return (
        f"{many} hold a copy ({least.layout}): {seconds_text(least.token.seconds)} for each token, {least.throughput:.0f} tokens/s in all, "
        f"bound by {least.token.bound}."
    )


def _near(ranked: Sequence[Forecast]) -> str:
    """Layouts that the prediction cannot tell from the best: what they compute is wrong by the same factor, what they send is not."""
    taken = ranked[0]
    near = [one for one in ranked[1:] if one.fits and one.request_seconds - taken.request_seconds < _doubt(taken) + _doubt(one)]
    return f"Too near to tell apart: {', '.join(str(one.layout) for one in near[:3])}." if near else ""


def _doubt(one: Forecast) -> float:
    """Seconds by which a request's communication may be misjudged."""
    own = one.token.error - STEP_ERROR * (one.token.seconds - one.token.sent)
    return max(0.0, own) * (one.load.answer - 1) * one.waiting + choose.ALIKE / 2 * one.request_seconds


def assumptions(shape: Shape, hardware: Hardware, taken: Forecast) -> Iterator[str]:
    """What was measured, what was assumed, and what each makes the result wrong by."""
    gpu = hardware.gpu
    yield f"GPU {gpu.name}: {gpu.source}"
    used = [("inside a node", hardware.inside)] if hardware.each > 1 else []
    used += [("between nodes", hardware.network.link)] if hardware.network and hardware.nodes > 1 else []
    for where, link in used:
        kind = "measured" if link.measured else "assumed, not measured"
        yield f"{where}: {link.name}, {kind}, ± {link.error:.0%}: {link.source}"
    for curve in hardware.curves:
        yield f"measured all-reduces of {curve.group}, ± {hardware.error(curve.group):.0%}: used as they are where a layout has such a group"
    if hardware.curves and not gpu.is_cpu:
        yield "torch adds 4 to 5 µs to each small all-reduce that a probe measures; vLLM calls NCCL or its own kernel, which is that much quicker"
    if gpu.is_cpu and hardware.curves and not any(curve.inside for curve in hardware.curves):
        yield "ranks without GPUs: between computations a collective takes longer than in a row; a run with vllm_engine in it says by how much"
    where = "their files on this disk" if shape.stored else "the dimensions in config.json (there are no weights beside it)"
    yield f"bytes of weights: from {where}"
    yield f"time of a token, but for what it sends: kernels reach {READS:.0%} of memory bandwidth, ± {STEP_ERROR:.0%} (not measured with this model)"
    yield f"time of a prompt, but for what it sends: {COMPUTES:.0%} of the FLOP/s, ± {PROMPT_ERROR:.0%}; on an idle replica"
    yield "memory besides weights and cache: an estimate; vLLM's log says what it found"
    if shape.experts:
        yield "experts are sliced like other layers (no expert parallelism), and chosen evenly"

"""Answers with numbers to what is asked before hardware is bought or a format chosen: for this model, this cluster and this load. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ncclcheck.expect import gpus, links
from ncclcheck.plan import choose
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.layout import layout
from ncclcheck.plan.memory import UTILISATION
from ncclcheck.plan.predict import Forecast, Load, forecast
from ncclcheck.plan.shape import Shape
from ncclcheck.units import bytes_text, seconds_text

WORTH = 0.15  # a gain below this is less than the prediction can tell
HALF = "FP16/BF16"
OTHERS = ("A100-80GB", "L40S", "H100", "H200")
CONSUMER = ("RTX-4090", "RTX-5090")
CONSUMER_CARDS = 8  # in one node


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, its answer in a sentence or two, a line for each case, and the figures in it: seconds, and tokens per second."""

    question: str
    text: str
    cases: Sequence[str] = ()
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def of(shape: Shape, hardware: Hardware, load: Load, taken: Forecast) -> list[Answer]:
    """The format of the weights, which GPU pays, where consumer cards end, what NVLink changes. Nothing where there are no GPUs."""
    if hardware.gpu.is_cpu:
        return []
    return [_precision(shape, hardware, load), _pays(shape, hardware, load), _consumer(shape, hardware, load), _nvlink(shape, hardware, load, taken)]


def _precision(shape: Shape, hardware: Hardware, load: Load) -> Answer:
    found = {kind: choose.best(other, hardware, load) for kind, other in choose.variants(shape, hardware.gpu)}
    if shape.quantisation:  # what is there comes first, as it is: its bytes are known
        here = f"{shape.quantisation.method} (as it is)"
        found = {here: choose.best(shape, hardware, load), **{kind: one for kind, one in found.items() if kind != shape.quantisation.method}}
    cases = [
        f"{kind}: {_told(one)}, {bytes_text(one.memory.weights)} of weights on a GPU" if one else f"{kind}: does not fit"
        for kind, one in found.items()
    ]
    name = hardware.gpu.name
    advice = _stored(shape.quantisation.method, found) if shape.quantisation else _trained(found)
    without = "" if hardware.gpu.fp8 else f" The {name} has no tensor cores for FP8: it saves memory, but prompts become no quicker."
    without += "" if hardware.gpu.int8 else f" vLLM cannot compute in INT8 on the {name}."
    figures = {kind: _figures(one) for kind, one in found.items() if one}
    return Answer("FP16/BF16, FP8, INT8 or INT4 weights?", f"{advice}.{without}", cases, figures)


def _stored(method: str, found: Mapping[str, Forecast | None]) -> str:
    """What is said of weights that are quantised already, the first of `found`: other formats give no accuracy back."""
    first, *others = found
    if not (reference := found[first]):
        return f"the weights are {method} already, which does not fit here"
    changes = [f"{kind} {one.throughput / reference.throughput - 1:+.0%}" for kind in others if (one := found[kind])]
    compared = f"; against it in throughput: {', '.join(changes)}" if changes else ""
    return f"the weights are {method} already, and widening them brings back no accuracy that this cost{compared}"


def _trained(found: Mapping[str, Forecast | None]) -> str:
    """What is said of weights as they were trained."""
    half = found[HALF]
    eight = max(("FP8", "INT8"), key=lambda kind: one.throughput if (one := found.get(kind)) else 0.0)
    gains = {kind: one.throughput / half.throughput - 1 for kind, one in found.items() if one and half and kind != HALF}
    if not half:
        fitting = [kind for kind, one in found.items() if one]
        advice = f"{HALF} does not fit here" + (f"; {fitting[0]} does, and is nearest to it" if fitting else ", and nothing else does")
    elif gains.get(eight, 0.0) < WORTH:
        advice = f"stay with {HALF}: 8 bits would gain {gains.get(eight, 0.0):.0%}, less than can be told, and cost accuracy that must be checked"
    else:
        advice = f"{eight} gains {gains[eight]:.0%} in throughput over {HALF}, in which models are trained: check its accuracy on your own prompts"
    four = f"; INT4 would gain {gains['INT4']:.0%}, at a greater loss of accuracy" if gains.get("INT4", 0.0) >= WORTH else ""
    return advice + four


def _pays(shape: Shape, hardware: Hardware, load: Load) -> Answer:
    question = "When does an H100 pay?"
    tried = {kind: _elsewhere(shape, hardware, kind, load) for kind in dict.fromkeys((hardware.gpu.name, *OTHERS))}
    cases = [f"{kind}: {_told(one)}" if one else f"{kind}: does not fit" for kind, one in tried.items()]
    figures = {kind: _figures(one) for kind, one in tried.items() if one}
    if not (reference := tried["H100"]):
        return Answer(question, f"it does not fit on {hardware.gpus} of them.", cases, figures)
    ratios = [f"{reference.throughput / one.throughput:.1f} times that of {kind}" for kind, one in tried.items() if one and kind != "H100"]
    text = (
        f"as long as its price an hour is below {', '.join(ratios)}, with as many in as many nodes."
        if ratios
        else "nothing else that was tried fits."
    )
    return Answer(question, text, cases, figures)


def _consumer(shape: Shape, hardware: Hardware, load: Load) -> Answer:
    cases, figures = [], {}
    node = replace(hardware, nodes=1, each=CONSUMER_CARDS)
    for kind in CONSUMER:
        if not choose.starts(shape, gpus.find(kind)):
            cases.append(f"{CONSUMER_CARDS} x {kind}: vLLM cannot compute in INT8 on it")
        elif found := _elsewhere(shape, node, kind, load, always=True):
            figures[kind] = _figures(found)
            token, prompt = (time.communication.seconds / time.seconds for time in (found.token, found.first))
            cases.append(f"{CONSUMER_CARDS} x {kind}: {_told(found)}; communication is {token:.0%} of a token, {prompt:.0%} of a prompt")
        else:
            usable = CONSUMER_CARDS * gpus.find(kind).memory * UTILISATION
            cases.append(
                f"{CONSUMER_CARDS} x {kind}: does not fit ({bytes_text(shape.stored or shape.loaded)} of weights, {bytes_text(usable)} in all)"
            )
    text = f"they have neither NVLink nor peer-to-peer: what they exchange goes through the host's memory. In one node of {CONSUMER_CARDS}:"
    return Answer("Where do consumer cards end?", text, cases, figures)


def _nvlink(shape: Shape, hardware: Hardware, load: Load, taken: Forecast) -> Answer:
    question = "What does NVLink change?"
    tp = next((tp for tp in shape.slices(hardware.each) if tp > 1), 0)
    chosen = taken.layout if taken.layout.tp > 1 else layout(tp, 1, hardware.nodes, hardware.each) if tp else None
    if chosen is None or chosen.slices.each == 1:
        return Answer(question, "nothing: no layout here joins two GPUs of a node in one layer.")
    found = {kind: forecast(shape, chosen, other, load) for kind, other in _with_and_without(hardware)}
    cases, figures = [], {}
    for kind, one in found.items():
        token, first = one.token.communication.seconds, one.first.communication.seconds
        figures[kind] = {**_figures(one), "token_communication": token, "first_communication": first}
        parts = f"{seconds_text(one.token.seconds)} a token ({seconds_text(token)} communication)"
        cases.append(f"{kind}: {parts}, {seconds_text(one.first.seconds)} to the first ({seconds_text(first)}), {one.throughput:.0f} tokens/s")
    gain = found[next(iter(found))].throughput / found[list(found)[-1]].throughput - 1
    note = "" if taken.layout.tp > 1 else "; what is recommended does without"
    return Answer(question, f"{gain:.0%} more throughput for {chosen}{note}.", cases, figures)


def _with_and_without(hardware: Hardware) -> Iterator[tuple[str, Hardware]]:
    """The cluster with NVLink and with PCIe: what it has as it is, the other as such a link usually is."""
    here = hardware.inside.name
    nvlink = "nvlink4" if not here.startswith("nvlink") else here
    pcie = here if here.startswith("pcie") else "pcie5" if hardware.gpu.name.startswith(("H", "B")) else "pcie4"
    for kind in (nvlink, pcie):
        yield kind, hardware if kind == here else _relinked(hardware, hardware.gpu, kind)


def _elsewhere(shape: Shape, hardware: Hardware, kind: str, load: Load, always: bool = False) -> Forecast | None:
    """The best layout on as many GPUs of another kind, joined as they usually are."""
    gpu = gpus.find(kind)
    other = hardware if kind == hardware.gpu.name and not always else _relinked(hardware, gpu, gpu.inside)
    return choose.best(shape.served(choose.dtype(shape, "auto", gpu)), other, load)


def _relinked(hardware: Hardware, gpu: gpus.Gpu, kind: str) -> Hardware:
    """Other GPUs or another link within the nodes: of what was measured only the network's part holds."""
    return replace(hardware, gpu=gpu, inside=links.INSIDE[kind], curves=[curve for curve in hardware.curves if curve.group.each == 1])


def _told(one: Forecast) -> str:
    return f"{one.layout}, {seconds_text(one.token.seconds)} a token, {seconds_text(one.first.seconds)} to the first, {one.throughput:.0f} tokens/s"


def _figures(one: Forecast) -> dict[str, float]:
    return {"token": one.token.seconds, "first": one.first.seconds, "throughput": one.throughput}

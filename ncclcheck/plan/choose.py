"""Puts the layouts in order, and says what would fit where none does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ncclcheck.expect.gpus import Gpu
from ncclcheck.plan.hardware import Hardware
from ncclcheck.plan.layout import layouts
from ncclcheck.plan.memory import UTILISATION
from ncclcheck.plan.predict import Forecast, Load, forecast
from ncclcheck.plan.shape import Quantisation, Shape
from ncclcheck.printing import Usage

ALIKE = 0.03  # of two layouts whose requests differ by less, the simpler is taken
MOST_NODES = 64
FORMATS = {
    "FP16/BF16": None,
    "FP8": Quantisation("FP8", 8, "fp8"),
    "INT8": Quantisation("INT8", 8, "int8"),
    "INT4": Quantisation("INT4", 4.125, "half", 128),
}


def ranked(shape: Shape, hardware: Hardware, load: Load, tp: int | None = None, pp: int | None = None) -> list[Forecast]:
    """Every layout, those that fit first, the quickest for a request under this load before all others."""
    found = [forecast(shape, each, hardware, load) for each in layouts(shape, hardware.nodes, hardware.each, tp, pp)]
    found.sort(key=lambda one: (not one.fits, one.request_seconds if one.fits else -one.memory.room))
    if found and found[0].fits:
        alike = [one for one in found if one.fits and one.request_seconds <= found[0].request_seconds * (1 + ALIKE)]
        simplest = min(alike, key=lambda one: (one.layout.gpus, one.layout.pp, one.request_seconds))
        found.remove(simplest)
        found.insert(0, simplest)
    return found


def best(shape: Shape, hardware: Hardware, load: Load) -> Forecast | None:
    """The layout to take; None where none fits."""
    found = ranked(shape, hardware, load)
    return found[0] if found and found[0].fits else None


def variants(shape: Shape, gpu: Gpu) -> Iterator[tuple[str, Shape]]:
    """The same model with its linear weights in each format that vLLM can start on this GPU; half precision where it is float32 now."""
    if shape.dtype == "float32" and not gpu.is_cpu:
        shape = shape.served(dtype(shape, "auto", gpu))
    for name, kind in FORMATS.items():
        if starts(other := replace(shape, quantisation=kind, stored=0), gpu):
            yield name, other


def starts(shape: Shape, gpu: Gpu) -> bool:
    """Whether vLLM has kernels for its weights on this GPU: it computes in INT8 only where there are tensor cores for it."""
    return not shape.quantisation or shape.quantisation.computes != "int8" or bool(gpu.int8) or gpu.is_cpu


def dtype(shape: Shape, asked: str, gpu: Gpu) -> str:
    """The dtype in which vLLM serves it: a float32 model in half precision unless it is told otherwise, and no bfloat16 where a GPU has none.

    Raises Usage for one that the GPU lacks."""
    if asked == "bfloat16" and not gpu.bf16:
        raise Usage(f"--dtype bfloat16: the {gpu.name} has none, and vLLM does not start with it there; take float16")
    if asked != "auto":
        return asked
    if gpu.is_cpu:
        return "bfloat16" if shape.dtype == "float32" else shape.dtype
    return shape.dtype if shape.dtype == "float16" else "bfloat16" if gpu.bf16 else "float16"


def lacking(shape: Shape, hardware: Hardware, load: Load, found: Sequence[Forecast]) -> list[str]:
    """Why nothing fits, by how much, and what would."""
    nearest = max(found, key=lambda one: (one.memory.room, one.memory.requests))
    usable, memory = hardware.gpu.memory * UTILISATION, nearest.memory
    gib = 2**30
    needs = f"{memory.weights / gib:.1f} GiB of weights and {(memory.used - memory.weights) / gib:.1f} GiB besides on each GPU"
    if memory.room <= 0:
        why = f"{needs}, {-memory.room / gib:.1f} GiB more than the {usable / gib:.1f} GiB that may be used"
    else:
        short = f"{load.longest - memory.tokens:.0f} too few for one request of {load.longest}"
        why = f"{needs}, which leaves {memory.room / gib:.1f} GiB for the cache: {memory.tokens:.0f} tokens, {short}"
    lines = [f"{shape.name} does not fit: even with {nearest.layout} it needs {why}"]
    remedies = []
    if memory.room > 0 and memory.tokens >= 1:
        remedies.append(f"--max-model-len {int(memory.tokens)}")
    if more := _nodes(shape, hardware, load):
        remedies.append(f"{more} nodes like these ({more * hardware.each} x {hardware.gpu.name})")
    if not shape.quantisation:
        remedies += [f"the weights in {name}" for name, other in variants(shape, hardware.gpu) if other.quantisation and best(other, hardware, load)][
            :2
        ]
    lines.append(f"what would fit: {', or '.join(remedies)}" if remedies else "nothing that was tried would fit")
    return lines


def _nodes(shape: Shape, hardware: Hardware, load: Load) -> int | None:
    """How many such nodes it takes, up to 64; None if they do not suffice, or nothing is known of a network between them."""
    if hardware.network is None:
        from ncclcheck.expect import links

        hardware = replace(hardware, network=links.network("100G"))
    nodes = hardware.nodes + 1
    while nodes <= MOST_NODES:
        if best(shape, replace(hardware, nodes=nodes), load):
            return nodes
        nodes += 1
    return None

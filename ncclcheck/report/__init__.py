"""Print a Report in a format: a format is a module in this folder with `render(report) -> str`, and adds no fact of its own."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from ncclcheck import secrets
from ncclcheck.model import ProbeResult, Report


def formats() -> list[str]:
    """The names that `--format` takes, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def render(report: Report, format: str) -> str:
    """The report in this format, ending in a newline. Raises ValueError for an unknown format."""
    if format not in formats():
        raise ValueError(f"{format!r} is not a format; choose from {', '.join(formats())}")
    text: str = importlib.import_module(f"{__name__}.{format}").render(report)
    return text


def masked(report: Report) -> Report:
    """The same report with every secret in its texts masked: errors and logs quote what users wrote into them."""
    masked: Report = _masked(report)
    return masked


def _masked(value: Any) -> Any:
    """In small steps: while a thread masks what thousands of ranks measured, others go on."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{part.name: _masked(getattr(value, part.name)) for part in dataclasses.fields(value)})
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value if isinstance(value, Enum) else secrets.mask_all(value)


def slowest(samples: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Every rank timed the same operation: per (name, dtype, ranks, nbytes), the sample of the rank with the largest median,
    and all the samples it was chosen from. A collective is as fast as its slowest rank. Smallest size first within an operation.
    """
    same: dict[tuple[str, str, int, int], list[Mapping[str, Any]]] = {}
    for sample in samples:
        same.setdefault((sample["name"], sample["dtype"], sample["ranks"], sample["nbytes"]), []).append(sample)
    order = {name: index for index, name in enumerate(dict.fromkeys(key[0] for key in same))}  # operations as they were run
    return [(max(same[key], key=lambda sample: sample["latency_median"] or 0.0), same[key]) for key in sorted(same, key=lambda k: (order[k[0]], *k))]


def engines(probes: Iterable[ProbeResult]) -> list[dict[str, Any]]:
    """Every rank of an engine reports it: per layout, the largest of each `..._seconds`, also of each phase of its start, what carries its
    groups, and `tokens_equal` only if no rank saw a difference (None: nothing was compared).
    """
    same: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for fact in (fact for probe in probes for fact in probe.facts if fact.kind == "engine"):
        same.setdefault((fact.get("tensor_parallel"), fact.get("pipeline_parallel", 1)), []).append(fact.fields)
    merged: list[dict[str, Any]] = []
    for (tensor_parallel, pipeline_parallel), facts in same.items():
        times = {name: [f[name] for f in facts if f.get(name) is not None] for name in ("startup_seconds", "first_token_seconds", "token_seconds")}
        said = [f["tokens_equal"] for f in facts if f.get("tokens_equal") is not None and f.get("compared", True)]
        slowest_times = {name: max(values, default=None) for name, values in times.items()}
        layout = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
        carriers = ", ".join(dict.fromkeys(str(f["backend"]) for f in facts if f.get("backend")))
        merged.append({**layout, "backend": carriers, **slowest_times, "phase_seconds": _phases(facts), "tokens_equal": all(said) if said else None})
    return merged


def _phases(facts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of each phase that any rank went through, the longest time; in the order of the rank that knows most of them."""
    longest: dict[str, float] = {}
    known = sorted((fields.get("phase_seconds", {}) for fields in facts), key=len, reverse=True)
    for name, seconds in (item for phases in known for item in phases.items()):
        longest[name] = max(seconds, longest.get(name, 0.0))
    return longest

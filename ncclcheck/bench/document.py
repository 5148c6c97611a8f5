"""A measurement as one JSON document: times in seconds, rates per second, shares from 0 to 1. Fields are only ever added."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ncclcheck import __version__, secrets
from ncclcheck.bench import effects, words
from ncclcheck.bench.cells import Cell
from ncclcheck.bench.effects import Effect
from ncclcheck.bench.found import Found


def build(found: Found) -> dict[str, Any]:
    """Everything that is known."""
    cells = []
    for row in found.rows:
        answer = {"sent": asdict(found.sent(row.cell)), "bound": asdict(found.bound(row.cell))} if row.result else {"sent": None, "bound": None}
        cells.append({**_cell(row.cell), "result": asdict(row.result) if row.result else None, "why": row.why, "kept": row.kept, **answer})
    every = found.effects()
    best = effects.winner(every)
    document: dict[str, Any] = {
        "schema": 1,
        "status": found.status,
        "summary": words.summary(found),
        "seconds": round(found.seconds, 3),
        "emulated": found.emulated,
        "insecure": found.insecure,
        "ncclcheck": __version__,
        "where": dict(found.where),
        "reference": _cell(found.plan.reference),
        "cells": cells,
        "effects": [_effect(effect) for effect in every],
        "most": _effect(best) if best else None,
        "links": [
            {"layout": asdict(layout), "all_reduce_seconds": {str(size): value for size, value in sorted(curve.points.items())}}
            for layout, curve in found.curves.items()
        ],
        "advice": list(words.advice(found)),
        "bottleneck": list(words.bottleneck(found)),
        "notes": list(words.notes(found)),
    }
    masked: dict[str, Any] = secrets.mask_all(document)
    return masked


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "layout": asdict(cell.server.layout),
        "settings": dict(cell.server.settings),
        "concurrency": cell.load.concurrency,
        "input": cell.load.input,
        "output": cell.load.output,
        "requests": cell.load.requests,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "what": effect.name,
        "from": effect.was,
        "to": effect.now,
        "factor": round(effect.factor, 4),
        "workload": effect.name in effects.WORKLOAD,
        "cell": _cell(effect.cell),
    }

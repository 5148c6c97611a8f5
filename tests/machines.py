"""Machines with GPUs, played back from a recording, and what the preflight says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ncclcheck.collect import devices
from ncclcheck.collect.nvml import Nvml
from ncclcheck.model import Fact
from ncclcheck.survey import Job, Node

# Recordings of machines on which all is well: `python -m ncclcheck.collect.nvml --record > tests/fixtures/nvml-MACHINE.json`.
HEALTHY = sorted((Path(__file__).parent / "fixtures").glob("nvml-*.json"))
PAIR = Path(__file__).parent / "fixtures" / "nvml-2xh200.json"
JOB = Job(nnodes=1, nproc_per_node=2, master="10.0.0.1")


def recording(**changed: Any) -> dict[str, Any]:
    """Two healthy H200s. `changed`: answers by question and place, with _ for the blanks before numbers: `mig_mode_0=[1, 1]`.

    An answer may be {"refused": why}.
    """
    found: dict[str, Any] = json.loads(PAIR.read_text())
    for name, answer in changed.items():
        head = name.rstrip("0123456789_")
        key = " ".join((head, *name[len(head) :].strip("_").split("_"))).strip()
        assert key in found["answers"], f"{key} is not recorded"
        found["answers"][key] = answer if isinstance(answer, dict) and "refused" in answer else {"value": answer}
    return found


def section(recorded: Mapping[str, Any], setting: str | None = None) -> dict[str, Any]:
    """What `devices` would have read of that machine."""
    with Nvml.played(recorded) as nvml:
        return {"setting": setting, "nvidia": True, **devices.read(nvml, setting)}


def node(**sections: Mapping[str, Any]) -> Node:
    """A node of which that was read."""
    return Node(0, "gpu-07", "10.0.0.1", sections)


def said(judge: Callable[[Node, Job], Iterable[Fact]], there: Node, job: Job = JOB) -> list[Fact]:
    """What a judge says, as plain as it travels."""
    facts = list(judge(there, job))
    json.dumps([dict(fact.fields) for fact in facts])
    return facts


def faults(facts: Iterable[Fact]) -> list[tuple[str, str]]:
    """(kind, cause) of what is no mere note."""
    return [(fact.kind, str(fact.get("cause", fact.get("title")))) for fact in facts if fact.kind != "note"]


def titles(facts: Iterable[Fact]) -> list[str]:
    """Everything that is said, in words."""
    return [str(fact.get("title")) for fact in facts]

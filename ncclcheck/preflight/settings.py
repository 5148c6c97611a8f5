"""Judges the environment and NCCL's files of a node: what is left over from debugging, misspelt, or set in vain. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ncclcheck.model import Fact
from ncclcheck.preflight import harmful
from ncclcheck.preflight.nccl_names import meant
from ncclcheck.safe_text import word
from ncclcheck.survey import Job, Node, degrades, note, stop, unread

_ENVIRONMENT = "environment"
_QUOTED = ("NCCL_", "GLOO_", "VLLM_", "TORCH_", "MASTER_", "CUDA_")
_LONGEST = 120  # characters of a value that are shown


def judge(node: Node, job: Job) -> Iterator[Fact]:
    """What a node's settings would do to a launch. What is added for evidence only, and not set by the user, is not judged."""
    found = node.read("settings")
    if found is None:
        yield unread(f"settings of {node.host}", node.why("settings"), [node.host], needed=True)
        return
    added = set(found.get("added", []))
    settings = {name: (value, _ENVIRONMENT) for name, value in found["variables"].items() if name not in added}
    settings |= {name: (taken["value"], taken["from"]) for name, taken in found["nccl"].items() if name not in added}
    limits = node.read("limits") or {}
    values = {name: value for name, (value, _) in settings.items()}
    place = harmful.Place(job.nproc_per_node, job.nnodes, bool(limits.get("rdma")), values)
    for one in harmful.SETTINGS:
        if one.name in settings and one.when(settings[one.name][0].strip().lower(), place):
            yield _said(node, one.name, settings, one.weight, one.cause, one.does)
    for name in found.get("absent", []):
        weight, cause, does = harmful.BY_FILE[name]
        yield _said(node, name, settings, weight, cause, f"there is no such file; {does}")
    for name in settings:
        value, _ = settings[name]
        if name.startswith(_QUOTED) and (value[:1] in ("'", '"') or value != value.strip()) and value.strip():
            yield _said(
                node, name, settings, harmful.DEGRADES, "nccl-env-misconfig", "its quotes, blanks or line ends are taken for a part of the value"
            )
        if name.startswith("NCCL_") and (right := meant(name)):
            title = f"{_shown(name, settings)} on {node.host}: NCCL knows no such setting; {right} is like it"
            yield note(title, [node.host], setting=name, meant=right)
    yield from _files(node, found)


def _files(node: Node, found: Mapping[str, Any]) -> Iterator[Fact]:
    for file in found.get("files", []):
        path = file["path"]
        if "values" not in file:
            yield unread(f"{path} on {node.host}", str(file.get("why")), [node.host])
            continue
        for name in file["values"]:
            if name != name.strip() or " " in name:
                title = f"{path} on {node.host}: a line sets {name!r}, expected NAME=VALUE without blanks and `export`: NCCL never sees it"
                remedy = f"grep -n NCCL_ {word(path)}   # then write it as NAME=VALUE"
                yield degrades("nccl-env-misconfig", title, [node.host], remedy, evidence=[f"{path}: {name}={file['values'][name][:_LONGEST]}"])
    for over in found.get("overruled", []):
        title = (
            f"{over['name']}={over['value'][:_LONGEST]} in {over['file']} on {node.host} is overruled: {over['by']} says {over['with'][:_LONGEST]}"
        )
        yield note(title, [node.host], setting=over["name"])


def _said(node: Node, name: str, settings: Mapping[str, tuple[str, str]], weight: str, cause: str, does: str) -> Fact:
    shown = _shown(name, settings)
    origin = settings.get(name, ("", _ENVIRONMENT))[1]
    title = f"{shown} on {node.host}: {does}"
    if weight == harmful.NOTE:
        return note(title, [node.host], setting=name)
    remedy = f"unset {word(name)}" if origin == _ENVIRONMENT else f"sed -i {word(f'/^{name}=/d')} {word(origin)}"
    say = stop if weight == harmful.STOP else degrades
    return say(cause, title, [node.host], f"on {node.host}: {remedy}", evidence=[f"{origin} of {node.host}: {shown}"])


def _shown(name: str, settings: Mapping[str, tuple[str, str]]) -> str:
    value = settings.get(name, ("", ""))[0]
    return f"{name}={value[:_LONGEST]}{'...' if len(value) > _LONGEST else ''}"

"""The settings of NCCL, Gloo, torch and vLLM that differ between nodes, wherever they come from. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ncclcheck import alike, gathered
from ncclcheck.model import Fact
from ncclcheck.preflight.parity import said
from ncclcheck.safe_text import words
from ncclcheck.survey import Node, degrades, stop, unread

_ENGINE = "VLLM_"
MOST = 6  # settings that are named where many differ in the same way


def differences(nodes: Sequence[Node]) -> Iterator[Fact]:
    """One fact for all settings by which the same nodes differ: a profile that was not read there makes many."""
    known = [(node, settings) for node in nodes if (settings := taken(node)) is not None]
    if silent := [node for node in nodes if node.read("settings") is None]:
        yield unread("settings", silent[0].why("settings"), [node.host for node in silent], needed=True)
    same: dict[tuple[bool, tuple[str, ...]], dict[str, dict[str, list[Node]]]] = {}
    for name in sorted({name for _, settings in known for name in settings if alike.must_be(name)}):
        groups: dict[str, list[Node]] = {}
        for node, settings in known:
            groups.setdefault(settings.get(name, ("", ""))[0], []).append(node)
        if len(groups) > 1:
            groups = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
            hosts = tuple(node.host for node in alike.odd(groups))
            same.setdefault((name.startswith(_ENGINE), hosts), {})[name] = groups
    for (engine, hosts), names in same.items():
        yield _differ(engine, hosts, names)


def taken(node: Node) -> dict[str, tuple[str, str]] | None:
    """What counts on a node: name -> value, and where it comes from; None where that could not be read."""
    section = node.read("settings")
    if section is None:
        return None
    starts = (*alike.SETTINGS, _ENGINE)
    found = {name: (str(value), "environment") for name, value in section.get("variables", {}).items() if name.startswith(starts)}
    return found | {name: (str(entry.get("value")), str(entry.get("from"))) for name, entry in section.get("nccl", {}).items()}


def _differ(engine: bool, hosts: Sequence[str], names: Mapping[str, Mapping[str, list[Node]]]) -> Fact:
    what = "an engine whose parts are set differently" if engine else "this"
    told = [f"{name} is {said(groups, 'not set')}" for name, groups in names.items()]
    more = f"; and {len(told) - MOST} more settings" if len(told) > MOST else ""
    title = f"{'; '.join(told[:MOST])}{more}: {what} can hang or slow every collective"
    evidence = [f"{same[0].host}: {_from(same[0], name)}" for name, groups in names.items() for value, same in groups.items() if value]
    remedy = f"on {gathered.names(hosts)}: unset {words(names)}   # or give every node the same value, also in nccl.conf"
    return (degrades if engine else stop)("nccl-env-misconfig", title, hosts, remedy, evidence=evidence)


def _from(node: Node, name: str) -> str:
    value, where = (taken(node) or {})[name]
    return f"{name}={value} (from {'the environment' if where == 'environment' else where})"

"""What is said of many nodes in the same words is said once, with all their names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ncclcheck.model import Fact
from ncclcheck.safe_text import word

NAMED = 8  # hosts that are named where there are more
QUOTED = 8  # lines of evidence that are kept of them all


def names(hosts: Sequence[str]) -> str:
    """`gpu-01, gpu-02 and 62 more`, also for a remedy."""
    shown = ", ".join(map(word, hosts[:NAMED]))
    return f"{shown} and {len(hosts) - NAMED} more" if len(hosts) > NAMED else shown


def once(facts: Iterable[Fact]) -> list[Fact]:
    """Facts that differ only in the host that they name become one, in the place of the first."""
    same: dict[object, list[Fact]] = {}
    for fact in facts:
        same.setdefault(_key(fact), []).append(fact)
    return [_one(group) if len(group) > 1 else group[0] for group in same.values()]


def _key(fact: Fact) -> object:
    if not fact.host or not fact.get("title"):
        return id(fact)
    texts = (str(fact.get(part, "")).replace(fact.host, "\0") for part in ("title", "remedy", "cause", "interface", "link"))
    return (fact.kind, *texts)


def _one(group: Sequence[Fact]) -> Fact:
    first = group[0]
    hosts = list(dict.fromkeys(host for fact in group for host in fact.get("hosts", ())))
    title = str(first.get("title"))
    if first.host and first.host in title and len(hosts) > 1:
        title += f"; the same on {names([host for host in hosts if host != first.host])}"
    fields = {**first.fields, "title": title, "hosts": hosts}
    for part in ("evidence", "devices"):
        if lists := [item for fact in group for item in fact.get(part) or ()]:
            fields[part] = lists[:QUOTED] if part == "evidence" else lists
    return replace(first, host=first.host if len(hosts) == 1 else None, fields=fields)

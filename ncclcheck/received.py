"""The verdict that node 0 sent, as another node prints it: of the form that printing relies on, and of no more than that node saw itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from ncclcheck import arrivals, documents
from ncclcheck.causes import CAUSES
from ncclcheck.message_limits import Invalid, Label, Name, RankNumber, Room, one_line, plain
from ncclcheck.model import Outcome, Report, Status

LARGEST = 16 * 2**20  # bytes
GOOD = (Outcome.READY, Outcome.HEALTHY, Outcome.DEGRADED)
_DONE = (Status.PASS, Status.DEGRADED)


class _Planted(msgspec.Struct):
    fault: Label
    rank: RankNumber
    after: int
    clock: Label
    seconds: float | None
    refused: str | None


class _Run(msgspec.Struct):
    id: Name | None = None
    folders: dict[str, Label] | None = None
    planted: _Planted | None = None
    simulated_link: Label | None = None


class _Node(msgspec.Struct):
    node_rank: int | None = None
    host: Label | None = None
    addresses: dict[str, list[str]] | None = None
    gpus: list[dict[str, Any]] | None = None
    versions: dict[str, str | None] | None = None


class _Source(msgspec.Struct):
    name: str
    kind: str | None
    bytes: int
    problem: str | None


def report(data: bytes) -> Report:
    """The report that arrived. Raises Invalid for what is none, is too large, or could not be printed."""
    safe = plain(documents.unpack(data, dict[str, Any], LARGEST), Room(2 * documents.MOST_VALUES))
    try:
        told = msgspec.convert(safe, Report)
        msgspec.convert(told.run, _Run)
        msgspec.convert(told.nodes, Sequence[_Node])
        msgspec.convert(told.sources, Sequence[_Source])
    except msgspec.ValidationError as error:
        raise Invalid(f"a report of another form: {one_line(str(error))}") from None
    if unknown := [finding.cause for finding in told.findings if finding.cause not in CAUSES]:
        raise Invalid(f"a report with a cause that does not exist: {one_line(unknown[0], 64)!r}")
    if told.drill:
        raise Invalid("a report of a drill, which node 0 sends to nobody")
    for probe in told.probes:
        for fact in probe.facts:
            arrivals.formed(fact.kind, fact.fields)
        for sample in probe.samples:
            arrivals.sample(sample)
    return told


def must_be_seen(told: Report, run_id: str, seen: Collection[str], *, examined: bool) -> None:
    """Raises Invalid where a report says that all is well, or nearly, and that probes passed which this node took no part in.

    `seen`: the probes that ran here. `examined`: it was jobs of this node that were looked at.
    """
    if told.status not in GOOD:
        return
    if not run_id or told.run.get("id") != run_id:
        raise Invalid(f"the verdict {told.status} on another run than this one")
    if told.status is Outcome.HEALTHY and examined:
        return
    done = [probe.name for probe in told.probes if probe.status in _DONE]
    if unseen := [name for name in done if name not in seen]:
        raise Invalid(f"the verdict {told.status}, with {one_line(unseen[0], 64)} passed, which never ran on this node")
    if not done:
        raise Invalid(f"the verdict {told.status}, with no probe passed")

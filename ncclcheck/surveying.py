"""Node 0's part in the probes that start no rank: every node is asked at once what it is and has, and what came is judged."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ncclcheck import arrivals, asking, registry, triage, ways, wire
from ncclcheck.bounded import bounded
from ncclcheck.cluster import Cluster
from ncclcheck.members import AgentLost, Members
from ncclcheck.model import Fact, Finding, ProbeResult, Run, Status
from ncclcheck.options import Options
from ncclcheck.survey import Job, Node, NodeProbe, Section, Survey, note

ANSWER_BOUND = asking.BOUND + 5.0  # seconds in which a node must have answered
JUDGE_BOUND = 20.0  # seconds for what is judged of all nodes by one probe
MOST_PEERS = 64  # other nodes of which a node is told: it says by which interface each is reached
EMULATED_AT_ONCE = 2 * (os.cpu_count() or 1)  # nodes that share this machine and are asked at the same time


def split(names: Sequence[str]) -> tuple[list[registry.Plugin], list[str]]:
    """The probes that look at the nodes, and the names of those that run on ranks; each in the order given."""
    nodes = [registry.describe("probes", name) for name in names if not registry.needs_ranks(name)]
    return nodes, [name for name in names if registry.needs_ranks(name)]


class Surveyor:
    """Asks and judges, once."""

    def __init__(self, members: Members, cluster: Cluster, options: Options, show: Callable[[str], None] = lambda _: None) -> None:
        """`show` shows what is done."""
        self._members = members
        self._options = options
        self._show = show
        self._nodes = _one_for_each(members.hellos())
        self._places = {number: place for place, number in enumerate(self._nodes)}
        self._addresses = [hello.echo[0] for hello in self._nodes.values()]
        tasks = [hello.task for hello in self._nodes.values() if hello.task]
        each = tasks[0]["local_world_size"] if tasks else cluster.nproc_per_node
        asked = options.probe_options
        self._job = Job(
            len(self._nodes), each, cluster.master, asked.get("model"), emulated=bool(options.emulated),
            tp=asked.get("tp"), pp=asked.get("pp"), max_model_len=asked.get("max_model_len"),
        )  # fmt: skip

    async def judged(self, plugins: Sequence[registry.Plugin]) -> tuple[list[ProbeResult], list[Finding]]:
        """How each of these probes ended, and what they found. All are judged, whatever the first one finds."""
        began = time.monotonic()
        self._show(f"{', '.join(plugin.name for plugin in plugins)}: looking at {len(self._nodes)} node{'s' * (len(self._nodes) != 1)}")
        probes: list[Any] = [registry.load("probes", plugin.name) for plugin in plugins]
        seen = Survey(self._job, await self._ask(sorted({name for probe in probes for name in probe.READS})))
        results: list[ProbeResult] = []
        findings: list[Finding] = []
        for plugin, probe in zip(plugins, probes, strict=True):
            try:
                if plugin.get("WAYS") and not seen.ways:
                    seen = replace(seen, ways=await ways.try_all(self._members, self._members.hellos(), [self._job.master], self._show))
            except AgentLost:
                raise
            except Exception as error:  # as with judging
                result, found = _crashed(plugin.name, error)
            else:
                result, found = await judge(plugin.name, probe, seen, forced=self._options.force)
            result.seconds, began = time.monotonic() - began, time.monotonic()
            results.append(result)
            findings += found
        return results, findings

    async def _ask(self, sections: list[str]) -> list[Node]:
        """What every node says of itself."""
        records = any(hello.gpus for hello in self._nodes.values())
        orders = {number: wire.Survey(sections, self._peers(number), records) for number in self._nodes}
        at_once = EMULATED_AT_ONCE if self._options.emulated else len(orders)
        answers = await self._members.survey(orders, ANSWER_BOUND, at_once)

        def read() -> list[Node]:
            return [
                Node(_node_rank(number, hello), hello.host, hello.echo[0], _sections(sections, answers.get(number)))
                for number, hello in self._nodes.items()
            ]

        return await bounded(read, JUDGE_BOUND)

    def _peers(self, number: int) -> list[str]:
        place = self._places[number] + 1
        others = itertools.islice(itertools.chain(self._addresses[place:], self._addresses[: place - 1]), MOST_PEERS)
        return [address for address in others if address]


async def judge(name: str, probe: NodeProbe, seen: Survey, *, forced: bool = False) -> tuple[ProbeResult, list[Finding]]:
    """How a probe ended, and what it found. `forced`: that GPUs are in use is accepted."""
    try:
        return await bounded(_judged, JUDGE_BOUND, name, probe, seen, forced)
    except Exception as error:  # what nodes say of themselves takes every form; the other probes are still judged
        return _crashed(name, error)


def _judged(name: str, probe: NodeProbe, seen: Survey, forced: bool) -> tuple[ProbeResult, list[Finding]]:
    facts = list(probe.judge(seen))
    if forced:
        facts = [_accepted(fact) for fact in facts]
    found = triage.reported(Run(facts=facts))
    return _result(name, facts, found), found


def _crashed(name: str, error: Exception) -> tuple[ProbeResult, list[Finding]]:
    title = f"the probe {name} failed by itself: {type(error).__name__}: {error}"
    crash = Finding("probe-crashed", title, confidence=0.9, remedy=f"leave it out with --skip {name}, and report it to ncclcheck")
    return ProbeResult(name, Status.CRASHED, title), [crash]


def _result(name: str, facts: Sequence[Fact], found: Sequence[Finding]) -> ProbeResult:
    """What could not be read and is needed leaves more open than what is only degraded."""
    kept = [fact for fact in facts if fact.kind != "seen"]
    certain = [finding for finding in found if finding.cause not in triage.UNDECIDED]
    stops = [finding for finding in certain if finding.severity == triage.STOP]
    crashed = [finding for finding in found if finding.cause == "probe-crashed"]
    needed = [fact for fact in facts if fact.kind == "unread" and fact.get("needed")]
    if stops:
        return ProbeResult(name, Status.FAIL, _first(finding.title for finding in stops), facts=kept)
    if crashed:
        return ProbeResult(name, Status.CRASHED, _first(finding.title for finding in crashed), facts=kept)
    if needed:
        return ProbeResult(name, Status.UNKNOWN, _first(_placed(fact) for fact in needed), facts=kept)
    if found:
        return ProbeResult(name, Status.DEGRADED, _first(finding.title for finding in found), facts=kept)
    return ProbeResult(name, Status.PASS, "; ".join(str(fact.get("title")) for fact in facts if fact.kind == "seen"), facts=kept)


def _first(titles: Iterable[str]) -> str:
    """The first of them, and how many there are besides."""
    first, *more = titles
    return f"{first} (and {len(more)} more)" if more else first


def _placed(fact: Fact) -> str:
    hosts = ", ".join(fact.get("hosts", ())[:8])
    return f"{hosts}: {fact.get('title')}" if hosts else str(fact.get("title"))


def _accepted(fact: Fact) -> Fact:
    """With --force, GPUs that are in use are worth a note."""
    busy = fact.kind in ("fail", "degraded") and fact.get("cause") == "gpu-busy"
    return note(f"{fact.get('title')} (--force)", fact.get("hosts", ())) if busy else fact


def _one_for_each(hellos: Mapping[int, wire.Hello]) -> dict[int, wire.Hello]:
    """One agent for each node, where a launcher around us starts one for each rank: number -> its hello."""
    chosen: dict[int, int] = {}
    for number, hello in sorted(hellos.items()):
        chosen.setdefault(_node_rank(number, hello), number)
    return {number: hellos[number] for _, number in sorted(chosen.items())}


def _node_rank(number: int, hello: wire.Hello) -> int:
    return hello.task["node_rank"] if hello.task else number


def _sections(names: Sequence[str], answer: wire.Surveyed | None) -> dict[str, Section]:
    """What a node has read; where nothing came, each section says why."""
    why = f"no answer in {ANSWER_BOUND:g} s" if answer is None else answer.error
    if answer is not None and not why:
        try:
            return arrivals.sections(names, asking.unpack(answer.inventory))
        except ValueError as error:
            why = str(error)
    return {name: {"error": why} for name in names}

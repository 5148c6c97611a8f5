"""Node 0's decisions: the roll call, one launch after the other, and the report that every agent gets."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from ncclcheck import __version__, registry, triage, wire
from ncclcheck.cluster import Cluster
from ncclcheck.model import Evidence, Fact, Finding, ProbeResult, RankId, Report, Run, Status
from ncclcheck.rollcall import Roll, describe_missing, node_entries
from ncclcheck.units import seconds_text
from ncclcheck.watch import Clock, View

ACK_BOUND = 5.0  # seconds in which every node must have acknowledged the verdict
COLLECT_BOUND = 6.0  # seconds in which a node's evidence must have come
STOP_BOUND = 8.0  # seconds in which a node must have ended its ranks
ERROR_SETTLE = 1.0  # seconds in which what made a rank raise an error is noticed
SETTLE = 2.0  # seconds for which a contradiction at roll call must stand (an agent that was just replaced is silent by then)
VICTIM_STEPS = 20  # collectives after which a planted fault strikes


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    probes: Sequence[str]  # in the order they are to run
    not_asked: Sequence[str] = ()  # default probes that were left out
    roll_call_timeout: float = 60.0
    deadline: float = 900.0
    force: bool = False  # run although the GPUs are in use
    inject: str | None = None  # fault@rank=N,after=STEPS, planted in every launch that has no fault of its own
    probe_options: Mapping[str, Any] = field(default_factory=dict)
    emulated: str | None = None  # "2x1" on emulated nodes
    environment: Mapping[str, str] = field(default_factory=dict)  # what emulation added to each node's environment


class AgentLost(Exception):
    """An agent said goodbye or fell silent; args: its node number, the reason."""


class Coordinator:
    """Runs on node 0 only, beside its agent."""

    def __init__(self, server: wire.Server, cluster: Cluster, options: Options, say: Callable[[str], None], show: Callable[[str], None]) -> None:
        self._server = server
        self._cluster = cluster
        self._options = options
        self._say, self._show = say, show
        self._roll = Roll(cluster)
        self._heard: dict[bytes, float] = {}
        self._left: dict[bytes, str] = {}  # who said goodbye, and why
        self._numbers: dict[bytes, int] = {}  # who takes part, once the roll is complete
        self._view: View | None = None
        self._answers: dict[tuple[type, str], dict[bytes, list[Fact]]] = {}
        self._acks: set[bytes] = set()
        self._news = asyncio.Event()
        self._started = time.monotonic()
        self._run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self._results: list[ProbeResult] = []
        self._findings: list[Finding] = []
        self._lacking: list[Finding] = []  # what kept a required probe from running: it leaves the question open
        self._ranks: dict[int, RankId] = {}
        self._added: dict[str, str] = {}
        self._launches = 0
        self._listening: list[asyncio.Task[None]] = []

    async def run(self) -> Report:
        """The whole run. The report has reached every agent that could be reached when this returns."""
        self._listening = [asyncio.create_task(work) for work in (self._listen(), self._beat(), self._server.watch())]
        try:
            if await self._roll_call() and self._can_run():
                await self._suite()
        except AgentLost as lost:
            await self._lost(*lost.args)
        except BaseException as error:  # an interrupt, or a mistake of ours: the others must not wait for a verdict
            reason = "interrupted" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
            facts = [Fact("agent-lost", socket.gethostname(), fields={"node_rank": 0, "reason": reason})]
            self._findings += triage.findings(Run(facts=facts))
            raise
        finally:
            report = self._report()
            await self._publish(report)
            for task in self._listening:
                task.cancel()
        return report

    # -- hearing -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            peer, message = await self._server.receive()
            self._heard[peer] = time.monotonic()
            match message:
                case wire.Hello() if not self._numbers:
                    self._roll.add(peer, message)
                case wire.Hello() if peer in self._numbers:  # our welcome was lost
                    self._server.send(peer, wire.Welcome(self._run_id, self._numbers[peer]))
                case wire.Progress() if self._view and message.launch == self._view.launch and peer in self._numbers:
                    self._view.update(peer, self._folder(peer), message, time.monotonic())
                case wire.Collected() | wire.Stopped() if peer in self._numbers:
                    facts = [_placed(fact, self._folder(peer)) for fact in message.facts]
                    self._answers.setdefault((type(message), message.launch), {})[peer] = facts
                case wire.Ack():
                    self._acks.add(peer)
                case wire.Goodbye(reason=reason):
                    self._left[peer] = reason
                    if not self._numbers:
                        self._roll.drop(peer)
            self._news.set()

    async def _beat(self) -> None:
        while True:
            for peer in self._numbers or self._roll.hellos:
                self._server.send(peer, wire.Beat())
            await asyncio.sleep(wire.BEAT)

    async def _until(self, predicate: Callable[[], object], seconds: float) -> bool:
        """Wait until something holds; False after `seconds`. Raises AgentLost when a node that takes part is gone."""
        end = time.monotonic() + seconds
        while not predicate():
            now = time.monotonic()
            for task in self._listening:
                if task.done():
                    task.result()  # it ends by an error only: who does not hear must not judge
            for peer, number in self._numbers.items():
                if peer in self._left:
                    raise AgentLost(number, self._left[peer])
                if now - self._heard[peer] > wire.SILENCE:
                    raise AgentLost(number, f"silent for {wire.SILENCE:g} s")
            if now >= end:
                return False
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(0.1, end - now))
        return True

    # -- roll call -----------------------------------------------------------------------------------------------

    async def _roll_call(self) -> bool:
        """Meet every agent. Findings, and False, where that cannot be."""
        end = self._started + self._options.roll_call_timeout
        contradicted: float | None = None
        told: list[str] = []
        while not self._roll.complete():
            now = time.monotonic()
            for peer in [peer for peer in self._roll.hellos if now - self._heard[peer] > wire.SILENCE / 2]:
                self._roll.drop(peer)
            contradicted = (contradicted or now) if self._roll.conflicts() else None
            if contradicted and now - contradicted > SETTLE:
                return self._refuse(self._roll.conflicts())
            missing = self._roll.missing()
            if now > end:
                strangers = self._server.callers - {
                    address for hello in self._roll.hellos.values() for found in hello.addresses.values() for address in found
                }
                facts = [
                    *missing,
                    Fact("roll-call", socket.gethostname(), fields={"seconds": self._options.roll_call_timeout, "there": self._roll.there()}),
                ]
                if self._server.wrong_keys:
                    facts.append(Fact("stranger", fields={"addresses": sorted(strangers), "attempts": self._server.wrong_keys}))
                return self._refuse(facts)
            line = self._roll.there(), describe_missing(missing)
            if line[0] and [*line[0], *line[1]] != told:
                told = [*line[0], *line[1]]
                self._say(f"roll call: {', '.join(line[0])} here, waiting for {', '.join(line[1])} (at most {end - now:.0f} s)")
                for peer in self._roll.hellos:
                    self._server.send(peer, wire.Roster(line[0], line[1], end - now))
            await self._until(self._roll.complete, 0.2)
        self._numbers = self._roll.numbers()
        for peer, number in self._numbers.items():
            self._server.send(peer, wire.Welcome(self._run_id, number))
        self._say(f"roll call: all {self._cluster.nnodes} here after {seconds_text(time.monotonic() - self._started)}")
        return True

    def _refuse(self, facts: list[Fact]) -> bool:
        self._findings += triage.findings(Run(facts=facts))
        return False

    def _can_run(self) -> bool:
        """What the roll call already rules out: busy GPUs, torch that is not there."""
        facts, lacking = [], []
        for hello in self._hellos().values():
            if hello.versions.get("torch") is None:
                lacking.append(Fact("not-installed", hello.host, fields={"distribution": "torch", "probes": list(self._options.probes)}))
            if 0 < len(hello.gpus) < hello.nproc_per_node:
                facts.append(Fact("too-few-gpus", hello.host, fields={"gpus": len(hello.gpus), "nproc_per_node": hello.nproc_per_node}))
            for gpu in hello.gpus if not self._options.force else ():
                if gpu["processes"]:
                    facts.append(Fact("gpu-busy", hello.host, fields=gpu))
        self._lacking += triage.findings(Run(facts=lacking)) if lacking else []
        return not lacking and (not facts or self._refuse(facts))

    # -- launches ------------------------------------------------------------------------------------------------

    async def _suite(self) -> None:
        """Every probe in turn; after a failure with a cause nothing more is started, after a mere time-out the next one is."""
        for group in groups(self._options.probes):
            if self._findings and any(result.status is Status.FAIL for result in self._results):
                self._results += [ProbeResult(plugin.name, Status.SKIP, f"not run: {self._findings[0].cause} was found first") for plugin in group]
            elif time.monotonic() - self._started > self._options.deadline:
                reason = f"not run: the deadline of {seconds_text(self._options.deadline)} was over"
                self._results += [ProbeResult(plugin.name, Status.UNKNOWN, reason) for plugin in group]
            elif reason := self._unmet(group[0]):
                self._results.append(ProbeResult(group[0].name, Status.SKIP, reason))
            elif group[0].get("INJECT"):
                await self._detect(group[0])
            else:
                await self._plain(group)

    def _unmet(self, plugin: registry.Plugin) -> str:
        """Why a probe cannot run here; empty if it can."""
        if self._world_size() < plugin.get("MIN_RANKS", 1):
            return f"it needs {plugin.get('MIN_RANKS')} ranks and there is {self._world_size()}"
        for need in plugin.get("NEEDS", ()):
            lacking = [hello.host for hello in self._hellos().values() if hello.versions.get(need) is None]
            if lacking:
                self._lacking += triage.findings(
                    Run(facts=[Fact("not-installed", host, fields={"distribution": need, "probes": [plugin.name]}) for host in lacking])
                )
                return f"{need} is not installed on {', '.join(lacking)}"
        return ""

    async def _plain(self, group: Sequence[registry.Plugin]) -> None:
        view, clock, bound, run = await self._launch(group, self._options.inject)
        found = [] if clock is Clock.OVER and not run.of("left-over") else triage.findings(run)
        self._findings += found
        self._results += [self._result(plugin, view, clock, bound, found) for plugin in group]

    async def _detect(self, plugin: registry.Plugin) -> None:
        """A probe that plants a fault: it passes when the fault is named and a launch right after it is healthy."""
        began = time.monotonic()
        name = plugin.get("INJECT")
        victim = self._world_size() - 1
        view, clock, _, run = await self._launch([plugin], f"{name}@rank={victim},after={VICTIM_STEPS}")
        named_after = time.monotonic() - view.progress
        found = triage.findings(run)
        best = found[0] if found else None
        expected = registry.describe("faults", name).get("EXPECT")
        blamed = best is not None and best.cause == expected and list(best.culprit.ranks or ()) == [victim]
        facts = [Fact("planted", rank=victim, fields={"fault": name, "clock": clock.value, "named_after_seconds": round(named_after, 3)})]
        if not blamed:
            said = f"{best.cause} of ranks {best.culprit.ranks}" if best else "nothing"
            title = f"a {name} planted in rank {victim} was to be found as {expected}; found: {said} ({clock.value})"
            self._findings += triage.findings(Run(facts=[Fact("fail", fields={"cause": "probe-crashed", "title": title, "ranks": None})]))
            self._results.append(ProbeResult(plugin.name, Status.CRASHED, title, time.monotonic() - began, [], facts))
            return
        self._say(f"{plugin.name}: {best.title if best else ''} (planted; found {seconds_text(named_after)} after the last progress)")
        again, clock, bound, run = await self._launch([plugin], None)
        after = [] if clock is Clock.OVER else triage.findings(run)
        self._findings += after
        result = self._result(plugin, again, clock, bound, after)
        result.facts = facts + result.facts
        result.seconds = time.monotonic() - began
        if result.status is Status.PASS:
            result.detail = f"{name} planted in {run.name(victim)}: {expected} named after {seconds_text(named_after)}; a new launch is healthy"
        self._results.append(result)

    async def _launch(self, group: Sequence[registry.Plugin], inject: str | None) -> tuple[View, Clock, float, Run]:
        """Start the ranks, wait for their end or for what goes wrong, collect, end them all. The ranks are gone when this returns."""
        self._launches += 1
        name = f"{self._launches:02d}-{group[0].name}"
        env = _environment(self._options.probe_options, inject, any(hello.gpus for hello in self._hellos().values()))
        self._added |= env
        master = self._cluster.master
        order = wire.Launch(name, [p.name for p in group], master, free_port(master), self._cluster.nnodes, self._cluster.nproc_per_node, env)
        view = View(name, self._world_size(), self._cluster.nnodes, time.monotonic(), {p.name: self._timeout(p) for p in group})
        self._view = view
        self._send_all(order)
        self._show(f"{', '.join(order.probes)}: starting {self._world_size()} ranks")
        facts: list[Fact] = []
        try:
            while True:
                clock, bound = await self._wait(view)
                if clock is Clock.OVER or clock is Clock.FAIL:
                    break
                if clock is Clock.ERROR:  # mostly a consequence: the death or stop that it follows from is noticed a moment later
                    await self._until(view.explained, ERROR_SETTLE)
                last = view.progress
                facts = await self._ask(wire.Collect(name), wire.Collected, COLLECT_BOUND)
                if clock is Clock.STALL and view.progress > last:
                    view.patience *= 2  # it was slow, not stuck
                    continue
                break
            facts += await self._ask(wire.Stop(name), wire.Stopped, STOP_BOUND)
        finally:
            self._ranks |= view.ranks
        facts.append(Fact("clock", fields={"which": clock.value, "bound": bound, "probe": view.current(), "name": clock.name}))
        return view, clock, bound, view.run(facts + self._unusable_gpus(view))

    def _timeout(self, plugin: registry.Plugin) -> float:
        """Seconds for one probe; what the user asked for (a longer sweep, a model that takes its time to load) is on top."""
        options = self._options.probe_options
        longer = plugin.get("TIMEOUT_WITH_MODEL") if "model" in options else None
        return float(longer or plugin.get("TIMEOUT")) + float(options.get("budget", 0.0))

    async def _wait(self, view: View) -> tuple[Clock, float]:
        deadline = self._started + self._options.deadline
        said = ""
        while True:
            result = view.clock(time.monotonic())
            if result:
                return result
            if time.monotonic() > deadline:
                return Clock.DEADLINE, self._options.deadline
            slot = min(view.slots.values(), key=lambda slot: slot.seq, default=None)
            step = f"{view.current() or 'start'}: " + (f"{slot.name} (#{slot.seq})" if slot else "starting")
            if step != said:
                said = step
                self._show(f"{step}  {time.monotonic() - view.started:.0f} s")
            await self._until(lambda: view.clock(time.monotonic()), 0.3)

    async def _ask(self, order: wire.Collect | wire.Stop, answer: type, seconds: float) -> list[Fact]:
        """Send an order to every node and gather the answers; a node that gives none in time is a fact too."""
        key = (answer, order.launch)
        self._send_all(order)
        await self._until(lambda: len(self._answers.get(key, {})) == len(self._numbers), seconds)
        answers = self._answers.get(key, {})
        facts = [fact for found in answers.values() for fact in found]
        silent = [peer for peer in self._numbers if peer not in answers]
        hellos = self._roll.hellos
        return facts + [Fact("no-answer", hellos[peer].host, fields={"order": type(order).__name__, "seconds": seconds}) for peer in silent]

    def _unusable_gpus(self, view: View) -> list[Fact]:
        """A rank that computes on the CPU although its node shows NVIDIA devices."""
        nvidia = {number: hello.nvidia and not (self._options.emulated and not hello.gpus) for number, hello in self._hellos().items()}
        return [
            Fact("gpu-unusable", rank.host, rank.rank, fields={"node_rank": rank.node_rank})
            for rank in view.ranks.values()
            if rank.device.index is None and nvidia.get(rank.node_rank)
        ]

    def _result(self, plugin: registry.Plugin, view: View, clock: Clock, bound: float, found: Sequence[Finding]) -> ProbeResult:
        """How one probe of a launch ended."""
        name = plugin.name
        finished = view.finished.get(name, {})
        began = view.began.get(name, view.started)
        seconds = (max(finished.values()) if len(finished) == view.world_size else time.monotonic()) - began if name in view.began else 0.0
        facts = [replace(fact, fields={k: v for k, v in fact.fields.items() if k != "probe"}) for fact in view.facts if fact.get("probe") == name]
        for fact in facts:
            if fact.kind == "environment":  # what a probe set in its own process
                self._added |= fact.get("added", {})
        result = ProbeResult(name, Status.PASS, "", seconds, view.samples.get(name, []), facts)
        failed = [fact for fact in facts if fact.kind == "fail"]
        if failed:
            result.status, result.detail = Status.FAIL, str(failed[0].get("title", ""))
        elif len(finished) == view.world_size:
            pass
        elif name not in view.began and view.current() is not None:
            result.status, result.detail = Status.SKIP, "not run: an earlier probe of this launch failed"
        elif clock in (Clock.PROBE, Clock.DEADLINE):
            result.status, result.detail = Status.UNKNOWN, f"no end within {clock.value} of {bound:g} s"
        else:
            certain = any(finding.cause not in triage.UNDECIDED for finding in found)
            result.status, result.detail = (Status.FAIL if certain else Status.UNKNOWN), f"{found[0].title if found else 'ended'} ({clock.value})"
        return result

    # -- the end -------------------------------------------------------------------------------------------------

    async def _lost(self, number: int, reason: str) -> None:
        """A node is gone: say who, end the others' ranks, keep what is known."""
        hello = self._hellos()[number]
        gone = next(peer for peer, known in self._numbers.items() if known == number)
        del self._numbers[gone]
        facts = [Fact("agent-lost", hello.host, fields={"node_rank": number, "reason": reason})]
        with contextlib.suppress(AgentLost):  # a second one: the first is enough to say
            if self._view:
                facts += await self._ask(wire.Collect(self._view.launch), wire.Collected, COLLECT_BOUND)
                await self._ask(wire.Stop(self._view.launch), wire.Stopped, STOP_BOUND)
        self._findings += triage.findings(Run(facts=facts))

    def _report(self) -> Report:
        hellos = self._hellos() if self._numbers else dict(enumerate(self._roll.hellos.values()))
        rolled = bool(self._numbers)
        had = {result.name for result in self._results}
        why = "the run was ended before it" if rolled else "the roll call was not completed"
        unrun = [ProbeResult(name, Status.UNKNOWN if rolled else Status.SKIP, f"not run: {why}") for name in self._options.probes if name not in had]
        results = [*self._results, *unrun]
        findings = triage.order(self._findings)
        verdict = triage.verdict(
            findings,
            self._lacking,
            results,
            emulated=bool(self._options.emulated),
            not_asked=self._options.not_asked,
            ranks=self._world_size(),
            nodes=len({hello.task["node_rank"] if hello.task else number for number, hello in hellos.items()}),
        )
        folder = {str(number): f"{self._run_id}/{_folder(number, hello)}" for number, hello in hellos.items()} if rolled else {}
        return Report(
            1,
            verdict.status,
            verdict.summary,
            round(time.monotonic() - self._started, 3),
            verdict.findings,
            bool(self._options.emulated),
            {"added": {**self._options.environment, **self._added}},
            results,
            node_entries(hellos),
            [self._ranks[rank] for rank in sorted(self._ranks)],
            {"id": self._run_id, "folders": folder, "ncclcheck": __version__, "not_asked": list(self._options.not_asked)},
        )

    async def _publish(self, report: Report) -> None:
        """Give every agent the report and wait, bounded, until each has it."""
        data = fit(report)
        peers = list(self._numbers) or list(self._roll.hellos)
        for peer in peers:
            self._server.send(peer, wire.Result(data))
        with contextlib.suppress(Exception):  # the report stands, whoever is lost now
            await self._until(lambda: self._acks.issuperset(peers), ACK_BOUND)

    # -- small things --------------------------------------------------------------------------------------------

    def _hellos(self) -> dict[int, wire.Hello]:
        return {number: self._roll.hellos[peer] for peer, number in self._numbers.items()}

    def _folder(self, peer: bytes) -> str:
        return _folder(self._numbers[peer], self._roll.hellos[peer])

    def _world_size(self) -> int:
        return self._cluster.nnodes * self._cluster.nproc_per_node

    def _send_all(self, message: wire.Message) -> None:
        for peer in self._numbers:
            self._server.send(peer, message)


def groups(names: Sequence[str]) -> list[list[registry.Plugin]]:
    """Probes that share one launch: neighbours that use the common process group and plant nothing."""
    result: list[list[registry.Plugin]] = []
    for plugin in (registry.describe("probes", name) for name in names):
        alone = bool(plugin.get("INJECT")) or not plugin.get("GROUP", True)
        if result and not alone and result[-1][0].get("GROUP", True) and not result[-1][0].get("INJECT"):
            result[-1].append(plugin)
        else:
            result.append([plugin])
    return result


def free_port(address: str) -> int:
    """A TCP port that is free on this address now."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def fit(report: Report) -> bytes:
    """The report as JSON that travels: without the single iterations where it would be too large."""
    data = msgspec.json.encode(report)
    if len(data) > wire.MAX_MESSAGE - 1024:
        for probe in report.probes:
            probe.samples = [{**sample, "seconds": []} for sample in probe.samples]
        data = msgspec.json.encode(report)
    if len(data) > wire.MAX_MESSAGE - 1024:
        slim = [replace(probe, samples=[s for s in probe.samples if s["rank"] == 0], facts=[]) for probe in report.probes]
        data = msgspec.json.encode(replace(report, probes=slim))
    return data


def _environment(options: Mapping[str, Any], inject: str | None, gpus: bool) -> dict[str, str]:
    """What a launch gets beside the user's own environment: what the probe was asked, and what makes evidence.

    A variable that the user has set stays as it is, but for those of ours (NCCLCHECK_*).
    """
    evidence = {"NCCL_DEBUG": "INFO"} if gpus else {}
    fault_env = {"NCCLCHECK_INJECT": inject} if inject else {}
    return {"NCCLCHECK_OPTIONS": msgspec.json.encode(options).decode(), **fault_env, **evidence}


def _folder(number: int, hello: wire.Hello) -> str:
    return f"node{number}-{hello.host}"


def _placed(fact: Fact, folder: str) -> Fact:
    """A fact from a node, its evidence named relative to the run directory."""
    source = fact.source and Evidence(f"{folder}/{fact.source.file}", fact.source.line, fact.source.text)
    return replace(fact, source=source)

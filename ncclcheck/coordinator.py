"""Node 0's decisions: the roll call, one launch after the other, and the report that every agent gets."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import examination, outcome, registry, triage, wire
from ncclcheck.cluster import Cluster
from ncclcheck.collect import host
from ncclcheck.members import AgentLost, Members
from ncclcheck.model import Fact, Finding, ProbeResult, RankId, Report, Run, Status
from ncclcheck.options import Options
from ncclcheck.rollcall import Roll, describe_missing
from ncclcheck.units import seconds_text
from ncclcheck.watch import Clock, View

COLLECT_BOUND = 6.0  # seconds in which a node's evidence must have come
STOP_BOUND = 8.0  # seconds in which a node must have ended its ranks
ERROR_SETTLE = 1.0  # seconds in which what made a rank raise an error is noticed
SETTLE = 2.0  # seconds for which a contradiction at roll call must stand (an agent that was just replaced is silent by then)
VICTIM_STEPS = 20  # collectives after which a planted fault strikes


class Coordinator:
    """Runs on node 0 only, beside its agent."""

    def __init__(
        self, server: wire.Server, cluster: Cluster, options: Options, folder: Path, say: Callable[[str], None], show: Callable[[str], None]
    ) -> None:
        """`folder` is where run directories are made."""
        self._server = server
        self._cluster = cluster
        self._options = options
        self._folder = folder
        self._say, self._show = say, show
        self._roll = Roll(cluster)
        self._members = Members(server, self._roll, self._refusal)
        self._world_size = cluster.nnodes * cluster.nproc_per_node
        self._started = time.monotonic()
        self._run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self._results: list[ProbeResult] = []
        self._findings: list[Finding] = []
        self._lacking: list[Finding] = []  # what kept a required probe from running: it leaves the question open
        self._ranks: dict[int, RankId] = {}
        self._added: dict[str, str] = {}
        self._launches = 0
        self._examined: Report | None = None
        self._unseen: list[Finding] = []  # the nodes of which nothing came, where a running job is looked at

    async def run(self) -> Report:
        """The whole run. The report has reached every agent that could be reached when this returns."""
        self._members.open()
        try:
            if await self._roll_call():
                if self._options.examine:
                    await self._examine()
                elif self._can_run():
                    await self._suite()
        except AgentLost as lost:
            await self._lost(*lost.args)
        except BaseException as error:  # an interrupt, or a mistake of ours: the others must not wait for a verdict
            reason = "interrupted" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
            self._find(Fact("agent-lost", host.name(), fields={"node_rank": 0, "reason": reason}))
            raise
        finally:
            report = self._report(self._findings, self._run_id if self._members.settled else "")
            await self._members.publish(outcome.pack(report))
            self._members.close()
        return report

    # -- roll call -----------------------------------------------------------------------------------------------

    async def _roll_call(self) -> bool:
        """Meet every agent. Findings, and False, where that cannot be."""
        end = self._started + self._options.roll_call_timeout
        contradicted: float | None = None
        told: list[str] = []
        while not self._roll.complete():
            self._members.drop_silent(wire.SILENCE / 2)
            now = time.monotonic()
            contradicted = (contradicted or now) if self._roll.conflicts() else None
            if contradicted and (now - contradicted > SETTLE or now > end):
                return self._find(*self._roll.conflicts())
            if now > end and self._options.examine and self._roll.hellos:
                return self._go_on()
            if now > end:
                return self._find(*self._absent())
            there, missing = self._roll.there(), describe_missing(self._roll.missing())
            if there and [*there, *missing] != told:
                told = [*there, *missing]
                self._say(f"roll call: {', '.join(there)} here, waiting for {', '.join(missing)} (at most {end - now:.0f} s)")
                self._members.tell(wire.Roster(there, missing, end - now))
            await self._members.until(self._roll.complete, 0.2)
        self._members.settle(self._run_id)
        self._say(f"roll call: all {self._cluster.nnodes} here after {seconds_text(time.monotonic() - self._started)}")
        return True

    def _go_on(self) -> bool:
        """A job that hangs is looked at with whoever came. Always True."""
        seconds = seconds_text(self._options.roll_call_timeout)
        absent = self._roll.missing()
        self._unseen = [examination.unseen(int(fact.get("node_rank")), fact.host, f"it did not come within {seconds}") for fact in absent]
        if self._server.wrong_keys:  # somebody knocked in vain: that says why
            self._unseen += triage.findings(Run(facts=self._absent()))
        self._members.settle(self._run_id)
        self._say(f"roll call: {', '.join(self._roll.there())} here after {seconds}; going on without {', '.join(describe_missing(absent))}")
        return True

    def _absent(self) -> list[Fact]:
        """Who is not there at the roll call's end, and who knocked in vain."""
        fields = {"seconds": self._options.roll_call_timeout, "there": self._roll.there()}
        facts = [*self._roll.missing(), Fact("roll-call", host.name(), fields=fields)]
        if self._server.wrong_keys:
            known = {address for hello in self._roll.hellos.values() for found in hello.addresses.values() for address in found}
            strangers = sorted(self._server.callers - known)
            facts.append(Fact("stranger", fields={"addresses": strangers, "attempts": self._server.wrong_keys}))
        return facts

    def _can_run(self) -> bool:
        """What the roll call already rules out: torch that is not there, too few GPUs, GPUs in use."""
        lacking, facts = [], []
        for hello in self._members.hellos().values():
            if hello.versions.get("torch") is None:
                lacking.append(_not_installed("torch", hello.host))
            if 0 < len(hello.gpus) < hello.nproc_per_node:
                facts.append(Fact("too-few-gpus", hello.host, fields={"gpus": len(hello.gpus), "nproc_per_node": hello.nproc_per_node}))
            busy = [] if self._options.force else [gpu for gpu in hello.gpus if gpu["processes"]]
            facts += [Fact("gpu-busy", hello.host, fields=gpu) for gpu in busy]
        self._lacking += triage.findings(Run(facts=lacking)) if lacking else []
        return not lacking and (not facts or self._find(*facts))

    # -- a job that runs -----------------------------------------------------------------------------------------

    async def _examine(self) -> None:
        """Every node bundles what it sees of its jobs; the bundles are triaged together."""
        self._say("looking at the jobs on every node; nothing of them is touched")
        silent = await self._members.examine(examination.SENT_BOUND)
        hosts = {number: hello.host for number, hello in self._members.hellos().items()}
        self._unseen += [examination.unseen(number, hosts[number], silent[number]) for number in sorted(silent)]
        for finding in self._unseen:
            self._say(finding.title)
        paths = self._members.bundles.write(self._folder / self._run_id, hosts)
        if paths:
            try:
                self._examined = examination.completed(await examination.judge(paths), self._unseen)
            except (TimeoutError, RuntimeError, msgspec.MsgspecError) as error:
                self._findings.append(examination.unjudged(paths, error))
        if not self._examined:
            self._findings += self._unseen

    # -- launches ------------------------------------------------------------------------------------------------

    async def _suite(self) -> None:
        """Every probe in turn; after a failure with a cause nothing more is started, after a mere time-out the next one is."""
        for group in outcome.groups(self._options.probes):
            if self._findings and any(result.status is Status.FAIL for result in self._results):
                self._results += [ProbeResult(plugin.name, Status.SKIP, f"not run: {self._findings[0].cause} was found first") for plugin in group]
            elif time.monotonic() - self._started > self._options.deadline:
                reason = f"not run: the deadline of {seconds_text(self._options.deadline)} was over"
                self._results += [ProbeResult(plugin.name, Status.UNKNOWN, reason) for plugin in group]
            elif reason := self._unmet(group):
                self._results += [ProbeResult(plugin.name, Status.SKIP, reason) for plugin in group]
            elif group[0].get("INJECT"):
                await self._detect(group[0])
            else:
                await self._plain(group)

    def _unmet(self, group: list[registry.Plugin]) -> str:
        """Why a group cannot run here; empty if it can. Who needs more ranks than there are leaves the group first."""
        for plugin in [plugin for plugin in group if self._world_size < plugin.get("MIN_RANKS", 1)]:
            reason = f"it needs {plugin.get('MIN_RANKS')} ranks and there is {self._world_size}"
            if len(group) == 1:
                return reason
            group.remove(plugin)
            self._results.append(ProbeResult(plugin.name, Status.SKIP, reason))
        for need in group[0].get("NEEDS", ()):
            hosts = [hello.host for hello in self._members.hellos().values() if hello.versions.get(need) is None]
            if hosts:
                self._lacking += triage.findings(Run(facts=[_not_installed(need, host) for host in hosts]))
                return f"{need} is not installed on {', '.join(hosts)}"
        return ""

    async def _plain(self, group: Sequence[registry.Plugin]) -> None:
        view, clock, bound, run = await self._launch(group, self._options.inject)
        found = self._judge(view, clock, run)
        self._results += [outcome.of_probe(plugin, view, clock, bound, found) for plugin in group]

    def _judge(self, view: View, clock: Clock, run: Run) -> list[Finding]:
        """The findings of a launch that did not end as it should, kept; none for one that did."""
        if clock is Clock.OVER and view.complete and not run.of("left-over") and not run.of("no-answer") and not run.of("gpu-unusable"):
            return []
        found = triage.findings(run)
        self._findings += found
        return found

    async def _detect(self, plugin: registry.Plugin) -> None:
        """A probe that plants a fault: it passes when the fault is named and a launch right after it is healthy."""
        began = time.monotonic()
        name, victim = plugin.get("INJECT"), self._world_size - 1
        view, clock, _, run = await self._launch([plugin], f"{name}@rank={victim},after={VICTIM_STEPS}")
        named_after = time.monotonic() - view.progress
        best = triage.findings(run)[0]
        expected = registry.describe("faults", name).get("EXPECT")
        facts = [Fact("planted", rank=victim, fields={"fault": name, "clock": clock.value, "named_after_seconds": round(named_after, 3)})]
        if clock is Clock.DEADLINE:
            detail = f"not finished within {clock.value} of {seconds_text(self._options.deadline)}"
            self._results.append(ProbeResult(plugin.name, Status.UNKNOWN, detail, time.monotonic() - began, [], facts))
            return
        if best.cause != expected or list(best.culprit.ranks or ()) != [victim]:
            title = (
                f"a {name} planted in rank {victim} was to be found as {expected}; found: {best.cause} of ranks {best.culprit.ranks} ({clock.value})"
            )
            self._find(Fact("fail", fields={"cause": "probe-crashed", "title": title}))
            self._results.append(ProbeResult(plugin.name, Status.CRASHED, title, time.monotonic() - began, [], facts))
            return
        if left := [*run.of("left-over"), *run.of("no-answer")]:
            self._find(*left)
        self._say(f"{plugin.name}: {best.title} (planted; found {seconds_text(named_after)} after the last progress)")
        again, clock, bound, run = await self._launch([plugin], None)
        result = outcome.of_probe(plugin, again, clock, bound, self._judge(again, clock, run))
        result.facts = facts + result.facts
        result.seconds = time.monotonic() - began
        if result.status is Status.PASS:
            result.detail = f"{name} planted in {run.name(victim)}: {expected} named after {seconds_text(named_after)}; a new launch is healthy"
        self._results.append(result)

    async def _launch(self, group: Sequence[registry.Plugin], inject: str | None) -> tuple[View, Clock, float, Run]:
        """Start the ranks, wait for their end or for what goes wrong, collect, end them all. The ranks are gone when this returns."""
        self._launches += 1
        name = f"{self._launches:02d}-{group[0].name}"
        env = _environment(self._options.probe_options, inject, any(hello.gpus for hello in self._members.hellos().values()))
        self._added |= env
        master = self._cluster.master
        order = wire.Launch(name, [p.name for p in group], master, free_port(master), self._cluster.nnodes, self._cluster.nproc_per_node, env)
        view = View(name, self._world_size, self._cluster.nnodes, time.monotonic(), {p.name: self._timeout(p) for p in group})
        self._members.view = view
        self._members.tell(order)
        self._show(f"{', '.join(order.probes)}: starting {self._world_size} ranks")
        facts: list[Fact] = []
        try:
            while True:
                clock, bound = await self._wait(view)
                if clock is Clock.FAIL or (clock is Clock.OVER and view.complete):
                    break
                if clock is Clock.ERROR:  # mostly a consequence: the death or stop that it follows from is noticed a moment later
                    await self._members.until(view.explained, ERROR_SETTLE)
                last = view.progress
                facts = await self._members.ask(wire.Collect(name), wire.Collected, COLLECT_BOUND)
                if clock is Clock.STALL and view.progress > last:
                    view.patience *= 2  # it was slow, not stuck
                    continue
                break
            facts += await self._members.ask(wire.Stop(name), wire.Stopped, STOP_BOUND)
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
        """Until a clock fires, with the step of the rank that is behind on the live line."""
        deadline = self._started + self._options.deadline
        while not (fired := view.clock(time.monotonic())):
            if time.monotonic() > deadline:
                return Clock.DEADLINE, self._options.deadline
            slot = min(view.slots.values(), key=lambda slot: slot.seq, default=None)
            step = f"{slot.name} (#{slot.seq})" if slot else "starting"
            self._show(f"{view.current() or 'start'}: {step}  {time.monotonic() - view.started:.0f} s")
            await self._members.until(lambda: view.clock(time.monotonic()), 0.3)
        return fired

    def _unusable_gpus(self, view: View) -> list[Fact]:
        """Ranks that compute on the CPU although their node shows NVIDIA devices."""
        hidden = bool(self._options.emulated)  # emulation on the CPU hides them on purpose
        nvidia = {number: hello.nvidia and not (hidden and not hello.gpus) for number, hello in self._members.hellos().items()}
        return [
            Fact("gpu-unusable", rank.host, rank.rank, fields={"node_rank": rank.node_rank})
            for rank in view.ranks.values()
            if rank.device.index is None and rank.node_rank is not None and nvidia.get(rank.node_rank)
        ]

    # -- the end -------------------------------------------------------------------------------------------------

    def _find(self, *facts: Fact) -> bool:
        """Keep what these facts mean. Always False: nothing more can be run."""
        self._findings += triage.findings(Run(facts=facts))
        return False

    async def _lost(self, number: int, reason: str) -> None:
        """A node is gone: say who, end the others' ranks, keep what is known."""
        facts = [Fact("agent-lost", self._members.hellos()[number].host, fields={"node_rank": number, "reason": reason})]
        self._members.drop(number)
        with contextlib.suppress(AgentLost):  # a second one: the first is enough to say
            if self._members.view:
                facts += await self._members.ask(wire.Collect(self._members.view.launch), wire.Collected, COLLECT_BOUND)
                await self._members.ask(wire.Stop(self._members.view.launch), wire.Stopped, STOP_BOUND)
        self._find(*facts)

    def _refusal(self, hello: wire.Hello) -> bytes:
        """The report for an agent too many, or one that came too late to a job that is looked at: the run goes on without it."""
        found: list[Finding]
        if self._options.examine and (missing := self._roll.missing()):
            number = int(missing[0].get("node_rank")) if hello.node_rank is None else hello.node_rank
            found = [examination.unseen(number, hello.host, "it came after the roll call had ended")]
        else:
            found = triage.findings(Run(facts=self._roll.too_late(hello)))
        return outcome.pack(self._report(found, run_id=""))

    def _report(self, findings: Sequence[Finding], run_id: str) -> Report:
        if self._examined:
            return outcome.of_examination(self._examined, self._members.hellos(), run_id, findings, time.monotonic() - self._started)
        return outcome.of_run(
            self._options,
            run_id=run_id,
            hellos=self._members.hellos(),
            results=self._results if run_id else [],
            findings=findings,
            lacking=self._lacking,
            ranks=self._ranks,
            added=self._added,
            world_size=self._world_size,
            seconds=time.monotonic() - self._started,
        )


def free_port(address: str) -> int:
    """A TCP port that is free on this address now."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def _not_installed(distribution: str, host: str) -> Fact:
    return Fact("not-installed", host, fields={"distribution": distribution})


def _environment(options: Mapping[str, Any], inject: str | None, gpus: bool) -> dict[str, str]:
    """What a launch gets beside the user's own environment: what the probe was asked, and what makes evidence.

    A variable that the user has set stays as it is, but for those of ours (NCCLCHECK_*).
    """
    evidence = {"NCCL_DEBUG": "INFO"} if gpus else {}
    fault_env = {"NCCLCHECK_INJECT": inject} if inject else {}
    return {"NCCLCHECK_OPTIONS": msgspec.json.encode(options).decode(), **fault_env, **evidence}

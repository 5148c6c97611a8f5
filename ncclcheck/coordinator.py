"""Node 0's decisions: the roll call, one launch after the other, and the report that every agent gets."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ncclcheck import (
    __version__,
    examination,
    fault,
    muster,
    outcome,
    paths,
    permissions,
    registry,
    standstill,
    surveying,
    transport,
    triage,
    wire,
)
from ncclcheck.bounded import bounded
from ncclcheck.cluster import Cluster
from ncclcheck.collect import host
from ncclcheck.members import AgentLost, Members
from ncclcheck.model import Fact, Finding, ProbeResult, RankId, Report, Run, Status
from ncclcheck.options import Options, run_id
from ncclcheck.ports import free_port
from ncclcheck.rollcall import Roll, describe_missing
from ncclcheck.units import seconds_text
from ncclcheck.watch import SUSPICIOUS, Clock, View

COLLECT_BOUND = 6.0  # seconds in which a node's evidence must have come
STOP_BOUND = 8.0  # seconds in which a node must have ended its ranks
ERROR_SETTLE = 1.0  # seconds in which what made a rank raise an error is noticed
SETTLE = 2.0  # seconds for which a contradiction at roll call must stand (an agent that was just replaced is silent by then)
_AMISS = ("left-over", "no-answer", "gpu-unusable")  # kinds of facts that speak against a launch that came to its end,
_SLOW = ("slow", "slowed", "late", "outage")  # and those that say that it took long, or may have
NETWORK = ("network-unreachable", "blocked-port", "mtu-mismatch")  # causes for which no step is waited for any longer
MOST_STRANGERS = 4  # addresses that the report names
MOST_LOOKED_AT = 8  # lost nodes to which the way is tried
MOST_NAMED = 8  # agents that are named in a line of the roll call, and nodes that stand in the report for one that comes too late
JUDGE_BOUND = 60.0  # seconds in which what was seen must have been judged,
REPORT_BOUND = 60.0  # and in which the report on it must have been made
VICTIM_STEPS = 20  # collectives after which a planted fault strikes


class Coordinator:
    """Runs on node 0 only, beside its agent."""

    def __init__(
        self, server: transport.Server, cluster: Cluster, options: Options, folder: Path, say: Callable[[str], None], show: Callable[[str], None]
    ) -> None:
        """`folder` is where run directories are made."""
        self._server = server
        self._cluster = cluster
        self._options = options
        self._permissions = permissions.Permissions(options)
        self._folder = folder
        self._say, self._show = say, show
        self._roll = Roll(cluster)
        self._members = Members(server, self._roll, self._refusal)
        self._world_size = cluster.nnodes * cluster.nproc_per_node
        self._started = time.monotonic()
        self._run_id = run_id()
        self._results: list[ProbeResult] = []
        self._findings: list[Finding] = []
        self._lacking: list[Finding] = []  # what kept a required probe from running: it leaves the question open
        self._spared: list[str] = []  # what was not installed anywhere and may be missing
        self._ranks: dict[int, RankId] = {}
        self._added: dict[str, str] = {}
        self._launches = 0
        self._planted: dict[str, Any] | None = None  # what became of a fault that was asked for
        self._examined: Report | None = None
        self._collected: list[Fact] = []  # what all nodes saw of the launch when it was looked at last
        self._seen: list[Fact] = []  # of the network, when it was looked at last
        self._unseen: list[Finding] = []  # the nodes of which nothing came, where a running job is looked at

    async def run(self) -> Report:
        """The whole run. The report has reached every agent that could be reached when this returns."""
        self._members.open()
        try:
            if await self._roll_call():
                if self._options.examine:
                    await self._examine()
                else:
                    await self._suite()
        except AgentLost as lost:
            await self._lost(*lost.args)
        except BaseException as error:  # an interrupt, or a mistake of ours: the others must not wait for a verdict
            reason = "interrupted" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
            await self._find(Fact("agent-lost", host.name(), fields={"node_rank": 0, "reason": reason}))
            raise
        finally:
            await self._members_at_fault()
            report, packed = await bounded(self._reported, REPORT_BOUND, dict(self._members.hellos()))
            await self._members.publish(packed)
            self._members.close()
        return report

    # -- roll call -----------------------------------------------------------------------------------------------

    async def _roll_call(self) -> bool:
        """Meet every agent. Findings, and False, where that cannot be."""
        end = self._started + self._options.roll_call_timeout
        contradicted: float | None = None
        told: list[str] = []
        tell = 0.0  # not before then
        while not self._roll.complete():
            self._members.drop_silent(wire.SILENCE / 2)
            now = time.monotonic()
            conflicts = self._roll.conflicts()
            contradicted = (contradicted or now) if conflicts else None
            if contradicted and (now - contradicted > SETTLE or now > end):
                return await self._find(*conflicts)
            if now > end and self._options.examine and self._roll.hellos:
                return await self._go_on()
            if now > end:
                return await self._find(*self._absent())
            if self._roll.hellos and now >= tell:
                there, missing = _some(self._roll.there()), _some(describe_missing(self._roll.missing()))
                if [*there, *missing] != told:
                    told, tell = [*there, *missing], now + wire.BEAT
                    self._say(f"roll call: {', '.join(there)} here, waiting for {', '.join(missing)} (at most {end - now:.0f} s)")
                    self._members.tell(wire.Roster(there, missing, end - now))
            await self._members.until(self._roll.complete, 0.2)
        self._members.settle(self._run_id)
        self._say(f"roll call: all {self._cluster.nnodes} here after {seconds_text(time.monotonic() - self._started)}")
        return True

    async def _go_on(self) -> bool:
        """A job that hangs is looked at with whoever came. Always True."""
        seconds = seconds_text(self._options.roll_call_timeout)
        absent = self._roll.missing()
        self._unseen = [examination.unseen(int(fact.get("node_rank")), fact.host, f"it did not come within {seconds}") for fact in absent]
        if self._server.wrong_keys:  # somebody knocked in vain: that says why
            self._unseen += await _concluded(Run(facts=self._absent()))
        self._members.settle(self._run_id)
        self._say(
            f"roll call: {', '.join(_some(self._roll.there()))} here after {seconds}; going on without {', '.join(_some(describe_missing(absent)))}"
        )
        return True

    def _absent(self) -> list[Fact]:
        """Who is not there at the roll call's end, and who knocked in vain or said what cannot be."""
        fields = {"seconds": self._options.roll_call_timeout, "there": self._roll.there()}
        facts = [*self._roll.missing(), Fact("roll-call", host.name(), fields=fields), *self._members.invalid.values()]
        if self._server.wrong_keys:
            known = {address for hello in self._roll.hellos.values() for found in hello.addresses.values() for address in found}
            strangers = sorted(self._server.wrong_keys.keys() - known)
            facts.append(Fact("stranger", fields={"addresses": strangers, "attempts": sum(self._server.wrong_keys.values())}))
        if others := self._server.wrong_versions:
            spoken = {host.name(): (wire.PROTOCOL, __version__), **{there: (spoken, f"one of protocol {spoken}") for there, spoken in others.items()}}
            facts += [
                Fact("hello", there, fields={"conflict": "protocol", "value": number, "version": version})
                for there, (number, version) in spoken.items()
            ]
        return facts

    async def _can_run(self) -> bool:
        """What the roll call already rules out: torch that is not there, too few GPUs, GPUs in use."""
        lacking, facts = [], []
        for hello in self._members.hellos().values():
            if hello.versions.get("torch") is None:
                lacking.append(_not_installed("torch", hello.host))
            if 0 < len(hello.gpus) < hello.nproc_per_node:
                facts.append(Fact("too-few-gpus", hello.host, fields={"gpus": len(hello.gpus), "nproc_per_node": hello.nproc_per_node}))
            busy = [] if self._options.force else [gpu for gpu in hello.gpus if gpu["processes"]]
            facts += [Fact("gpu-busy", hello.host, fields={**gpu}) for gpu in busy]
        self._lacking += await _concluded(Run(facts=lacking)) if lacking else []
        return not lacking and (not facts or await self._find(*facts))

    def _not_permitted(self) -> list[Fact]:
        """What the users of other nodes did not ask for, as far as the roll call told: known before anything is started."""
        facts, planted = [], fault.parse(self._options.inject) if self._options.inject else None
        for number, hello in self._members.hellos().items():
            permits, lacking = hello.permits, [name for name in self._options.probes if name not in hello.permits.probes]
            reasons = [f"it was not started for {', '.join(lacking)}"] if lacking else []
            if "model" in self._options.probe_options and not permits.model:
                reasons.append("no --model was named there")
            if planted and planted.rank // self._cluster.nproc_per_node == number:
                if not permits.fault.startswith(f"{planted.name}@"):
                    reasons.append(f"it was not started with --inject {planted.name}")
                if not planted.plugin.get("SAFE") and not permits.network_faults:
                    reasons.append(f"--allow-network-faults was not given there, and {planted.name} breaks its network")
            facts += [Fact("order-refused", hello.host, fields={"reason": reason}) for reason in reasons]
        return facts

    # -- a job that runs -----------------------------------------------------------------------------------------

    async def _examine(self) -> None:
        """Every node bundles what it sees of its jobs; the bundles are triaged together."""
        self._say("looking at the jobs on every node; nothing of them is touched")
        bundles = examination.Bundles(self._folder / self._run_id)
        silent = await self._members.examine(bundles, examination.SENT_BOUND)
        hosts = {number: hello.host for number, hello in self._members.hellos().items()}
        self._unseen += [examination.unseen(number, hosts[number], silent[number]) for number in sorted(silent)]
        for finding in self._unseen:
            self._say(finding.title)
        paths = bundles.name(hosts)
        if paths:
            try:
                self._examined = examination.completed(await examination.judge(paths), self._unseen)
            except (TimeoutError, RuntimeError, msgspec.MsgspecError) as error:
                self._findings.append(examination.unjudged(paths, error))
        if not self._examined:
            self._findings += self._unseen

    # -- launches ------------------------------------------------------------------------------------------------

    async def _suite(self) -> None:
        """What is to be seen without a rank, then every other probe in turn.

        After a failure with a cause nothing more is started, after a mere time-out the next one is.
        """
        if refused := self._not_permitted():
            await self._find(*refused)
            return
        first, rest = surveying.split(self._options.probes)
        if first:
            surveyor = surveying.Surveyor(self._members, self._cluster, self._options, self._show)
            self._results, self._findings = await surveyor.judged(first)
        if not rest or (self._stopped() is None and not await self._can_run()):
            return
        for group in outcome.groups(rest):
            if stopped := self._stopped():
                self._results += [ProbeResult(plugin.name, Status.SKIP, f"not run: {stopped} was found first") for plugin in group]
            elif time.monotonic() - self._started > self._options.deadline:
                reason = f"not run: the deadline of {seconds_text(self._options.deadline)} was over"
                self._results += [ProbeResult(plugin.name, Status.UNKNOWN, reason) for plugin in group]
            elif reason := await self._unmet(group):
                self._results += [ProbeResult(plugin.name, Status.SKIP, reason) for plugin in group]
            elif group[0].get("INJECT"):
                await self._detect(group[0])
            else:
                await self._plain(group)

    def _stopped(self) -> str | None:
        """The cause by which a probe has failed: nothing more is started then."""
        failed = any(result.status is Status.FAIL for result in self._results)
        return next((finding.cause for finding in self._findings if failed and finding.severity == triage.STOP), None)

    async def _unmet(self, group: list[registry.Plugin]) -> str:
        """Why a group cannot run here; empty if it can. Who needs more ranks than there are leaves the group first."""
        for plugin in [plugin for plugin in group if self._world_size < plugin.get("MIN_RANKS", 1)]:
            reason = f"it needs {plugin.get('MIN_RANKS')} ranks and there is {self._world_size}"
            if len(group) == 1:
                return reason
            group.remove(plugin)
            self._results.append(ProbeResult(plugin.name, Status.SKIP, reason))
        for name, least in group[0].needs.items():
            need = f"{name}>={least}" if least else name
            hosts = [hello.host for hello in self._members.hellos().values() if _older(hello.versions.get(name), least)]
            if len(hosts) == len(self._members.hellos()) and group[0].name in self._options.spared:
                self._spared.append(group[0].name)
                return f"{need} is not installed on {', '.join(hosts)}; --vllm-mode all takes the ways that are"
            if hosts:
                self._lacking += await _concluded(Run(facts=[_not_installed(name, host, need) for host in hosts]))
                return f"{need} is not installed on {', '.join(hosts)}"
        return ""

    async def _plain(self, group: Sequence[registry.Plugin]) -> None:
        planted = fault.parse(self._options.inject) if self._options.inject else None
        view, clock, bound, run = await self._launch(group, planted)
        found = await self._judge(view, clock, run)
        if planted:
            self._planted = _account(planted, view, clock, run)
        self._results += [outcome.of_probe(plugin, view, clock, bound, found) for plugin in group]

    async def _judge(self, view: View, clock: Clock, run: Run) -> list[Finding]:
        """The findings of a launch that did not end as it should, kept; none for one that did."""
        well = clock is Clock.OVER and view.complete
        if well and not any(run.of(kind) for kind in (*_AMISS, *_SLOW)):
            return []
        found = await _concluded(run)
        if well and not any(run.of(kind) for kind in _AMISS):  # what only seemed slow is no finding
            found = [finding for finding in found if finding.cause in triage.SLOWER]
        found = triage.placed(run, found)
        self._findings += found
        return found

    async def _detect(self, plugin: registry.Plugin) -> None:
        """A probe that plants a fault: it passes when the fault is named and a launch right after it is healthy."""
        began = time.monotonic()
        name, victim = plugin.get("INJECT"), self._world_size - 1
        view, clock, _, run = await self._launch([plugin], fault.Spec(name, victim, VICTIM_STEPS))
        named_after = time.monotonic() - view.progress
        best = (await _concluded(run))[0]
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
            await self._find(Fact("fail", fields={"cause": "probe-crashed", "title": title}))
            self._results.append(ProbeResult(plugin.name, Status.CRASHED, title, time.monotonic() - began, [], facts))
            return
        if left := [*run.of("left-over"), *run.of("no-answer")]:
            await self._find(*left)
        self._say(f"{plugin.name}: {best.title} (planted; found {seconds_text(named_after)} after the last progress)")
        again, clock, bound, run = await self._launch([plugin], None)
        result = outcome.of_probe(plugin, again, clock, bound, await self._judge(again, clock, run))
        result.facts = facts + result.facts
        result.seconds = time.monotonic() - began
        if result.status is Status.PASS:
            result.detail = f"{name} planted in {run.name(victim)}: {expected} named after {seconds_text(named_after)}; a new launch is healthy"
        self._results.append(result)

    async def _launch(self, group: Sequence[registry.Plugin], planted: fault.Spec | None) -> tuple[View, Clock, float, Run]:
        """Start the ranks, wait for their end or for what goes wrong, collect, end them all. The ranks are gone when this returns."""
        self._launches += 1
        name = f"{self._launches:02d}-{group[0].name}"
        master, nodes, each = self._cluster.master, self._cluster.nnodes, self._cluster.nproc_per_node
        order = self._order(name, group, planted)
        self._added |= self._permissions.launch(order, planted.rank // each if planted else 0, nodes, each)
        wiring = muster.Order(nodes, each, master, order.port, tasks=any(hello.task for hello in self._members.hellos().values()))
        paced = all(plugin.get("PACED") for plugin in group)
        self._members.probes = order.probes
        view = View(name, self._world_size, nodes, time.monotonic(), {p.name: self._timeout(p) for p in group}, wiring, paced=paced)
        if planted and planted.strikes == "launcher":
            view.struck = view.started
        self._members.view, self._collected = view, []
        self._members.tell(order)
        self._show(f"{', '.join(order.probes)}: starting {self._world_size} ranks")
        facts: list[Fact] = []
        try:
            while True:
                clock, bound = await self._wait(view, planted)
                if clock is Clock.OVER and view.complete and not await bounded(lambda: view.slowed, JUDGE_BOUND):
                    break
                if clock is Clock.ERROR:  # mostly a consequence: the death or stop that it follows from is noticed a moment later
                    await self._members.until(view.explained, ERROR_SETTLE)
                last, before = view.progress, dict(view.slots)
                looked = self._seen if clock is Clock.NETWORK else []
                question = wire.Collect(name, network=not looked, recorder=clock is Clock.STALL)
                self._collected = facts = looked + await self._members.ask(question, wire.Collected, COLLECT_BOUND)
                if clock is Clock.STALL and view.progress > last:
                    view.patience *= 2  # it was slow, not stuck
                    view.facts.append(standstill.fact(before, view.paces, last, view.progress))
                    continue
                break
            facts += await self._members.ask(wire.Stop(name), wire.Stopped, STOP_BOUND)
        finally:
            self._ranks |= view.ranks
        facts.append(Fact("clock", fields={"which": clock.value, "bound": bound, "probe": view.current(), "name": clock.name}))
        return view, clock, bound, await _as_seen(view, facts + self._unusable_gpus(view))

    def _order(self, name: str, group: Sequence[registry.Plugin], planted: fault.Spec | None) -> wire.Launch:
        """What every node is told of a launch; a launch that measures goes without what times every call."""
        options = self._options.probe_options
        gpus = any(hello.gpus for hello in self._members.hellos().values())
        bench = options.get("bench")
        return wire.Launch(
            id=name,
            probes=[plugin.name for plugin in group],
            port=free_port(self._cluster.master),
            nnodes=self._cluster.nnodes,
            nproc_per_node=self._cluster.nproc_per_node,
            sizes={size: options[size] for size in permissions.SIZES if options.get(size)},
            model="model" in options,
            bench=msgspec.convert({part: bench[part] for part in ("server", "loads", "left")}, wire.Bench) if bench else None,
            fault=wire.Fault(planted.name, planted.rank, planted.after, planted.delay) if planted else None,
            records=gpus,
            times=gpus and not any(plugin.get("MEASURES") for plugin in group),
        )

    def _timeout(self, plugin: registry.Plugin) -> float:
        """Seconds for one probe; what the user asked for (a longer sweep, a model that takes its time to load) is on top."""
        options = self._options.probe_options
        longer = plugin.get("TIMEOUT_WITH_MODEL") if "model" in options else None
        return float(longer or plugin.get("TIMEOUT")) + float(options.get("budget", 0.0))

    async def _wait(self, view: View, planted: fault.Spec | None) -> tuple[Clock, float]:
        """Until a clock fires, with the step of the rank that is behind on the live line; a fault that strikes a node is let loose in time."""
        deadline = self._started + self._options.deadline
        while not (fired := view.clock(time.monotonic())):
            if time.monotonic() > deadline:
                return Clock.DEADLINE, self._options.deadline
            if planted and planted.strikes == "node" and view.struck is None and view.reached(planted.after):
                self._strike(view, planted)
            if view.suspicious(time.monotonic()) and await self._network_fails(view):
                return Clock.NETWORK, SUSPICIOUS
            slot = min(view.slots.values(), key=lambda slot: slot.seq, default=None)
            step = f"{slot.name} (#{slot.seq})" if slot else "starting"
            self._show(f"{view.current() or 'start'}: {step}  {time.monotonic() - view.started:.0f} s")
            await self._members.until(lambda: view.clock(time.monotonic()), 0.1 if planted else 0.3)
        return fired

    def _strike(self, view: View, planted: fault.Spec) -> None:
        """Have the victim's node broken."""
        node = planted.rank // self._cluster.nproc_per_node
        echoes = {number: hello.echo for number, hello in self._members.hellos().items()}
        peers = [address for number, (address, _) in echoes.items() if number != node and address]
        ports = [self._cluster.port, view.order.port]
        view.struck = time.monotonic()
        self._members.order(node, wire.Strike(view.launch, peers, ports))

    async def _network_fails(self, view: View) -> bool:
        """Whether the network is why nothing moves: a step may take long by itself, and so is waited for, but not where its data cannot pass."""
        last = view.progress
        order = wire.Collect(view.launch, ranks=False)
        self._seen = await self._members.ask(order, wire.Collected, COLLECT_BOUND, lambda: view.clock(time.monotonic()) or view.progress > last)
        if view.progress > last or view.clock(time.monotonic()):
            return False
        return (await _concluded(await _as_seen(view, self._seen)))[0].cause in NETWORK

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

    async def _find(self, *facts: Fact) -> bool:
        """Keep what these facts mean. Always False: nothing more can be run."""
        self._findings += await _concluded(Run(facts=facts))
        return False

    async def _members_at_fault(self) -> None:
        """Keep who sent invalid messages: once the roll call is complete, only who takes part matters to the verdict."""
        settled = self._members.settled
        if facts := [fact for fact in self._members.invalid.values() if not settled or fact.get("node_rank") is not None]:
            await self._find(*facts)

    async def _lost(self, number: int, reason: str) -> None:
        """A node is gone: say who and why, end the others' ranks, keep what is known."""
        facts = self._members.drop_lost(number, reason)
        gone = [self._members.place(int(fact.get("node_rank"))) for fact in facts if fact.get("node_rank")]
        looking = asyncio.ensure_future(self._look_at(gone[:MOST_LOOKED_AT]))
        while view := self._members.view:
            try:
                seen = self._collected or self._members.answered(wire.Collected, view.launch)
                facts += await self._members.ask(wire.Collect(view.launch), wire.Collected, COLLECT_BOUND) if seen is None else seen
                await self._members.ask(wire.Stop(view.launch), wire.Stopped, STOP_BOUND)
                break
            except AgentLost as another:
                if not another.args[0]:
                    break
                facts += self._members.drop_lost(*another.args)  # where node 0 itself is cut off, all others are lost, one after the other
        facts += await looking
        await self._find(*facts, Fact("clock", fields={"which": Clock.LOST.value, "bound": wire.SILENCE, "name": Clock.LOST.name}))
        if self._members.view and self._options.inject:
            self._planted = _account(fault.parse(self._options.inject), self._members.view, Clock.LOST, Run())

    async def _look_at(self, gone: Sequence[wire.Peer]) -> list[Fact]:
        """The ways from node 0 to the nodes that are lost."""
        facts = await paths.try_all(host.name(), [peer for peer in gone if peer.port], {})
        return [replace(fact, fields={**fact.fields, "control": True}) for fact in facts]

    def _refusal(self, late: Sequence[wire.Hello]) -> bytes:
        """The report for agents too many, or for those that came too late to a job that is looked at: the run goes on without them.

        It is made in a thread, beside the run.
        """
        found: list[Finding]
        if self._options.examine and (missing := self._roll.missing()):
            number = int(missing[0].get("node_rank"))
            why = "it came after the roll call had ended"
            found = [examination.unseen(number if hello.node_rank is None else hello.node_rank, hello.host, why) for hello in late]
        else:
            found = triage.findings(Run(facts=self._roll.too_late(late)))
        named = {host for finding in found for host in finding.culprit.hosts or ()}
        hellos = {number: hello for number, hello in self._members.hellos().items() if hello.host in named}
        return outcome.pack(self._report(found, "", dict(list(hellos.items())[:MOST_NAMED]), {}), len(late))

    def _reported(self, hellos: Mapping[int, wire.Hello]) -> tuple[Report, bytes]:
        """The report on the run, and as it travels to so many agents."""
        report = self._report(self._findings, self._run_id if self._members.settled else "", hellos, self._ranks)
        if strangers := dict(self._server.strangers):
            named = sorted(strangers, key=lambda address: -strangers[address])[:MOST_STRANGERS]
            report.run["strangers"] = {"connections": sum(strangers.values()), "addresses": {address: strangers[address] for address in named}}
        return report, outcome.pack(report, len(hellos))

    def _report(self, findings: Sequence[Finding], run_id: str, hellos: Mapping[int, wire.Hello], ranks: Mapping[int, RankId]) -> Report:
        if self._examined:
            return outcome.of_examination(self._examined, hellos, run_id, findings, time.monotonic() - self._started)
        return outcome.of_run(
            self._options,
            run_id=run_id,
            hellos=hellos,
            results=self._results if run_id else [],
            findings=findings,
            lacking=self._lacking,
            spared=self._spared,
            ranks=ranks,
            added=self._added,
            world_size=self._world_size,
            seconds=time.monotonic() - self._started,
            planted=self._planted,
        )


async def _as_seen(view: View, more: list[Fact]) -> Run:
    """A launch as triage reads it. The same holds for this (see `_concluded`)."""
    view.compare_claims()
    return await bounded(view.run, JUDGE_BOUND, more)


async def _concluded(run: Run) -> list[Finding]:
    """The causes found in a run, best first. Judging takes seconds where thousands of ranks take part, and nobody waits for it to be heard."""
    try:
        return await bounded(triage.findings, JUDGE_BOUND, run)
    except TimeoutError:
        title = f"what was seen of the ranks could not be judged in {JUDGE_BOUND:g} s"
        return [Finding("insufficient-evidence", title, remedy="ncclcheck triage RUN   # with the run's directory")]


def _some(names: Sequence[str]) -> list[str]:
    """The first of them, and how many there are besides."""
    more = len(names) - MOST_NAMED
    return [*names[:MOST_NAMED], f"{more} more"] if more > 0 else list(names)


def _account(planted: fault.Spec, view: View, clock: Clock, run: Run) -> dict[str, Any]:
    """What became of a planted fault. `seconds`: from the moment it struck until now, when the findings are there."""
    refused = run.of("not-planted")
    return {
        "fault": planted.name,
        "rank": planted.rank,
        "after": planted.after,
        "clock": clock.value,
        "seconds": round(time.monotonic() - view.struck, 3) if view.struck is not None else None,
        "refused": str(refused[0].get("reason")) if refused else None,
    }


def _not_installed(distribution: str, host: str, need: str = "") -> Fact:
    return Fact("not-installed", host, fields={"distribution": distribution, "need": need or distribution})


def _older(version: str | None, least: str) -> bool:
    """Whether a version is older than another, or none is there."""
    return version is None or [int(part) for part in re.findall(r"\d+", version)] < [int(part) for part in re.findall(r"\d+", least)]

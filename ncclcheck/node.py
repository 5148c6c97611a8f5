"""One node's whole part in a run: find node 0 (or be it), meet, obey, and come back with a report, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ncclcheck import __version__, outcome, run_token, transport, triage, wire
from ncclcheck.agent import Agent, NodeLost, Paused
from ncclcheck.cluster import Cluster
from ncclcheck.collect import host, master
from ncclcheck.coordinator import Coordinator
from ncclcheck.doors import Doors
from ncclcheck.model import Fact, Report, Run
from ncclcheck.options import Options
from ncclcheck.rollcall import task_fields

DEFAULT_TOKEN = "ncclcheck"  # public: without --token, whoever reaches the port can take part
SECOND_NODE0 = 8.0  # seconds in which an agent at the master address, which is not ours, must answer
MOST_EACH, MOST_MORE = 2, 64  # agents that node 0 lets in: so many for each node, and so many more
RETRY = 1.0  # seconds between two tries to resolve the master's name


class Interrupted(Exception):
    """SIGINT or SIGTERM; args: its number."""


def run(cluster: Cluster, options: Options, token: str, folder: Path, say: Callable[[str], None], show: Callable[[str], None]) -> Report:
    """Take part in one run. Raises Interrupted after everything has been ended. `folder` is where run directories are made."""
    return asyncio.run(_run(cluster, options, token, folder, say, show))


async def _run(cluster: Cluster, options: Options, token: str, folder: Path, say: Callable[[str], None], show: Callable[[str], None]) -> Report:
    work = asyncio.current_task()
    caught: list[int] = []

    def interrupt(number: int) -> None:
        caught.append(number)
        if work and len(caught) == 1:  # a second one must not cut the clean-up short
            work.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        report = await _Node(cluster, options, token, folder, say, show).run()
        if caught:  # it came when all was over: an interrupted run is never taken for another
            raise Interrupted(caught[0])
        if report.run.get("folders"):
            report.run["directory"] = str(folder / report.run["id"])
        return report
    except asyncio.CancelledError:
        if caught:
            raise Interrupted(caught[0]) from None
        raise


class _Node:
    def __init__(self, cluster: Cluster, options: Options, token: str, folder: Path, say: Callable[[str], None], show: Callable[[str], None]) -> None:
        self._cluster, self._options, self._key, self._folder = cluster, options, run_token.derive_key(token), folder
        self._say, self._show = say, show
        self._name = host.name()
        self._doors = Doors()
        self._addresses = host.addresses()
        self._started = time.monotonic()

    async def run(self) -> Report:
        """Meet and obey; or say what kept this node from it."""
        try:
            return await self._meet()
        finally:  # node 0 may wait for the others longer than its own agent works: they must not find it gone
            self._doors.close()

    async def _meet(self) -> Report:
        address, facts = await self._master()
        if facts:
            return self._alone(facts)
        first = self._cluster.node_rank == 0 or (self._cluster.node_rank is None and master.own(address, self._addresses))
        if first and not master.own(address, self._addresses):
            seen = await self._other_node0(address)
            if seen.get("answer") not in master.AGENTS:
                mine = ", ".join(sorted(found for found in self._mine() if not found.startswith(("127.", "::1", "fe80"))))
                return self._alone([replace(seen, fields={**seen.fields, "answer": "not-ours", "text": f"{self._name} has {mine}"})])
            first = False  # another agent is node 0 there: it is told of a second one
        if not first:
            return await self._member(transport.Client(_endpoint(address, self._cluster.port), self._key), address, first=False)
        server = transport.Server(self._key, MOST_EACH * self._cluster.nnodes + MOST_MORE)
        try:
            try:
                server.bind(address, self._cluster.port)
            except OSError as error:
                return self._alone([self._bind(address, error)])
            coordinator = Coordinator(server, replace(self._cluster, master=address), self._options, self._folder, self._say, self._show)
            deciding = asyncio.create_task(coordinator.run())
            try:
                member = asyncio.create_task(self._member(server.local(), address, first=True))
                report = await deciding
                await member
                return report
            except Exception as error:
                return self._crashed(error)
            finally:
                for task in (deciding, member):
                    task.cancel()
                await asyncio.gather(deciding, member, return_exceptions=True)
        finally:
            await server.close()

    async def _master(self) -> tuple[str, list[Fact]]:
        """The master's numeric address; or, at the deadline, why there is none."""
        name, error = self._cluster.master, ""
        while True:
            try:
                resolved = await master.resolve(name)
            except (OSError, TimeoutError) as failed:
                error = str(failed) or f"no answer in {master.RESOLVE_BOUND:g} s"
            else:
                if self._cluster.nnodes > 1 and master.loopback_by_name(name, resolved):
                    return "", [Fact("resolve", self._name, fields={"name": name, "addresses": resolved})]
                return resolved[0], []
            left = self._started + self._options.roll_call_timeout - time.monotonic()
            if left <= 0:
                return "", [Fact("resolve", self._name, fields={"name": name, "error": error})]
            self._show(f"the master's name {name} does not resolve yet ({error}); {left:.0f} s left")
            await asyncio.sleep(min(RETRY, left))

    async def _other_node0(self, address: str) -> Fact:
        """Whether another agent answers as node 0 there; it is given a little time to come up."""
        end = time.monotonic() + min(SECOND_NODE0, self._options.roll_call_timeout)
        while True:
            seen = await master.look(self._name, self._cluster.master, address, self._cluster.port, self._key)
            if seen.get("answer") in master.AGENTS or time.monotonic() > end:
                return seen
            self._show(f"{address} is not an address of this node; looking whether another node is node 0 there")
            await asyncio.sleep(RETRY)

    def _mine(self) -> set[str]:
        return {found for addresses in self._addresses.values() for found in addresses}

    def _bind(self, address: str, error: OSError) -> Fact:
        fields = {
            "address": address,
            "port": self._cluster.port,
            "errno": error.errno,
            "text": str(error),
            "owner": master.listener(self._cluster.port),
        }
        return Fact("bind", self._name, fields=fields)

    async def _member(self, client: transport.Client | transport.Local, address: str, first: bool) -> Report:
        """This node's agent, from hello to the verdict."""
        await self._doors.open(master.address_towards(address))
        agent = Agent(client, self._hello(first), self._folder, self._show, self._options.examine_pid, self._doors)
        work = asyncio.create_task(agent.run())
        try:
            while not work.done() and not agent.met:
                left = self._started + self._options.roll_call_timeout - time.monotonic()
                if left <= 0:
                    work.cancel()
                    seen = await master.look(self._name, self._cluster.master, address, self._cluster.port, self._key)
                    return self._alone([seen])
                self._show(f"waiting for node 0 at {self._cluster.master}:{self._cluster.port} ({left:.0f} s left)")
                await asyncio.wait([work], timeout=min(0.5, max(left, 0.01)))
            return outcome.unpack(await work)
        except NodeLost as lost:
            node0 = agent.lost_node0
            return self._alone([replace(node0, host=node0.host or self._cluster.master), *lost.args[0]], agent.run_id)
        except Paused as paused:
            agent.leave(reason := f"it was itself stopped for {paused.args[0]:.0f} s")
            fields = {"node_rank": self._cluster.node_rank, "reason": reason}
            return self._alone([Fact("agent-lost", self._name, fields=fields)], agent.run_id)
        except asyncio.CancelledError:
            agent.leave("interrupted")
            raise
        except Exception as error:
            agent.leave(f"{type(error).__name__}: {error}")
            return self._crashed(error)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await client.close()

    def _crashed(self, error: Exception) -> Report:
        """The report of a node on which ncclcheck itself failed; the traceback is kept beside the runs."""
        path = self._folder / f"crash-{self._name}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):  # a full disk may be the very error
            path.write_text("".join(traceback.format_exception(error)))
        fields = {"type": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None), "traceback": str(path)}
        return self._alone([Fact("agent-failed", self._name, fields=fields)])

    def _hello(self, first: bool) -> wire.Hello:
        """What this node says of itself; who has the master's address is number 0, said or not."""
        cluster = self._cluster
        return wire.Hello(
            wire.PROTOCOL,
            __version__,
            cluster.nnodes,
            0 if first else cluster.node_rank,
            cluster.nproc_per_node,
            self._name,
            os.getpid(),
            cluster.source,
            self._addresses,
            host.gpus(),
            host.versions(),
            host.nvidia_present(),
            task_fields(cluster),
            (self._doors.first.address, self._doors.first.port),
            self._doors.found,
            self._doors.secret,
        )

    def _alone(self, facts: list[Fact], run_id: str = "") -> Report:
        """The report of a node that could not take part to the end; with a `run_id`, it was lost in the middle."""
        cluster = self._cluster
        return outcome.of_run(
            self._options,
            run_id=run_id,
            hellos={cluster.node_rank or 0: self._hello(first=False)},
            results=[],
            findings=triage.findings(Run(facts=facts)),
            lacking=[],
            ranks={},
            added={},
            world_size=cluster.nnodes * cluster.nproc_per_node,
            seconds=time.monotonic() - self._started,
        )


def _endpoint(address: str, port: int) -> str:
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
